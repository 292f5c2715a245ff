"""Scores one prompt item: unseal, views, terms, encoder, labels.

Labels, each 0 to 1 and always present on an item that is OK:

    minor_reference         a term for a minor stands in the prompt (1) or not (0); context, no evidence by itself
    sexual_context          a sexual term
    undressing_request      a request to undress someone, or a minor's clothing taken away in the negative prompt
    real_person_photo       a real person's photograph
    coercion                threat, force or deceit
    benign_context          parenting, medicine, education, art, news, law, safety. It never clears a detection:
                            a policy may answer REVIEW instead of BLOCK
    evasion                 one of the first three shows only once an obfuscation is undone
    minor_sexual            detect grade: a minor and a sexual or undressing term, by distance: 1 within 12 words, .8
                            within 40 (or split over prompt and negative prompt), .6 within 400, else .5
    minor_sexual_semantic   block grade: the encoder's calibrated score of the words around such a pair; 0 without one
    minor_sexual_paraphrase the encoder's score of the whole prompt, terms or not
    outside_model_languages share of letters that are not ASCII: how little the encoder's two scores mean here
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.prompt_scoring import normalise, pack_signing, term_packs, term_set
from seawall.prompt_scoring.classifier import TextClassifier
from seawall.prompt_scoring.detection import Detection, detect
from seawall.prompt_scoring.policy_prompt import PolicyPrompt
from seawall.prompt_scoring.reload import Reloader
from seawall.prompt_scoring.semantic import SemanticScorer
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.text_scorer import Reading, TextScorer, Unscannable
from seawall.runtime import metrics, model_pack
from seawall.runtime.result_cache import ResultCache
from seawall.runtime.sealing import Sealer

CONCEPT_LABELS: tuple[term_packs.Concept, ...] = (
    "minor_reference",
    "sexual_context",
    "undressing_request",
    "real_person_photo",
    "coercion",
    "benign_context",
)
#: What terms alone give; the text scorers' labels follow.
TERM_LABELS = (*CONCEPT_LABELS, "evasion", "minor_sexual")
#: What AES-GCM and Tink's prefix add to a text.
_SEALING_BYTES = 64
#: Scores beyond the fourth decimal differ between CPUs.
_DECIMALS = 4
_HIT, _MISS = {metrics.CACHE_RESULT: "hit"}, {metrics.CACHE_RESULT: "miss"}


class Opener(Protocol):
    """Opens sealed texts: ``runtime.sealing.Sealer``."""

    def open(self, sealed: generation_pb2.SealedText, generation_id: str, field: str) -> str:
        """The text. Raises Poison("UNSEAL_FAILED")."""
        ...


class Artefacts:
    """Everything that scores rest on, loaded and verified together. Immutable: a change makes another."""

    def __init__(
        self, packs: Sequence[term_packs.TermPack], text_scorers: Sequence[TextScorer], re2_max_mem_bytes: int
    ) -> None:
        """Raises Fatal as TermSet does."""
        self.terms = term_set.compiled(packs, re2_max_mem_bytes)
        self.text_scorers = tuple(text_scorers)
        #: The labels of every item that is OK, in order.
        self.labels = (*TERM_LABELS, *(label for scorer in self.text_scorers for label in scorer.labels))
        self.listed = (*_of_packs(packs), *(one for scorer in self.text_scorers for one in scorer.artefacts))
        #: Of all of them together.
        self.digest = hashlib.sha256(
            b"".join(one.SerializeToString(deterministic=True) for one in self.listed)
        ).digest()
        # A copy of nothing found is a third of the price of as many new messages.
        self.nothing = signal_pb2.ItemResult(
            status=signal_pb2.ITEM_STATUS_OK, labels=[signal_pb2.LabelScore(label=label) for label in self.labels]
        ).SerializeToString()


class PromptScorer:
    """The scorer of this room. Safe for threads."""

    def __init__(self, sealer: Opener, artefacts: Artefacts, settings: PromptScoringSettings) -> None:
        self._sealer = sealer
        self._settings = settings
        self._serving = artefacts
        self._cache: ResultCache[signal_pb2.ItemResult] = ResultCache(settings.cache_entries)
        # Keys of the cache are digests under a key of this process: no text is kept, and none can be guessed.
        self._secret = secrets.token_bytes(32)

    @property
    def labels(self) -> Sequence[str]:
        """The labels of every item that is OK, in order."""
        return self._serving.labels

    def swap(self, artefacts: Artefacts) -> None:
        """From now on prompts meet these; those on their way end with the ones they began with."""
        self._serving = artefacts

    def score(self, item: prompt_scoring_pb2.PromptItem) -> signal_pb2.ItemResult:
        """Score a sealed prompt. Raises Poison("UNSEAL_FAILED") when it does not open."""
        count = len(item.turns)
        first = max(count - self._settings.turns, 0)
        sealed = len(item.prompt.ciphertext) + len(item.negative_prompt.ciphertext)
        sealed += sum(len(item.turns[number].ciphertext) for number in range(first, count))
        if sealed > self._settings.max_prompt_bytes + (2 + count) * _SEALING_BYTES:
            return _unscannable("TOO_LONG")
        prompt = negative = ""
        if item.HasField("prompt"):
            prompt = self._sealer.open(item.prompt, item.generation_id, "prompt")
        if item.HasField("negative_prompt"):
            negative = self._sealer.open(item.negative_prompt, item.generation_id, "negative_prompt")
        turns = [""] * first + [
            self._sealer.open(item.turns[number], item.generation_id, f"turns/{number}")
            for number in range(first, count)
        ]
        return self.score_text(prompt, negative, turns)

    def score_text(self, prompt: str, negative_prompt: str = "", turns: Sequence[str] = ()) -> signal_pb2.ItemResult:
        """Score a prompt in clear. The result is not to be changed: it may be given again.

        Args:
            turns: earlier turns of the conversation, oldest first.

        Returns:
            OK with every label; SKIPPED "EMPTY" when prompt and negative prompt are empty; UNSCANNABLE "NOT_UTF8" (lone
            surrogates), "TOO_LONG", "NO_VISIBLE_TEXT" (nothing but invisible characters) or "EXPANDS" (a normalisation
            bomb); ERROR "MATCH_FAILED" when the pattern engine spent its memory.
        """
        texts = (prompt, negative_prompt, *turns)
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError:
            return _unscannable("NOT_UTF8")
        if sum(map(len, encoded)) > self._settings.max_prompt_bytes:
            return _unscannable("TOO_LONG")
        if not prompt.strip() and not negative_prompt.strip():
            return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_SKIPPED, reason="EMPTY")
        serving = self._serving
        if not self._settings.cache_entries:
            return self._measure(serving, prompt, negative_prompt, turns)
        result, known = self._cache.get(
            self._key(serving, encoded),
            lambda: self._measure(serving, prompt, negative_prompt, turns),
            # An error is this moment's, not the text's.
            lambda result: result.status != signal_pb2.ITEM_STATUS_ERROR,
        )
        metrics.RESULT_CACHE.add(1, _HIT if known else _MISS)
        return result

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """Every term pack, and what the text scorers rest on, by digest."""
        return self._serving.listed

    def _key(self, serving: Artefacts, encoded: Sequence[bytes]) -> bytes:
        digest = hashlib.blake2b(serving.digest, key=self._secret, digest_size=32)
        # The length before the text: no two lists of texts share a key.
        for text in encoded:
            digest.update(len(text).to_bytes(8, "big") + text)
        return digest.digest()

    def _measure(
        self, serving: Artefacts, prompt: str, negative_prompt: str, turns: Sequence[str]
    ) -> signal_pb2.ItemResult:
        settings = self._settings
        visible = normalise.visible_text(prompt)
        if prompt.strip() and not visible.strip():
            return _unscannable("NO_VISIBLE_TEXT")
        try:
            detection = detect(
                prompt,
                negative_prompt,
                serving.terms,
                around=settings.around_words,
                max_pairs=settings.max_pairs,
                turns=turns,
            )
            scores: dict[str, float] = {}
            if serving.text_scorers:
                reading = Reading(visible, negative_prompt, turns, detection)
                for scorer in serving.text_scorers:
                    scores.update(scorer.score(reading))
        except normalise.Expands:
            return _unscannable("EXPANDS")
        except Unscannable as error:
            return _unscannable(error.reason)
        except term_set.MatchFailed:
            return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_ERROR, reason="MATCH_FAILED")
        return _result(serving, detection, scores)


def load(settings: PromptScoringSettings, sealer: Opener | None = None) -> PromptScorer:
    """The scorer that ``settings`` describe.

    Args:
        sealer: opens the texts; None: with the settings' keyset.

    Raises:
        Fatal: names what is missing or broken, and its mend.
    """
    return PromptScorer(sealer or Sealer.from_settings(settings.sealing), load_artefacts(settings), settings)


def serve(settings: PromptScoringSettings) -> PromptScorer:
    """`load`, and keep watch for changes of packs and models for as long as the process lives."""
    scorer = load(settings)
    if settings.reload_seconds:
        Reloader(paths(settings), lambda: load_artefacts(settings), scorer.swap).start(settings.reload_seconds)
    return scorer


def load_artefacts(settings: PromptScoringSettings) -> Artefacts:
    """Load and verify everything that scores rest on. Raises Fatal."""
    packs = [term_packs.load(folder) for folder in term_packs.bundled()] if settings.bundled_packs else []
    verifier = None if settings.pack_keys is None else pack_signing.Verifier(settings.pack_keys)
    for pack in settings.packs:
        loaded = term_packs.load(pack.path, pack.sha256)
        if pack.sha256 is None:
            pack_signing.require(verifier, pack.path, loaded)
        packs.append(loaded)
    return Artefacts(packs, text_scorers(settings), settings.re2_max_mem_bytes)


def text_scorers(settings: PromptScoringSettings) -> Sequence[TextScorer]:
    """The text scorers that ``settings`` ask for, in the order of their labels. Raises Fatal as they do."""
    found: list[TextScorer] = [SemanticScorer(model_pack.load(settings.model, task="text-embedding"), settings)]
    for path in settings.classifiers:
        found.append(TextClassifier(model_pack.load(path, task="text-classification"), settings.max_windows))
    if settings.policy_prompt is not None:
        found.append(PolicyPrompt(settings.policy_prompt))
    names = [*TERM_LABELS, *(label for scorer in found for label in scorer.labels)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Fatal("LABEL_TWICE", f"classifiers: the label {twice[0]} is another's: rename it in the pack's card")
    return tuple(found)


def paths(settings: PromptScoringSettings) -> list[Path]:
    """Every file and folder of ``settings`` that scores rest on: whatever path they name but keys and the server's."""
    found: list[Path] = []

    def walk(value: object) -> None:
        if isinstance(value, Path):
            found.append(value)
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                walk(getattr(value, name))
        elif isinstance(value, Mapping):
            for part in value.values():
                walk(part)
        elif isinstance(value, list | tuple):
            for part in value:
                walk(part)

    for name in type(settings).model_fields:
        if name not in ("rpc_server", "sealing", "telemetry"):
            walk(getattr(settings, name))
    return found


def _result(serving: Artefacts, detection: Detection, scores: Mapping[str, float]) -> signal_pb2.ItemResult:
    values: dict[str, float] = dict.fromkeys(detection.concepts, 1.0)
    if "negated_clothing" in detection.concepts:
        values["undressing_request"] = 1.0
    values["evasion"] = float(detection.evasion)
    values["minor_sexual"] = detection.minor_sexual
    values.update(scores)
    result = signal_pb2.ItemResult.FromString(serving.nothing)
    for entry, label in zip(result.labels, serving.labels, strict=True):
        if value := values.get(label):
            entry.score = round(value, _DECIMALS)
    for place in detection.places:
        result.spans.add(label=place.concept, field=place.field, start=place.start, end=place.end)
    return result


def _unscannable(reason: str) -> signal_pb2.ItemResult:
    return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_UNSCANNABLE, reason=reason)


def _of_packs(packs: Sequence[term_packs.TermPack]) -> tuple[signal_pb2.Artefact, ...]:
    term_pack = signal_pb2.ARTEFACT_KIND_TERM_PACK
    return tuple(
        signal_pb2.Artefact(kind=term_pack, name=pack.card.name, version=pack.card.version, sha256=pack.digest)
        for pack in sorted(packs, key=lambda pack: (pack.card.name, pack.digest))
    )
