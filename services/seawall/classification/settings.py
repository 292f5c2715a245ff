"""Settings of the classification service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from seawall.classification.execution import ExecutionSettings
from seawall.runtime.decoding import DecodingSettings
from seawall.runtime.settings import (
    ByteCount,
    ContentSettings,
    RoomSettings,
    RpcServerSettings,
    Seconds,
    seawall_home,
)


def _demo_classifiers() -> list[Path]:
    return [seawall_home() / "models" / "opennsfw"]


class ClassificationSettings(RoomSettings):
    """One service process: its models, what it may read, and its server."""

    # Model packs (folders), each run on every picture; their labels must not overlap. As JSON in the environment.
    classifiers: list[Path] = Field(default_factory=_demo_classifiers, min_length=1, max_length=16)
    # A file that says which packs decide and which are on trial; instead of `classifiers`. See docs/classification.md.
    rollout: Path | None = None
    # The rollout and its packs are looked at so often, and swapped without a pause when they have changed. 0: never.
    reload_seconds: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    # How long an item waits for the models on trial; what they have not said by then is left out.
    trial_seconds: Seconds = 2.0
    # How models are run.
    execution: ExecutionSettings = Field(default_factory=ExecutionSettings)
    # Results kept, by the content's digest and the models'; each takes about 1 KB. 0: none.
    cached_results: int = Field(default=10_000, ge=0)
    # Scores of one label that one index of drift is made of.
    drift_window: int = Field(default=2_000, ge=100)
    # Upper bound of one pack's files together; a larger one is refused before it is read.
    max_model_bytes: ByteCount = 1024 * 1024 * 1024
    # Frames of an animation that are scored: those that differ most. The highest score of each label counts.
    sampled_frames: int = Field(default=8, ge=1, le=256)
    # Record what a picture's C2PA manifest says of its origin, as labels. Needs the extra `provenance`.
    provenance: bool = False
    # PEM file of certificates whose holders' signatures are trusted; unset: nobody's are.
    provenance_anchors: Path | None = None
    content: ContentSettings = Field(default_factory=ContentSettings)
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)
    rpc_server: RpcServerSettings = Field(default_factory=RpcServerSettings)
