"""The prompt_scoring stage, for the relay: which text of a generation is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.relay.stage import Example, StageItem

#: Whatever text there is, it is measured as one.
_ATTEMPT = (StageItem("prompt", generation_pb2.NEXUS_ATTEMPT),)
_TRAINING = (StageItem("prompt", generation_pb2.NEXUS_TRAINING_DATA),)


class PromptScoringStage:
    """Prompt, negative prompt and the turns before them as one item, "prompt"."""

    name = "prompt_scoring"
    method = "/seawall.api.prompt_scoring.v1.PromptScoringService/ScorePrompts"
    request_type: type[Any] = prompt_scoring_pb2.ScorePromptsRequest
    response_type: type[Any] = prompt_scoring_pb2.ScorePromptsResponse

    def items(self, generation: generation_pb2.Generation) -> Sequence[StageItem]:
        """One item, or none for a generation without text."""
        if not (generation.HasField("prompt") or generation.HasField("negative_prompt")):
            return ()
        return _TRAINING if generation.modality == generation_pb2.MODALITY_DATASET else _ATTEMPT

    def add(
        self, request: prompt_scoring_pb2.ScorePromptsRequest, generation: generation_pb2.Generation, number: int
    ) -> None:
        """Add the one item."""
        # Field by field: cheaper than as keywords, and every event passes here.
        item = request.items.add()
        item.id = number
        item.generation_id = generation.generation_id
        # An absent text must stay absent: an empty SealedText does not open.
        if generation.HasField("prompt"):
            item.prompt.CopyFrom(generation.prompt)
        if generation.HasField("negative_prompt"):
            item.negative_prompt.CopyFrom(generation.negative_prompt)
        if turns := generation.turns:
            item.turns.extend(turns)


STAGE = PromptScoringStage()


class TextSealer(Protocol):
    """Seals texts: ``runtime.sealing.Sealer``."""

    def seal(self, text: str, generation_id: str, field: str) -> generation_pb2.SealedText: ...


def examples(sealer: TextSealer) -> list[Example]:
    """Generations and the statuses their items must get, sealed with the keyset of the service under test."""
    ok, error = signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_ERROR
    unscannable, skipped = signal_pb2.ITEM_STATUS_UNSCANNABLE, signal_pb2.ITEM_STATUS_SKIPPED
    texts: list[tuple[str, str, str, signal_pb2.ItemStatus.ValueType]] = [
        ("ordinary", "a mountain lake at sunrise, 35mm photograph", "", ok),
        ("negative", "portrait of a fisherman, oil on canvas", "blurry, extra fingers", ok),
        ("combining-marks", "e" + "\u0301" * 10_000, "", ok),
        ("controls", "a red\x00 car\x07 on a\x1b road", "", ok),
        ("right-to-left", "\u202eepacsdnal a fo otohp\u202c", "", ok),
        ("empty", "", "", skipped),
        ("invisible", "\u200b\u200d\u2060\ufeff", "", unscannable),
        ("megabyte", "lake " * 210_000, "", unscannable),
    ]
    found = [_example(sealer, name, prompt, negative, status) for name, prompt, negative, status in texts]
    moved = _example(sealer, "moved-ciphertext", "a red car", "", error)
    moved.generation.generation_id = "example-elsewhere"
    found.append(moved)
    nothing = generation_pb2.Generation(generation_id="example-no-text", attempt=1)
    found.append(Example("no-text", nothing, {}))
    return found


def _example(
    sealer: TextSealer, name: str, prompt: str, negative: str, status: signal_pb2.ItemStatus.ValueType
) -> Example:
    generation_id = f"example-{name}"
    generation = generation_pb2.Generation(
        generation_id=generation_id,
        attempt=1,
        tenant_id="example",
        modality=generation_pb2.MODALITY_IMAGE,
        prompt=sealer.seal(prompt, generation_id, "prompt"),
    )
    if negative:
        generation.negative_prompt.CopyFrom(sealer.seal(negative, generation_id, "negative_prompt"))
    return Example(name, generation, {"prompt": status})
