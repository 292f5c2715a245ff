"""Records and messages for tests of the stream path. All texts are benign."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity

PROMPT, HASHING, CLASSIFICATION = "prompt_scoring", "perceptual_hashing", "classification"
GENERATIONS, SIGNALS, DECISIONS = "generations.v1", "signals.v1", "decisions.v1"
OVERRIDES = "overrides.v1"


def generation(
    generation_id: str = "g-1", *, prompt: bool = True, media: int = 0, attempt: int = 1, **fields: object
) -> generation_pb2.Generation:
    """A well-formed generation; the ciphertext is not one a keyset could open."""
    made = generation_pb2.Generation(
        generation_id=generation_id,
        attempt=attempt,
        tenant_id="tenant",
        actor_id="actor",
        modality=generation_pb2.MODALITY_IMAGE,
        **fields,  # type: ignore[arg-type]
    )
    if prompt:
        made.prompt.key_id = "1"
        made.prompt.ciphertext = b"sealed"
    for number in range(media):
        made.media.add(
            item_id=f"output/{number}",
            nexus=generation_pb2.NEXUS_MODEL_OUTPUT,
            content=generation_pb2.ContentRef(
                uri=f"file:///content/{number}", sha256=bytes(32), media_type="image/jpeg", size_bytes=1
            ),
        )
    return made


def signal(
    of: generation_pb2.Generation,
    stage: str,
    *,
    offset: int,
    partition: int = 0,
    scores: dict[str, float] | None = None,
    status: signal_pb2.ItemStatus.ValueType = signal_pb2.ITEM_STATUS_OK,
    matches: Sequence[signal_pb2.BankMatch] = (),
    reason: str = "",
) -> signal_pb2.Signal:
    """A stage's signal for the generation record at ``offset``."""
    made = signal_pb2.Signal(
        signal_id=identity.signal_id(of.generation_id, of.attempt, stage),
        generation_id=of.generation_id,
        attempt=of.attempt,
        stage=stage,
        tenant_id=of.tenant_id,
    )
    made.generation_record.topic = GENERATIONS
    made.generation_record.partition = partition
    made.generation_record.offset = offset
    item = made.items.add(
        item_id="prompt" if stage == PROMPT else "output/0",
        nexus=generation_pb2.NEXUS_ATTEMPT if stage == PROMPT else generation_pb2.NEXUS_MODEL_OUTPUT,
        status=status,
        reason=reason,
        matches=matches,
    )
    for label, score in (scores or {}).items():
        item.labels.add(label=label, score=score)
    return made


def deadline(of: generation_pb2.Generation, *, offset: int, partition: int = 0) -> control_pb2.Deadline:
    """The Deadline of the generation record at ``offset``."""
    made = control_pb2.Deadline(generation_id=of.generation_id, attempt=of.attempt, due_unix_nano=1)
    made.generation_record.topic = GENERATIONS
    made.generation_record.partition = partition
    made.generation_record.offset = offset
    return made
