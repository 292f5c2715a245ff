"""What the relay needs to know of this stage: every media item of a generation is classified."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seawall.api.classification.v1 import classification_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.relay.stage import Example, StageItem

#: The examples' media; a content store that serves them must allow this folder.
EXAMPLES_FOLDER = Path(__file__).parent / "examples"


class ClassificationStage:
    """See ``seawall.relay.stage.Stage``."""

    name = "classification"
    method = "/seawall.api.classification.v1.ClassificationService/ClassifyMedia"
    request_type: type[Any] = classification_pb2.ClassifyMediaRequest
    response_type: type[Any] = classification_pb2.ClassifyMediaResponse

    def items(self, generation: generation_pb2.Generation) -> Sequence[StageItem]:
        """Every media item, in order; none for a generation of text alone."""
        return [
            StageItem(media.item_id, media.nexus, classification_pb2.ClassifyItem(content=media.content))
            for media in generation.media
        ]


STAGE = ClassificationStage()


def _content(name: str, media_type: str) -> generation_pb2.ContentRef:
    path = EXAMPLES_FOLDER / name
    data = path.read_bytes()
    return generation_pb2.ContentRef(
        uri=path.resolve().as_uri(), sha256=hashlib.sha256(data).digest(), media_type=media_type, size_bytes=len(data)
    )


def examples() -> Sequence[Example]:
    """Generations and the statuses that the real service must give their items."""
    whole, truncated = _content("discs.png", "image/png"), _content("truncated.png", "image/png")
    changed = generation_pb2.ContentRef()
    changed.CopyFrom(whole)
    changed.sha256 = hashlib.sha256(b"another object").digest()
    cases = (
        ("a picture", whole, signal_pb2.ITEM_STATUS_OK),
        ("a truncated picture", truncated, signal_pb2.ITEM_STATUS_UNSCANNABLE),
        ("a picture that was changed after it was referred to", changed, signal_pb2.ITEM_STATUS_ERROR),
    )
    return [
        Example(
            name,
            generation_pb2.Generation(
                generation_id=f"classification-example-{number}",
                attempt=1,
                modality=generation_pb2.MODALITY_IMAGE,
                media=[
                    generation_pb2.MediaItem(
                        item_id="output/0", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, content=content
                    )
                ],
            ),
            {"output/0": status},
        )
        for number, (name, content, status) in enumerate(cases)
    ]


EXAMPLES = examples()
