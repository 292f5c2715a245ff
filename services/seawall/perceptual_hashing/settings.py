"""Settings of the perceptual_hashing service."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from seawall.runtime.decoding import DecodingSettings
from seawall.runtime.settings import ContentSettings, Group, RoomSettings, RpcServerSettings, seawall_home


class BankSettings(Group):
    """Which banks media are matched against."""

    # A folder with one folder a bank.
    folder: Path = Field(default_factory=lambda: seawall_home() / "banks")
    # Banks that change (imported, pulled, added by decisions): one SQLite file in this folder.
    store: Path = Field(default_factory=lambda: seawall_home() / "bank_store")
    # Banks that must be there and not be empty, by name; without one of them the service is never ready.
    required: list[str] = Field(default_factory=list)
    # Serve although no bank lists anything: hashes are computed and nothing ever matches.
    allow_none: bool = False


class PerceptualHashingSettings(RoomSettings):
    """One service process: its banks, what it may read, and its server."""

    banks: BankSettings = Field(default_factory=BankSettings)
    # Match all eight turns and mirrorings of a picture, not only the picture as it is.
    variants: bool = True
    # Match what lies inside a picture's uniform borders as well.
    strip_borders: bool = True
    content: ContentSettings = Field(default_factory=ContentSettings)
    decoding: DecodingSettings = Field(default_factory=DecodingSettings)
    rpc_server: RpcServerSettings = Field(default_factory=RpcServerSettings)
