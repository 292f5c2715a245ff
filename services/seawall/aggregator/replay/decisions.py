"""Decisions of the past: made again to be compared bit for bit, and what shadows said beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from seawall.aggregator.replay.tally import Said, Tally
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import decide
from seawall.core.errors import Fatal, Poison
from seawall.core.join import Completed, OpenGeneration, Position, ReadSignal, role
from seawall.core.policy import Lineup, Policy
from seawall.core.validate import parse_generation, parse_join_record
from seawall.runtime.broker import Broker, Record, TopicPartition

_POLL_RECORDS = 5_000
_POLL_SECONDS = 1.0
_QUIET_POLLS = 5
_FETCH_SECONDS = 20.0
_MILLIS = 1_000_000


class Remade(NamedTuple):
    """A past decision, made again."""

    decision: decision_pb2.Decision
    #: The bytes on record, and those made now.
    recorded: bytes
    made: bytes

    @property
    def same(self) -> bool:
        """Bit for bit."""
        return self.recorded == self.made


async def remake(broker: Broker, recorded: bytes, find: Callable[[str], Policy]) -> Remade:
    """Make a decision again from the records that its coordinates name and the bundles that its digests name.

    Args:
        recorded: the decision's value as decisions.v1 holds it.
        find: the bundle with a digest; raises Fatal if there is none.

    Raises:
        Fatal: RECORD_GONE if a record is no longer there, BUNDLE_UNKNOWN if a bundle is not.
    """
    decision = decision_pb2.Decision.FromString(recorded)
    shadows = [find(one.bundle_digest) for one in decision.shadows]
    lineup = Lineup.of(find(decision.bundle_digest or decision.policy_digest), shadows)
    if lineup.digest != decision.policy_digest:
        # An amendment names only the shadows that spoke: those that kept silent are in the digest and nowhere else.
        lineup = lineup._replace(digest=decision.policy_digest)
    wanted = {_at(decision.generation_record), _at(decision.completed_by), *(_at(s.record) for s in decision.signals)}
    amendment = decision.kind == decision_pb2.DECISION_KIND_AMENDMENT
    if amendment:
        wanted = {_at(decision.completed_by)}
    records = await _fetch(broker, wanted)
    made: decide.Written | None
    if amendment:
        record = records[_at(decision.completed_by)]
        made = decide.amendment(_read_signal(record), lineup)
    else:
        made = _joint(decision, records, lineup)
    if made is None:
        return Remade(decision, recorded, b"")
    return Remade(decision, recorded, decide.shortened(made.value) if decision.truncated else made.value)


def _joint(
    decision: decision_pb2.Decision, records: Mapping[tuple[str, int, int], Record], lineup: Lineup
) -> decide.Written:
    record = records[_at(decision.generation_record)]
    position = _position(record)
    completed_by = _position(records[_at(decision.completed_by)])
    try:
        generation = parse_generation(record.value)
    except Poison as error:
        return decide.malformed(decision.generation_id, position, decision.traceparent, error, lineup)
    joined = OpenGeneration(generation, position, decision.traceparent, lineup.policy.required(generation))
    for one in decision.signals:
        read = _read_signal(records[_at(one.record)])
        joined.signals[role(read.signal)] = read
    return decide.joint(Completed(joined, completed_by), lineup)


def _read_signal(record: Record) -> ReadSignal:
    where = f"{record.topic}/{record.partition}/{record.offset}"
    try:
        signal = parse_join_record(record.value, record.partition)
    except Poison as error:
        raise Fatal(error.reason, f"{where}: {error.detail}") from error
    if not isinstance(signal, signal_pb2.Signal):
        raise Fatal("UNDECODABLE", f"{where} holds no signal: the topic was made anew since")
    return ReadSignal(signal, _position(record), record.value)


def _position(record: Record) -> Position:
    return Position(record.topic, record.partition, record.offset, record.timestamp * _MILLIS)


def _at(record: generation_pb2.RecordCoordinates) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset


async def _fetch(broker: Broker, wanted: set[tuple[str, int, int]]) -> dict[tuple[str, int, int], Record]:
    """The records at these coordinates."""
    found: dict[tuple[str, int, int], Record] = {}
    reader = broker.reader(sorted({topic for topic, _, _ in wanted}))
    await reader.start()
    try:
        everything = reader.assignment()
        by_partition: dict[TopicPartition, list[int]] = {}
        for topic, partition, offset in wanted:
            by_partition.setdefault(TopicPartition(topic, partition), []).append(offset)
        ends = await reader.end_offsets([at for at in by_partition if at in everything])
        for at, offsets in by_partition.items():
            for offset in sorted(offsets):
                if offset >= ends.get(at, 0):
                    raise _gone(at, offset)
                reader.pause([other for other in everything if other != at])
                reader.resume([at])
                reader.seek(at, offset)
                found[(*at, offset)] = await _record_at(reader, at, offset)
    finally:
        await reader.stop()
    return found


async def _record_at(reader: object, at: TopicPartition, offset: int) -> Record:
    poll = reader.poll  # type: ignore[attr-defined]
    try:
        async with asyncio.timeout(_FETCH_SECONDS):
            while True:
                for records in (await poll(max_records=1, timeout=_POLL_SECONDS)).values():
                    for record in records:
                        if (record.topic, record.partition) != tuple(at):
                            continue
                        if record.offset == offset:
                            return record  # type: ignore[no-any-return]
                        if record.offset > offset:
                            raise _gone(at, offset)
    except TimeoutError as error:
        raise _gone(at, offset) from error


def _gone(at: TopicPartition, offset: int) -> Fatal:
    return Fatal(
        "RECORD_GONE",
        f"{at.topic}/{at.partition}/{offset} is no longer there: retention has deleted it, so the decision can be read "
        "and not made again; keep the topics longer (retention.ms)",
    )


# ---- shadows ---------------------------------------------------------------------------------------------------------


@dataclass
class Shadows:
    """What shadows said: by bundle digest, and by rule."""

    bundles: dict[str, Tally] = field(default_factory=dict)
    rules: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, decision: decision_pb2.Decision, samples: int) -> None:
        """Count one joint decision."""
        decided = Said(decision.outcome, decision.rule_id)
        for shadow in decision.shadows:
            tally = self.bundles.get(shadow.bundle_digest)
            if tally is None:
                names = [
                    f"{decision.policy_name} {decision.policy_version}",
                    f"{shadow.policy_name} {shadow.policy_version}",
                ]
                tally = self.bundles[shadow.bundle_digest] = Tally(names, samples)
            tally.add(decision.generation_id, [decided, Said(shadow.outcome, shadow.rule_id)])
        for hit in decision.shadow_hits:
            counts = self._rule(hit.rule_id)
            counts["held"] += 1
            counts["would_change"] += hit.outcome > decision.outcome
        for rule_id in decision.shadow_errors:
            self._rule(rule_id)["erred"] += 1

    def _rule(self, rule_id: str) -> dict[str, int]:
        return self.rules.setdefault(rule_id, {"held": 0, "would_change": 0, "erred": 0})


async def shadow_tallies(broker: Broker, topic: str, since: int, samples: int) -> Shadows:
    """Read decisions.v1 from a log time (Unix milliseconds) to its present end."""
    shadows = Shadows()
    reader = broker.reader([topic])
    await reader.start()
    try:
        partitions = reader.assignment()
        ends = await reader.end_offsets(partitions)
        begins = await reader.offsets_at(partitions, since)
        left = {at for at, begin in begins.items() if begin < ends[at]}
        for at in left:
            reader.seek(at, begins[at])
        reader.pause([at for at in partitions if at not in left])
        quiet = 0
        seen: set[str] = set()
        while left and quiet < _QUIET_POLLS:
            polled = await reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS)
            quiet = 0 if polled else quiet + 1
            for key, records in polled.items():
                at = TopicPartition(*key)
                for record in records:
                    decision = decision_pb2.Decision.FromString(record.value or b"")
                    # A replay after a crash repeats decisions: each counts once.
                    fresh = decision.kind == decision_pb2.DECISION_KIND_JOINT and decision.decision_id not in seen
                    if fresh and (decision.shadows or decision.shadow_hits or decision.shadow_errors):
                        seen.add(decision.decision_id)
                        shadows.add(decision, samples)
                if records and records[-1].offset + 1 >= ends[at]:
                    left.discard(at)
                    reader.pause([at])
    finally:
        await reader.stop()
    return shadows
