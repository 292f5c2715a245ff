"""Decisions as the on-call engineer asks for them: of some generations, as they pass by, those that are held."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Retryable
from seawall.local import verdict
from seawall.runtime.broker import Broker, Record
from seawall.runtime.scan import scan

Decision = decision_pb2.Decision

_POLL_RECORDS = 1_000
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Filter:
    """Which decisions; what is empty does not matter."""

    #: Names without their prefix: "BLOCK".
    outcomes: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    #: Stages of which an item is in error or that are missing; "any": whichever.
    stage_errors: frozenset[str] = frozenset()

    def takes(self, decision: Decision) -> bool:
        if self.outcomes and verdict.outcome_name(decision.outcome) not in self.outcomes:
            return False
        if self.rules and decision.rule_id not in self.rules:
            return False
        if self.tenants and decision.tenant_id not in self.tenants:
            return False
        if self.stage_errors:
            failed = {stage for stage, _ in faults(decision)}
            return bool(failed) if "any" in self.stage_errors else bool(failed & self.stage_errors)
        return True


def faults(decision: Decision) -> list[tuple[str, str]]:
    """(stage, reason) of what could not be measured: items in error, and stages that said nothing ("MISSING")."""
    found = {(stage, "MISSING") for stage in decision.missing_stages}
    for joined in decision.signals:
        for item in joined.signal.items:
            if item.status == signal_pb2.ITEM_STATUS_ERROR:
                found.add((joined.signal.stage, item.reason or "ERROR"))
    return sorted(found)


class Seen(NamedTuple):
    """A decision that passed by."""

    decision: Decision
    record: Record


async def tail(broker: Broker, topic: str, wanted: Filter, *, since_unix_ms: int | None = None) -> AsyncGenerator[Seen]:
    """Decisions from now on, or from an instant on, for ever: the caller stops. A broker that is away is waited for."""
    reader = broker.reader([topic], from_end=since_unix_ms is None)
    await reader.start()
    try:
        if since_unix_ms is not None:
            partitions = reader.assignment()
            begin = await reader.offsets_at(partitions, since_unix_ms)
            ends = await reader.end_offsets(partitions)
            for partition in partitions:
                reader.seek(partition, begin.get(partition, ends[partition]))
        while True:
            try:
                polled = await reader.poll(max_records=_POLL_RECORDS, timeout=_POLL_SECONDS)
            except Retryable:
                continue  # it waited before it raised, and goes on where it was
            for records in polled.values():
                for record in records:
                    decision = decode(record)
                    if decision is not None and wanted.takes(decision):
                        yield Seen(decision, record)
    finally:
        await reader.stop()


@dataclass
class Held:
    """A generation without an outcome yet."""

    generation_id: str
    tenant_id: str
    #: Its newest HOLD.
    decision: Decision
    #: Unix seconds of its first HOLD in the time looked at.
    since: float
    attempts: int

    @property
    def rescanned(self) -> bool:
        """Whether another attempt follows by itself; else a person has to act."""
        return self.decision.rescanned

    @property
    def why(self) -> str:
        """Rule and reason, and which stages could not measure."""
        named = ", ".join(f"{stage} {reason}" for stage, reason in faults(self.decision))
        return f"{self.decision.rule_id} ({self.decision.reason_code})" + (f": {named}" if named else "")


async def held(broker: Broker, topic: str, *, since_unix_ms: int | None = None) -> list[Held]:
    """What is held now, the longest first, of what was decided since an instant.

    Raises Retryable as the broker seam says.
    """
    waiting: dict[str, Held] = {}
    async for record in scan(broker, [topic], since_unix_ms=since_unix_ms):
        decision = decode(record)
        if decision is None or decision.kind != decision_pb2.DECISION_KIND_JOINT:
            continue
        if decision.outcome != decision_pb2.OUTCOME_HOLD:
            waiting.pop(decision.generation_id, None)
            continue
        before = waiting.get(decision.generation_id)
        waiting[decision.generation_id] = Held(
            decision.generation_id,
            decision.tenant_id or (before.tenant_id if before else ""),
            decision,
            before.since if before else decision.decided_unix_nano / 1e9,
            max(decision.attempt, before.attempts if before else 0),
        )
    return sorted(waiting.values(), key=lambda one: (one.since, one.generation_id))


async def of_generations(broker: Broker, topic: str, generation_ids: Collection[str]) -> dict[str, list[Decision]]:
    """Every distinct decision of these generations that the topic holds.

    Raises Retryable as the broker seam says.
    """
    found: dict[str, list[Decision]] = {one: [] for one in generation_ids}
    if not found:
        return found
    keys = {one.encode(): one for one in found}
    async for record in scan(broker, [topic]):
        name = keys.get(record.key or b"")
        if name is not None and (decision := decode(record)) is not None:
            found[name].append(decision)
    return {one: verdict.distinct(decisions) for one, decisions in found.items()}


def decode(record: Record) -> Decision | None:
    """The decision in a record; None if it is none."""
    try:
        return Decision.FromString(record.value or b"")
    except DecodeError:
        return None  # another version's, or not ours: `seawall why` of its generation says so
