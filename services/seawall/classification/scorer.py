"""One media item through every classifier: read, decode once, score the frames, keep each label's highest score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from seawall.api.classification.v1 import classification_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification.head import Head
from seawall.classification.labels import highest
from seawall.classification.settings import ClassificationSettings
from seawall.core.errors import Fatal
from seawall.runtime import model_pack
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import DecodingSettings, Unscannable, decode_frames

_TASK = "image-classification"


class Scorer:
    """Scores media items. Safe for threads; every call blocks."""

    def __init__(
        self, heads: Sequence[Head], content: ContentStore, decoding: DecodingSettings, sampled_frames: int
    ) -> None:
        """Args:
            heads: the classifiers, proven already.
            sampled_frames: how many frames of an animation are scored.

        Raises Fatal: ``DUPLICATE_LABEL``, two classifiers would answer for one label.
        """
        names = [label for head in heads for label in head.labels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            detail = f"classifiers: more than one scores {', '.join(twice)}"
            raise Fatal("DUPLICATE_LABEL", f"{detail}: remove one, or rename the label in its card")
        self._heads = tuple(heads)
        self._content = content
        self._decoding = decoding
        self._sampled_frames = sampled_frames
        self._min_side = min_side(heads)
        self._artefacts = tuple(
            signal_pb2.Artefact(
                kind=signal_pb2.ARTEFACT_KIND_MODEL,
                name=head.pack.name,
                version=head.pack.version,
                sha256=head.pack.digest,
            )
            for head in heads
        )

    def score(self, item: classification_pb2.ClassifyItem) -> signal_pb2.ItemResult:
        """Labels with status OK, or UNSCANNABLE with the decoder's reason.

        Raises:
            Poison, Retryable: the content cannot be had, or a classifier gave no usable answer. Never a default score.
        """
        data = self._content.get(item.content)
        try:
            frames = decode_frames(
                data,
                "rgb",
                max_frames=self._sampled_frames,
                min_side=self._min_side,
                declared=item.content.media_type,
                limits=self._decoding,
            )
        except Unscannable as error:
            return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_UNSCANNABLE, reason=error.reason)
        result = signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_OK)
        for head in self._heads:
            for name, value in highest([head.score(frame.pixels) for frame in frames]).items():
                result.labels.add(label=name, score=value)
        return result

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """The classifiers, by their packs' digests."""
        return self._artefacts


def load(settings: ClassificationSettings) -> Scorer:
    """Load every pack and have it prove itself.

    Raises:
        Fatal: as ``model_pack.load``, ``Head`` and ``Head.prove``; the service is then never ready.
    """
    heads = load_heads(settings.classifiers, settings.max_model_bytes)
    return Scorer(heads, ContentStore(settings.content), settings.decoding, settings.sampled_frames)


def load_heads(folders: Sequence[Path], max_bytes: int = model_pack.MAX_PACK_BYTES) -> list[Head]:
    """The packs in these folders, each proven at the decoding that all of them share."""
    heads = [Head(model_pack.load(folder, _TASK, max_bytes)) for folder in folders]
    for head in heads:
        head.prove(min_side(heads))
    return heads


def min_side(heads: Sequence[Head]) -> int:
    """What the shared decode must keep for the most demanding classifier."""
    return max(head.min_side for head in heads)
