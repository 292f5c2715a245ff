"""Settings of the perceptual_hashing service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from seawall.perceptual_hashing.flood import FloodSettings
from seawall.runtime.decoding import DecodingSettings
from seawall.runtime.settings import (
    ContentSettings,
    Group,
    KafkaSettings,
    RoomSettings,
    RpcServerSettings,
    Seconds,
    seawall_home,
)


class BankSettings(Group):
    """Which banks media are matched against."""

    # A folder with one folder a bank.
    folder: Path = Field(default_factory=lambda: seawall_home() / "banks")
    # Banks that change (imported, pulled, added by decisions): one SQLite file in this folder.
    store: Path = Field(default_factory=lambda: seawall_home() / "bank_store")
    # Banks that must be there and not be empty, by name; without one of them the service is never ready.
    required: list[str] = Field(default_factory=list)
    # Follow the topic bank_entries.v1, and write there what changes here: every replica then lists the same.
    follow: bool = False
    # How long a start may wait for the end of that topic.
    catch_up_seconds: Seconds = 300.0
    # How often the store is looked at for what another process changed.
    poll_seconds: Seconds = 0.5
    # Serve although no bank lists anything: hashes are computed and nothing ever matches.
    allow_none: bool = False
    # When an entry that matches too much is held for review.
    flood: FloodSettings = Field(default_factory=FloodSettings)


class PerceptualHashingSettings(RoomSettings):
    """One service process: its banks, what it may read, and its server."""

    banks: BankSettings = Field(default_factory=BankSettings)
    # Used where banks.follow is set.
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    # Match all eight turns and mirrorings of a picture, not only the picture as it is.
    variants: bool = True
    # Perceptual hashes that plug-ins bring, by name; see signal_types. Each is computed of every picture.
    signal_types: list[str] = Field(default_factory=list, max_length=8)
    # Match what lies inside a picture's uniform borders as well.
    strip_borders: bool = True
    content: ContentSettings = Field(default_factory=ContentSettings)
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)
    rpc_server: RpcServerSettings = Field(default_factory=RpcServerSettings)
