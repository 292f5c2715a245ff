"""The topics: their names in a lane, what each must be, and the check that every room makes before it starts.

generations.v1, signals.v1 and decisions.v1 are joined by partition, so they must have the same number of partitions,
and a decision's time is the log time of the record that completed it, so the log's own clock must stamp them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic import Field, model_validator

from seawall.core.errors import Fatal
from seawall.runtime.broker import Admin, Broker, TopicSpec
from seawall.runtime.settings import Group, KafkaSettings

_DAY_MS = 24 * 60 * 60 * 1000
_MIB = 1024 * 1024

#: Largest record of each topic, bytes. A decision holds its signals; a dead letter holds a whole sealed original.
GENERATION_MAX_BYTES: Final = _MIB
SIGNAL_MAX_BYTES: Final = _MIB
DECISION_MAX_BYTES: Final = 2 * _MIB
DEAD_LETTER_MAX_BYTES: Final = DECISION_MAX_BYTES + 64 * 1024
BANK_ENTRY_MAX_BYTES: Final = 64 * 1024
ACTOR_MAX_BYTES: Final = 64 * 1024
OVERRIDE_MAX_BYTES: Final = 64 * 1024

#: How long brokers may take to learn of a new topic, and between two looks. Seconds.
_VISIBLE_SECONDS: Final = 10.0
_VISIBLE_POLL_SECONDS: Final = 0.05

_LOG_TIME: Final = {"message.timestamp.type": "LogAppendTime"}


@dataclass(frozen=True)
class TopicNames:
    """The topics' names below a prefix, the lane's: "bulk." gives bulk.generations.v1."""

    prefix: str = ""

    @property
    def generations(self) -> str:
        return f"{self.prefix}generations.v1"

    @property
    def signals(self) -> str:
        return f"{self.prefix}signals.v1"

    @property
    def decisions(self) -> str:
        return f"{self.prefix}decisions.v1"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}dead_letters.v1"

    @property
    def bank_entries(self) -> str:
        """Banks and their entries, compacted: see protos/seawall/api/bank/v1."""
        return f"{self.prefix}bank_entries.v1"

    @property
    def actor_events(self) -> str:
        """Decisions by actor, as far as they count: actor_history's own, between its two agents."""
        return f"{self.prefix}actor_events.v1"

    @property
    def actor_standing(self) -> str:
        """What an actor's recent decisions amount to, compacted."""
        return f"{self.prefix}actor_standing.v1"

    @property
    def overrides(self) -> str:
        """A person's word over what was decided, compacted."""
        return f"{self.prefix}overrides.v1"

    @property
    def co_partitioned(self) -> tuple[str, ...]:
        """Topics whose partition n belongs together."""
        return (self.generations, self.signals, self.decisions)

    @property
    def all(self) -> tuple[str, ...]:
        own = (self.dead_letters, self.bank_entries, self.actor_events, self.actor_standing, self.overrides)
        return (*self.co_partitioned, *own)


class TopicSettings(Group):
    """How topics are created. Neither value can be changed afterwards without moving the records."""

    # Of each topic that is joined: the most members that can share the work of one room.
    partitions: int = Field(default=8, ge=1, le=10_000)
    # Copies of each record; 3 in production.
    replication_factor: int = Field(default=1, ge=1, le=100)
    # Copies that must be there for a record to be acknowledged, set on each topic. Unset: 2 of three or more, so that
    # one broker may be away and what was acknowledged survives another; of fewer copies the brokers' own value.
    min_insync_replicas: int | None = Field(default=None, ge=1, le=100)

    @model_validator(mode="after")
    def _within(self) -> TopicSettings:
        if (self.min_insync_replicas or 1) > self.replication_factor:
            raise ValueError("min_insync_replicas is above replication_factor: nothing could be written; lower it")
        return self

    @property
    def in_sync(self) -> int | None:
        """What min.insync.replicas is set to; None: not set."""
        return self.min_insync_replicas or (2 if self.replication_factor >= 3 else None)


class Problem(NamedTuple):
    """What is wrong with a topic, and what mends it."""

    reason: str
    topic: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.topic} {self.what}: {self.mend}"


def plan(names: TopicNames, settings: TopicSettings | None = None) -> list[TopicSpec]:
    """Every topic of the lane as it must be."""
    settings = settings or TopicSettings()
    partitions = settings.partitions
    specs = [
        TopicSpec(names.generations, partitions, _config(GENERATION_MAX_BYTES, days=7, **_LOG_TIME)),
        TopicSpec(names.signals, partitions, _config(SIGNAL_MAX_BYTES, days=7, **_LOG_TIME)),
        TopicSpec(names.decisions, partitions, _config(DECISION_MAX_BYTES, days=28, **_LOG_TIME)),
        # Seldom written and never joined.
        TopicSpec(names.dead_letters, max(1, partitions // 4), _config(DEAD_LETTER_MAX_BYTES, days=28)),
        TopicSpec(names.bank_entries, max(1, partitions // 4), _compacted(BANK_ENTRY_MAX_BYTES)),
        TopicSpec(names.actor_events, partitions, _config(ACTOR_MAX_BYTES, days=7)),
        TopicSpec(names.actor_standing, max(1, partitions // 4), _compacted(ACTOR_MAX_BYTES)),
        TopicSpec(names.overrides, max(1, partitions // 4), _compacted(OVERRIDE_MAX_BYTES)),
    ]
    if settings.in_sync is None:
        return specs
    return [spec._replace(config={**spec.config, "min.insync.replicas": str(settings.in_sync)}) for spec in specs]


def _config(max_bytes: int, days: int, **more: str) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(days * _DAY_MS),
        "max.message.bytes": str(max_bytes),
        **more,
    }


def _compacted(max_bytes: int) -> dict[str, str]:
    return {"cleanup.policy": "compact", "max.message.bytes": str(max_bytes)}


async def apply(broker: Broker, kafka: KafkaSettings, settings: TopicSettings | None = None) -> list[str]:
    """Create the topics of the lane ``kafka.topic_prefix`` that are absent. Returns their names.

    Nothing is created beside topics it would not fit: raises Fatal, as ``check_at_start`` does.
    """
    names = TopicNames(kafka.topic_prefix)
    settings = settings or TopicSettings()
    specs = plan(names, settings)
    admin = broker.admin()
    await admin.start()
    try:
        there = await admin.partitions(names.all)
        absent = [spec for spec in specs if spec.name not in there]
        wanted = {spec.name: spec.partitions for spec in absent}
        _refuse(_mismatch(names, {**wanted, **there}, settings))
        await admin.create(absent, settings.replication_factor)
        _refuse(await _lasting_problems(admin, names))
    finally:
        await admin.stop()
    return [spec.name for spec in absent]


async def check(broker: Broker, names: TopicNames) -> list[Problem]:
    """What is wrong with the lane's topics; empty if nothing."""
    admin = broker.admin()
    await admin.start()
    try:
        return await _problems(admin, names)
    finally:
        await admin.stop()


async def check_at_start(broker: Broker, names: TopicNames) -> None:
    """Refuse to go on with topics that would lose or part what belongs together.

    Raises Fatal("TOPIC_MISSING" | "PARTITIONS_DIFFER" | "TOPIC_CONFIG_DIFFERS") with the mend.
    """
    _refuse(await check(broker, names))


async def _lasting_problems(admin: Admin, names: TopicNames) -> list[Problem]:
    """As `_problems`, but a topic is missing only if it stays so: each question may go to another broker, which may not
    have heard of a new topic yet."""
    give_up = time.monotonic() + _VISIBLE_SECONDS
    while True:
        problems = await _problems(admin, names)
        if time.monotonic() >= give_up or all(problem.reason != "TOPIC_MISSING" for problem in problems):
            return problems
        await asyncio.sleep(_VISIBLE_POLL_SECONDS)


async def _problems(admin: Admin, names: TopicNames) -> list[Problem]:
    there = await admin.partitions(names.all)
    missing = [
        Problem("TOPIC_MISSING", name, "is missing", "run `seawall topics apply`")
        for name in names.all
        if name not in there
    ]
    configs = await admin.configs(sorted(there)) if there else {}
    return missing + _mismatch(names, there) + _config_differences(names, configs)


def _mismatch(names: TopicNames, counts: Mapping[str, int], settings: TopicSettings | None = None) -> list[Problem]:
    found = {name: counts[name] for name in names.co_partitioned if name in counts}
    if len(set(found.values())) <= 1:
        return []
    listed = ", ".join(f"{name} {count}" for name, count in found.items())
    planned = f", or set topics.partitions (now {settings.partitions}) to what is there" if settings else ""
    most = max(found.values())
    return [
        Problem(
            "PARTITIONS_DIFFER",
            min(found, key=lambda name: found[name]),
            f"has not the partitions of those it is joined with ({listed})",
            f"stop the lane, let it drain, delete the topics that differ and create them with {most} partitions "
            f"(`seawall topics apply`), or give the lane a new kafka.topic_prefix{planned}",
        )
    ]


def _config_differences(names: TopicNames, configs: Mapping[str, Mapping[str, str]]) -> list[Problem]:
    """Only what correctness hangs on: retention and size are the operator's to raise."""
    problems = []
    for spec in plan(names):
        config = configs.get(spec.name)
        if config is None:
            continue
        for key in ("message.timestamp.type", "cleanup.policy"):
            if key in spec.config and config.get(key) != spec.config[key]:
                what = f"has {key} {config.get(key)}, not {spec.config[key]}"
                problems.append(
                    Problem("TOPIC_CONFIG_DIFFERS", spec.name, what, _set(spec.name, key, spec.config[key]))
                )
        wanted, size = int(spec.config["max.message.bytes"]), int(config.get("max.message.bytes", 0))
        if size < wanted:
            what = f"takes records of {size} bytes, not {wanted}"
            mend = _set(spec.name, "max.message.bytes", str(wanted))
            problems.append(Problem("TOPIC_CONFIG_DIFFERS", spec.name, what, mend))
    return problems


def _set(topic: str, key: str, value: str) -> str:
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {key}={value}"


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        raise Fatal(problems[0].reason, "; ".join(str(problem) for problem in problems))
