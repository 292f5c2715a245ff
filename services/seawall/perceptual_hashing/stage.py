"""What the relay needs to know of this stage: every media item of a generation is hashed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from seawall.api.generation.v1 import generation_pb2
from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.relay.stage import Example, StageItem


class PerceptualHashingStage:
    """See ``seawall.relay.stage.Stage``."""

    name = "perceptual_hashing"
    method = "/seawall.api.perceptual_hashing.v1.PerceptualHashingService/HashMedia"
    request_type: type[Any] = perceptual_hashing_pb2.HashMediaRequest
    response_type: type[Any] = perceptual_hashing_pb2.HashMediaResponse

    def items(self, generation: generation_pb2.Generation) -> Sequence[StageItem]:
        """Every media item, in order; none for a generation of text alone."""
        return [StageItem(media.item_id, media.nexus) for media in generation.media]

    def add(
        self, request: perceptual_hashing_pb2.HashMediaRequest, generation: generation_pb2.Generation, number: int
    ) -> None:
        """Add every media item."""
        for position, media in enumerate(generation.media, number):
            request.items.add(id=position, content=media.content)


STAGE = PerceptualHashingStage()

#: An 8 x 8 checkerboard of black and white, 1 bit gray.
_CHECKERBOARD = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAADklEQVR4nGMIZQplQMIAFZACsQuCFE8AAAAASUVORK5CYII="
)


class MediaStore(Protocol):
    """Stores media: ``runtime.content.ContentStore``."""

    def put(self, data: bytes, media_type: str) -> generation_pb2.ContentRef: ...


def examples(store: MediaStore) -> Sequence[Example]:
    """Generations and the statuses their items must get, their media in the store of the service under test."""
    whole = store.put(_CHECKERBOARD, "image/png")
    changed, elsewhere = generation_pb2.ContentRef(), generation_pb2.ContentRef()
    changed.CopyFrom(whole)
    changed.sha256 = hashlib.sha256(b"another object").digest()
    elsewhere.CopyFrom(whole)
    elsewhere.uri = "file:///elsewhere/picture.png"
    cases = (
        ("a picture", whole, signal_pb2.ITEM_STATUS_OK),
        ("a truncated picture", store.put(_CHECKERBOARD[:-20], "image/png"), signal_pb2.ITEM_STATUS_UNSCANNABLE),
        ("text", store.put(b"This is not a picture.", "image/png"), signal_pb2.ITEM_STATUS_UNSCANNABLE),
        ("a picture that was changed after it was referred to", changed, signal_pb2.ITEM_STATUS_ERROR),
        ("a reference outside the allow-list", elsewhere, signal_pb2.ITEM_STATUS_ERROR),
    )
    return [
        Example(name, _generation(number, content), {"output/0": status})
        for number, (name, content, status) in enumerate(cases)
    ]


def _generation(number: int, content: generation_pb2.ContentRef) -> generation_pb2.Generation:
    media = generation_pb2.MediaItem(item_id="output/0", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, content=content)
    return generation_pb2.Generation(
        generation_id=f"perceptual-hashing-example-{number}",
        attempt=1,
        modality=generation_pb2.MODALITY_IMAGE,
        media=[media],
    )
