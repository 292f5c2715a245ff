"""Settings of actor_history."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from seawall.runtime.settings import Group, KafkaSettings, RoomSettings, SealingSettings, Seconds, seawall_home


class StandingSettings(Group):
    """What counts, how much, and for how long. Protected like thresholds: they never leave this room."""

    # "<stage>.<label>" of the rare classes whose scores add up.
    rare_labels: list[str] = Field(
        default=[
            "prompt_scoring.minor_sexual",
            "prompt_scoring.minor_sexual_semantic",
            "prompt_scoring.minor_sexual_paraphrase",
        ],
        max_length=50,
    )
    # Labels that say: what was found stood only in a reading that undoes obfuscation.
    evasion_labels: list[str] = Field(default=["prompt_scoring.evasion"], max_length=50)
    # A score below it is noise and adds nothing.
    drip_floor: float = Field(default=0.25, ge=0, le=1)
    # How far back counts go, hours.
    window_hours: int = Field(default=168, ge=1, le=24 * 31)
    # What counts weighs half as much after so long.
    half_life_seconds: Seconds = 48 * 3600.0
    # Weights of one of each; a drip weighs its score times this.
    near_miss: float = Field(default=1.0, ge=0)
    block: float = Field(default=3.0, ge=0)
    report: float = Field(default=10.0, ge=0)
    evasion: float = Field(default=2.0, ge=0)
    escalation: float = Field(default=2.0, ge=0)
    drip: float = Field(default=1.0, ge=0)
    # A conversation escalates with so many rises of at least `rise` above the score before.
    rises: int = Field(default=3, ge=1, le=100)
    rise: float = Field(default=0.08, gt=0, le=1)
    # Pressure from which an actor is watched, and restricted.
    watch_at: float = Field(default=3.0, gt=0)
    restrict_at: float = Field(default=8.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> StandingSettings:
        if self.restrict_at <= self.watch_at:
            raise ValueError("restrict_at must be above watch_at: raise it")
        return self


class ActorHistorySettings(RoomSettings):
    """actor_history: decisions in, standings out."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    sealing: SealingSettings = Field(default_factory=SealingSettings)
    standing: StandingSettings = Field(default_factory=StandingSettings)
    # The tables' copies on this disk; what is lost here comes back from the changelog.
    state: Path = Field(default_factory=lambda: seawall_home() / "actor_history")
    # Records taken at once; all their outputs are acknowledged before the next are taken.
    batch_size: int = Field(default=500, ge=1, le=10_000)
    # How long a batch that is not full waits.
    batch_seconds: Seconds = 0.2
    # A member that gave no sign of life for so long has lost its partitions (Faust's own default is a minute).
    session_timeout_seconds: float = Field(default=8.0, ge=6, le=60)
