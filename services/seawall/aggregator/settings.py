"""Settings of the aggregator."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from seawall.runtime.settings import Group, KafkaSettings, RoomSettings, SealingSettings, Seconds, seawall_home


class JoinSettings(Group):
    """How much the join holds, and when it looks at the clock."""

    # Generations that wait for signals, per partition. Above it generations are not read on.
    max_open: int = Field(default=20_000, ge=1)
    # Signals that wait for their generation, per partition. Above it signals are not read on.
    max_early: int = Field(default=60_000, ge=1)
    # Decided attempts that are remembered, per partition, to absorb repeats; and for how long, by the log times of the
    # generation and of what repeats it. Longer than any budget: a generation is open for that long.
    remember: int = Field(default=20_000, ge=1)
    remember_seconds: Seconds = 3_600.0
    # How many of the newest decisions are read back when a partition is taken over, to absorb repeats from before.
    recall: int = Field(default=2_000, ge=0)
    # Records of one poll.
    max_poll: int = Field(default=2_000, ge=1)
    # Batches of decisions handed to the producer and not yet acknowledged.
    max_sends: int = Field(default=8, ge=1)
    # How often overdue generations are looked for.
    deadline_check_seconds: Seconds = 0.25
    # A HOLD is scanned again after this pause; it doubles with each attempt, up to the second value.
    rescan_seconds: Seconds = 2.0
    max_rescan_seconds: Seconds = 30.0
    commit_seconds: Seconds = 0.5
    # How long a revocation waits for acknowledgements before it commits what is settled.
    revoke_seconds: Seconds = 3.0
    # The fuse: above this share of the last `fuse_window` records as dead letters, the aggregator stops.
    fuse_window: int = Field(default=200, ge=1)
    fuse_minimum: int = Field(default=25, ge=1)
    fuse_share: float = Field(default=0.5, gt=0, le=1)


class TraceSettings(Group):
    """Which decisions are traced: those other than ALLOW, and those with errors, always."""

    # Share of the ALLOW decisions, 0 to 1.
    allow_share: float = Field(default=0.01, ge=0, le=1)
    # A decision that took longer is traced too, up to so many a second: in a backlog every decision is slow.
    slow_seconds: Seconds = 2.0
    slow_per_second: float = Field(default=2.0, ge=0)


class AggregatorSettings(RoomSettings):
    """The aggregator: Kafka on both sides, a policy in between."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    sealing: SealingSettings = Field(default_factory=SealingSettings)
    join: JoinSettings = Field(default_factory=JoinSettings)
    traces: TraceSettings = Field(default_factory=TraceSettings)
    # A bundle's folder, a rollout's (one with rollout.yaml), or a lone policy file; the default comes with the package.
    policy: Path = Path(__file__).parent / "policies" / "default"
    # How often it is looked at for changes; 0: read once, at the start.
    policy_reload_seconds: float = Field(default=2.0, ge=0, le=3_600)
    # Where every bundle that decided is kept by its digest: `seawall why ID --replay` makes its decisions again.
    policy_archive: Path = Field(default_factory=lambda: seawall_home() / "policies")
