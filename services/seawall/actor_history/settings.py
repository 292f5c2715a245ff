"""Settings of actor_history."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pydantic import Field

from seawall.runtime.settings import KafkaSettings, RoomSettings, SealingSettings, Seconds, seawall_home


class ActorHistorySettings(RoomSettings):
    """actor_history: decisions in, standings out. What counts, and what it comes to, is the policy's to say."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    sealing: SealingSettings = Field(default_factory=SealingSettings)
    # What the aggregator is given: a bundle, or a folder with rollout.yaml, whose enforced bundle counts here.
    policy: Path = Path(str(resources.files("seawall"))) / "aggregator" / "policies" / "default"
    # How often the files are looked at for changes.
    policy_reload_seconds: Seconds = 2.0
    # Where each bundle that was in force is kept by the digest that standings carry; the aggregator's own folder.
    policy_archive: Path = Field(default_factory=lambda: seawall_home() / "policies")
    # The tables' copies on this disk; what is lost here comes back from the changelog.
    state: Path = Field(default_factory=lambda: seawall_home() / "actor_history")
    # Copies of the changelog, when it is made: as many as of the topics.
    changelog_replication_factor: int = Field(default=1, ge=1, le=100)
    # How often it is noted how far the changelog is in the tables: what came after is read again at a start.
    position_seconds: Seconds = 5.0
    # Records taken at once; all their outputs are acknowledged before the next are taken.
    batch_size: int = Field(default=500, ge=1, le=10_000)
    # How long a batch that is not full waits.
    batch_seconds: Seconds = 0.2
    # A member that gave no sign of life for so long has lost its partitions (Faust's own default is a minute).
    session_timeout_seconds: float = Field(default=8.0, ge=6, le=60)
