"""Settings of the classification service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from seawall.runtime.decoding import DecodingSettings
from seawall.runtime.settings import (
    ByteCount,
    ContentSettings,
    RoomSettings,
    RpcServerSettings,
    seawall_home,
)


def _demo_classifiers() -> list[Path]:
    return [seawall_home() / "models" / "opennsfw"]


class ClassificationSettings(RoomSettings):
    """One service process: its models, what it may read, and its server."""

    # Model packs (folders), each run on every picture; their labels must not overlap. As JSON in the environment.
    classifiers: list[Path] = Field(default_factory=_demo_classifiers, min_length=1, max_length=16)
    # Upper bound of one pack's files together; a larger one is refused before it is read.
    max_model_bytes: ByteCount = 1024 * 1024 * 1024
    # Frames of an animation that are scored: those that differ most. The highest score of each label counts.
    sampled_frames: int = Field(default=8, ge=1, le=256)
    content: ContentSettings = Field(default_factory=ContentSettings)
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)
    rpc_server: RpcServerSettings = Field(default_factory=RpcServerSettings)
