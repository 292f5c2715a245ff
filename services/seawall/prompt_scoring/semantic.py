"""The sentence encoder's opinion of a prompt: its windows and its whole, compared with the anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seawall.api.signal.v1 import signal_pb2
from seawall.prompt_scoring.anchors import Anchors
from seawall.prompt_scoring.encoder import Encoder, TooManyTokens
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.text_scorer import Reading, Unscannable
from seawall.runtime.model_pack import ModelPack


class SemanticScorer:
    """A `text_scorer.TextScorer`. Safe for threads."""

    labels = ("minor_sexual_semantic", "minor_sexual_paraphrase", "outside_model_languages")

    def __init__(self, pack: ModelPack, settings: PromptScoringSettings) -> None:
        """Raises Fatal as Encoder and Anchors do."""
        self._settings = settings
        self._encoder = Encoder(pack, settings.window_tokens)
        self._anchors = Anchors(self._encoder, settings.anchors)
        self._artefacts = (
            signal_pb2.Artefact(
                kind=signal_pb2.ARTEFACT_KIND_MODEL, name=pack.name, version=pack.version, sha256=pack.digest
            ),
            signal_pb2.Artefact(
                kind=signal_pb2.ARTEFACT_KIND_TERM_PACK,
                name="anchors",
                version=self._anchors.version,
                sha256=self._anchors.digest,
            ),
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
        windows = reading.detection.windows[: 2 * self._settings.max_pairs]
        texts = {text for window in windows for text in (window.text, window.plain)}
        near = max((self._anchors.score(self._encoder.embed_start(text)) for text in texts), default=0.0)
        return dict(zip(self.labels, (near, whole, _outside(reading.prompt)), strict=True))


def _outside(text: str) -> float:
    if text.isascii():
        return 0.0
    letters = [char for char in text if char.isalpha()]
    return sum(not char.isascii() for char in letters) / len(letters) if letters else 0.0
