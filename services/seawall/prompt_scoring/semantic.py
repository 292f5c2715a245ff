"""The sentence encoder's opinion of a prompt: the block grade of its windows, and its whole against the anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seawall.api.signal.v1 import signal_pb2
from seawall.prompt_scoring.anchors import Anchors
from seawall.prompt_scoring.block_head import BlockHead
from seawall.prompt_scoring.encoder import Encoder, TooManyTokens
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.text_scorer import Reading, Unscannable
from seawall.prompt_scoring.windows import Window
from seawall.runtime.model_pack import ModelPack

#: Where the encoder cannot read, terms decide: within so many words of each other they are enough to block unless the
#: context is benign. Further apart, from packs of two languages, or where one is what a negative prompt takes away (and
#: the encoder reads words that nobody wrote), they are enough for a person to look.
_TERMS_WITHIN, _TERMS_APART = 6, 0.4


class SemanticScorer:
    """A `text_scorer.TextScorer`. Safe for threads."""

    labels = ("minor_sexual_semantic", "minor_sexual_paraphrase", "outside_model_languages")

    def __init__(self, pack: ModelPack, settings: PromptScoringSettings, encoder: Encoder | None = None) -> None:
        """Args:
            encoder: of that pack; None: made here.

        Raises:
            Fatal: as Encoder, Anchors and BlockHead do.
        """
        self._settings = settings
        self._encoder = encoder or Encoder(pack, settings.window_tokens)
        self._anchors = Anchors(self._encoder, settings.anchors)
        self._head = BlockHead(self._encoder, pack, settings.head)
        model, term_pack = signal_pb2.ARTEFACT_KIND_MODEL, signal_pb2.ARTEFACT_KIND_TERM_PACK
        self._artefacts = tuple(
            signal_pb2.Artefact(kind=kind, name=name, version=version, sha256=digest)
            for kind, name, version, digest in (
                (model, pack.name, pack.version, pack.digest),
                (model, "block-head", self._head.version, self._head.digest),
                (term_pack, "anchors", self._anchors.version, self._anchors.digest),
            )
        )

    @property
    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        return self._artefacts

    def score(self, reading: Reading) -> Mapping[str, float]:
        """Raises Unscannable("TOO_LONG") when the prompt has more windows than the settings allow."""
        whole = 0.0
        if reading.prompt.strip():
            try:
                vectors = self._encoder.embed(reading.prompt, self._settings.max_windows)
            except TooManyTokens:
                raise Unscannable("TOO_LONG") from None
            whole = self._anchors.score(vectors)
        windows = reading.detection.windows[: 4 * self._settings.max_pairs]
        near = max((self._near(window) for window in windows), default=0.0)
        foreign = any(window.language not in self._head.languages for window in windows)
        outside = 1.0 if foreign else _outside(reading.prompt)
        return dict(zip(self.labels, (near, whole, outside), strict=True))

    def _near(self, window: Window) -> float:
        if window.language in self._head.languages:
            return max(self._head.score(window), _TERMS_APART if window.taken_away else 0.0)
        near = window.language != "und" and window.distance <= _TERMS_WITHIN
        return self._head.blocks_from if near else _TERMS_APART


def _outside(text: str) -> float:
    """The share of letters that are not ASCII."""
    if text.isascii():
        return 0.0
    letters = [char for char in text if char.isalpha()]
    return sum(not char.isascii() for char in letters) / len(letters) if letters else 0.0
