"""Settings of the retroactive matching room."""

from __future__ import annotations

from pydantic import Field

from seawall.runtime.settings import Group, KafkaSettings, RoomSettings, Seconds


class WindowSettings(Group):
    """Which pictures and entries are compared, and how much of them is held."""

    # A new entry is compared with what was measured so long before it. No longer than signals.v1 keeps its records.
    seconds: Seconds = 7 * 24 * 60 * 60
    # And with what was measured so long after: a replica of the hashing service may not have known it yet.
    overlap_seconds: Seconds = 60 * 60
    # Hashes held in one process, about 60 bytes each; a picture has four. Beyond it the oldest go, and it is said.
    max_hashes: int = Field(default=3_000_000, ge=1_000)
    # New hashes of entries held in one process, about 70 bytes each. Beyond it the oldest go, and it is said.
    max_entries: int = Field(default=1_000_000, ge=1_000)
    # An entry that meets more pictures than so is not acted on: a person looks at it first.
    max_hits_per_entry: int = Field(default=1_000, ge=1)


class RetroactiveSettings(RoomSettings):
    """One process of the room."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    window: WindowSettings = Field(default_factory=WindowSettings)
    # Records of one poll.
    max_poll: int = Field(default=5_000, ge=1)
    # Hits worked off between two polls; each may read two records.
    max_resolve: int = Field(default=200, ge=1)
    # How long a poll waits for a record.
    poll_seconds: Seconds = 0.2
