"""What the relay needs to know of this stage: every media item of a generation is classified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from seawall.api.classification.v1 import classification_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.relay.stage import Example, StageItem


class ClassificationStage:
    """See ``seawall.relay.stage.Stage``."""

    name = "classification"
    method = "/seawall.api.classification.v1.ClassificationService/ClassifyMedia"
    request_type: type[Any] = classification_pb2.ClassifyMediaRequest
    response_type: type[Any] = classification_pb2.ClassifyMediaResponse

    def items(self, generation: generation_pb2.Generation) -> Sequence[StageItem]:
        """Every media item, in order; none for a generation of text alone."""
        return [StageItem(media.item_id, media.nexus) for media in generation.media]

    def add(
        self, request: classification_pb2.ClassifyMediaRequest, generation: generation_pb2.Generation, number: int
    ) -> None:
        """Add every media item."""
        for position, media in enumerate(generation.media, number):
            request.items.add(id=position, content=media.content, generation_id=generation.generation_id)


STAGE = ClassificationStage()


class MediaStore(Protocol):
    """Keeps media: ``runtime.content.ContentStore``."""

    def put(self, data: bytes, media_type: str) -> generation_pb2.ContentRef: ...


def examples(store: MediaStore) -> list[Example]:
    """Generations and the statuses their items must get, their media kept in the store of the service under test."""
    ok, error, unscannable = (
        signal_pb2.ITEM_STATUS_OK,
        signal_pb2.ITEM_STATUS_ERROR,
        signal_pb2.ITEM_STATUS_UNSCANNABLE,
    )
    picture = (Path(__file__).parent / "examples" / "discs.png").read_bytes()
    whole, truncated = store.put(picture, "image/png"), store.put(picture[: len(picture) // 2], "image/png")
    empty, text = store.put(b"", "image/png"), store.put(b"no picture at all", "image/jpeg")
    changed, elsewhere = generation_pb2.ContentRef(), generation_pb2.ContentRef()
    changed.CopyFrom(whole)
    changed.sha256 = hashlib.sha256(b"another object").digest()
    elsewhere.CopyFrom(whole)
    elsewhere.uri = "file:///elsewhere/discs.png"
    return [
        _example("picture", {"output/0": (whole, ok)}),
        _example("truncated", {"output/0": (truncated, unscannable)}),
        _example("no-bytes", {"output/0": (empty, unscannable)}),
        _example("no-picture", {"output/0": (text, unscannable)}),
        _example("changed-since", {"output/0": (changed, error)}),
        _example("not-allowed", {"output/0": (elsewhere, error)}),
        _example(
            "neighbours", {"input/0": (truncated, unscannable), "output/0": (whole, ok), "output/1": (changed, error)}
        ),
        _example("no-media", {}),
    ]


def _example(
    name: str, media: Mapping[str, tuple[generation_pb2.ContentRef, signal_pb2.ItemStatus.ValueType]]
) -> Example:
    generation = generation_pb2.Generation(
        generation_id=f"example-{name}",
        attempt=1,
        tenant_id="example",
        modality=generation_pb2.MODALITY_IMAGE if media else generation_pb2.MODALITY_TEXT,
    )
    for item_id, (content, _) in media.items():
        uploaded = item_id.startswith("input/")
        nexus = generation_pb2.NEXUS_UPLOADED_INPUT if uploaded else generation_pb2.NEXUS_MODEL_OUTPUT
        generation.media.add(item_id=item_id, nexus=nexus, content=content)
    return Example(name, generation, {item_id: status for item_id, (_, status) in media.items()})
