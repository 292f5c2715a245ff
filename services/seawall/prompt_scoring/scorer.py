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
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.prompt_scoring import normalise, term_packs, term_set
from seawall.prompt_scoring.detection import Detection, detect
from seawall.prompt_scoring.semantic import SemanticScorer
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.text_scorer import Reading, TextScorer, Unscannable
from seawall.runtime import model_pack
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


class Opener(Protocol):
    """Opens sealed texts: ``runtime.sealing.Sealer``."""

    def open(self, sealed: generation_pb2.SealedText, generation_id: str, field: str) -> str:
        """The text. Raises Poison("UNSEAL_FAILED")."""
        ...


class PromptScorer:
    """The scorer of this room. Safe for threads."""

    def __init__(
        self,
        sealer: Opener,
        packs: Sequence[term_packs.TermPack],
        text_scorers: Sequence[TextScorer],
        settings: PromptScoringSettings,
    ) -> None:
        """Raises Fatal as TermSet does."""
        self._sealer = sealer
        self._settings = settings
        self._terms = term_set.TermSet(packs, settings.re2_max_mem_bytes)
        self._text_scorers = tuple(text_scorers)
        #: The labels of every item that is OK, in order.
        self.labels = (*TERM_LABELS, *(label for scorer in self._text_scorers for label in scorer.labels))
        # A copy of nothing found is a third of the price of as many new messages.
        self._nothing = signal_pb2.ItemResult(
            status=signal_pb2.ITEM_STATUS_OK, labels=[signal_pb2.LabelScore(label=label) for label in self.labels]
        ).SerializeToString()
        self._artefacts = (*_of_packs(packs), *(one for scorer in self._text_scorers for one in scorer.artefacts))
        self._cache = _Cache(settings.cache_entries)

    def score(self, item: prompt_scoring_pb2.PromptItem) -> signal_pb2.ItemResult:
        """Score a sealed prompt. Raises Poison("UNSEAL_FAILED") when it does not open."""
        sealed = len(item.prompt.ciphertext) + len(item.negative_prompt.ciphertext)
        if sealed > self._settings.max_prompt_bytes + 2 * _SEALING_BYTES:
            return _unscannable("TOO_LONG")
        prompt = negative = ""
        if item.HasField("prompt"):
            prompt = self._sealer.open(item.prompt, item.generation_id, "prompt")
        if item.HasField("negative_prompt"):
            negative = self._sealer.open(item.negative_prompt, item.generation_id, "negative_prompt")
        return self.score_text(prompt, negative)

    def score_text(self, prompt: str, negative_prompt: str = "") -> signal_pb2.ItemResult:
        """Score a prompt in clear.

        Returns:
            OK with every label; SKIPPED "EMPTY" when both texts are empty; UNSCANNABLE "NOT_UTF8" (lone surrogates),
            "TOO_LONG", "NO_VISIBLE_TEXT" (nothing but invisible characters) or "EXPANDS" (a normalisation bomb); ERROR
            "MATCH_FAILED" when the pattern engine spent its memory.
        """
        try:
            size = len(prompt.encode()) + len(negative_prompt.encode())
        except UnicodeEncodeError:
            return _unscannable("NOT_UTF8")
        if size > self._settings.max_prompt_bytes:
            return _unscannable("TOO_LONG")
        if not prompt.strip() and not negative_prompt.strip():
            return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_SKIPPED, reason="EMPTY")
        key = self._cache.key(prompt, negative_prompt)
        result = self._cache.get(key)
        if result is None:
            result = self._measure(prompt, negative_prompt)
            self._cache.put(key, result)
        return result

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """Every term pack, and what the text scorers rest on, by digest."""
        return self._artefacts

    def _measure(self, prompt: str, negative_prompt: str) -> signal_pb2.ItemResult:
        settings = self._settings
        visible = normalise.visible_text(prompt)
        if prompt.strip() and not visible.strip():
            return _unscannable("NO_VISIBLE_TEXT")
        try:
            detection = detect(
                prompt, negative_prompt, self._terms, around=settings.around_words, max_pairs=settings.max_pairs
            )
            scores: dict[str, float] = {}
            if self._text_scorers:
                reading = Reading(visible, negative_prompt, (), detection)
                for scorer in self._text_scorers:
                    scores.update(scorer.score(reading))
        except normalise.Expands:
            return _unscannable("EXPANDS")
        except Unscannable as error:
            return _unscannable(error.reason)
        except term_set.MatchFailed:
            return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_ERROR, reason="MATCH_FAILED")
        return self._result(detection, scores)

    def _result(self, detection: Detection, scores: Mapping[str, float]) -> signal_pb2.ItemResult:
        values: dict[str, float] = dict.fromkeys(detection.concepts, 1.0)
        if "negated_clothing" in detection.concepts:
            values["undressing_request"] = 1.0
        values["evasion"] = float(detection.evasion)
        values["minor_sexual"] = detection.minor_sexual
        values.update(scores)
        result = signal_pb2.ItemResult.FromString(self._nothing)
        for entry, label in zip(result.labels, self.labels, strict=True):
            if value := values.get(label):
                entry.score = round(value, _DECIMALS)
        return result


def load(settings: PromptScoringSettings, sealer: Opener | None = None) -> PromptScorer:
    """The scorer that ``settings`` describe.

    Args:
        sealer: opens the texts; None: with the settings' keyset.

    Raises:
        Fatal: names what is missing or broken, and its mend.
    """
    sealer = sealer or Sealer.from_settings(settings.sealing)
    packs = [term_packs.load(folder) for folder in term_packs.bundled()] if settings.bundled_packs else []
    packs += [term_packs.load(pack.path, pack.sha256) for pack in settings.packs]
    return PromptScorer(sealer, packs, text_scorers(settings), settings)


def text_scorers(settings: PromptScoringSettings) -> Sequence[TextScorer]:
    """The text scorers that ``settings`` ask for, in the order of their labels. Raises Fatal as they do."""
    return (SemanticScorer(model_pack.load(settings.model, task="text-embedding"), settings),)


def _unscannable(reason: str) -> signal_pb2.ItemResult:
    return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_UNSCANNABLE, reason=reason)


def _of_packs(packs: Sequence[term_packs.TermPack]) -> tuple[signal_pb2.Artefact, ...]:
    term_pack = signal_pb2.ARTEFACT_KIND_TERM_PACK
    return tuple(
        signal_pb2.Artefact(kind=term_pack, name=pack.card.name, version=pack.card.version, sha256=pack.digest)
        for pack in sorted(packs, key=lambda pack: (pack.card.name, pack.digest))
    )


class _Cache:
    """Results of the prompts seen last. Keys are digests under a key of this process: no text is kept."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._results: OrderedDict[bytes, signal_pb2.ItemResult] = OrderedDict()

    def key(self, prompt: str, negative_prompt: str) -> bytes:
        if not self._entries:
            return b""
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        # The length before the text: no two pairs of texts share a key.
        for text in (prompt.encode(), negative_prompt.encode()):
            digest.update(len(text).to_bytes(8, "big") + text)
        return digest.digest()

    def get(self, key: bytes) -> signal_pb2.ItemResult | None:
        if not self._entries:
            return None
        with self._lock:
            result = self._results.get(key)
            if result is not None:
                self._results.move_to_end(key)
            return result

    def put(self, key: bytes, result: signal_pb2.ItemResult) -> None:
        # An error is this moment's, not the text's.
        if not self._entries or result.status == signal_pb2.ITEM_STATUS_ERROR:
            return
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            if len(self._results) > self._entries:
                self._results.popitem(last=False)
