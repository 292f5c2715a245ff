"""An actor's history: pure arithmetic over counts by the hour. No clock: the log's time is the only one.

Idempotent twice over. The same record of decisions.v1, read again after a crash, is known by its offset; the same
decision, written again by a replay of the aggregator, is known by its id.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from seawall.actor_history.settings import StandingSettings
from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2

_NANOS = 1_000_000_000
_HOUR_NANOS = 3600 * _NANOS
#: Bounds of what is kept of one actor.
MAX_CONVERSATIONS = 8
MAX_DECISIONS = 256


def key_of(tenant_id: str, actor_id: str) -> bytes:
    """The key of an actor: neither id holds a slash."""
    return f"{tenant_id}/{actor_id}".encode()


def event_of(
    decision: decision_pb2.Decision, topic: str, partition: int, offset: int, settings: StandingSettings
) -> pb.ActorEvent | None:
    """What a decision adds to its actor's history; None where it adds nothing: no actor, HOLD, or allowed without a
    score worth noting."""
    if not decision.actor_id or decision.outcome <= decision_pb2.OUTCOME_HOLD:
        return None
    rare, evasive = set(settings.rare_labels), set(settings.evasion_labels)
    peak, evasion = 0.0, False
    for joined in decision.signals:
        stage = joined.signal.stage
        for item in joined.signal.items:
            for label in item.labels:
                name = f"{stage}.{label.label}"
                if name in rare and label.score > peak:
                    peak = label.score
                elif name in evasive and label.score >= 0.5:
                    evasion = True
    if decision.outcome == decision_pb2.OUTCOME_ALLOW and peak < settings.drip_floor:
        return None
    event = pb.ActorEvent(
        tenant_id=decision.tenant_id,
        actor_id=decision.actor_id,
        conversation_id=decision.conversation_id,
        decision_id=decision.decision_id,
        outcome=decision.outcome,
        peak=peak,
        evasion=evasion,
        decided_unix_nano=decision.decided_unix_nano,
    )
    event.decision_record.topic = topic
    event.decision_record.partition = partition
    event.decision_record.offset = offset
    return event


def apply(history: pb.ActorHistory, event: pb.ActorEvent, settings: StandingSettings) -> bool:
    """Count an event, in place. False, and nothing changed, if it is counted already."""
    source = event.decision_record
    applied = history.applied.get(source.partition, -1)
    if source.offset <= applied:
        return False
    history.applied[source.partition] = source.offset
    decision = _short(event.decision_id)
    if decision in history.decisions:
        return False
    history.decisions.append(decision)
    if len(history.decisions) > MAX_DECISIONS:
        del history.decisions[0]
    history.newest_unix_nano = max(history.newest_unix_nano, event.decided_unix_nano)
    _forget(history, settings)
    hour = event.decided_unix_nano // _HOUR_NANOS
    if hour <= history.newest_unix_nano // _HOUR_NANOS - settings.window_hours:
        return True
    counts = _hour(history, hour)
    match event.outcome:
        case decision_pb2.OUTCOME_REVIEW:
            counts.near_misses += 1
        case decision_pb2.OUTCOME_BLOCK:
            counts.blocks += 1
        case decision_pb2.OUTCOME_BLOCK_AND_REPORT:
            counts.reports += 1
        case _ if event.peak >= settings.drip_floor:
            counts.drips += 1
            counts.drip_sum += event.peak
    counts.evasions += event.evasion
    counts.escalations += _escalates(history, event, settings)
    return True


def standing(history: pb.ActorHistory, tenant_id: str, actor_id: str, settings: StandingSettings) -> pb.ActorStanding:
    """What the history amounts to at the time of its newest decision."""
    counts: dict[pb.ReasonKind.ValueType, int] = {}
    pressures: dict[pb.ReasonKind.ValueType, float] = {}
    for kind, count, weight, hour in _weights(history, settings):
        # An hour's events count from its end, or from the newest decision where that is sooner.
        at = min((hour + 1) * _HOUR_NANOS, history.newest_unix_nano)
        age = (history.newest_unix_nano - at) / _NANOS
        counts[kind] = counts.get(kind, 0) + count
        pressures[kind] = pressures.get(kind, 0.0) + weight * 0.5 ** (age / settings.half_life_seconds)
    pressure = math.fsum(pressures.values())
    made = pb.ActorStanding(
        tenant_id=tenant_id,
        actor_id=actor_id,
        standing=pb.STANDING_GOOD,
        pressure=pressure,
        half_life_seconds=settings.half_life_seconds,
        as_of_unix_nano=history.newest_unix_nano,
    )
    if pressure >= settings.watch_at:
        made.standing = pb.STANDING_RESTRICTED if pressure >= settings.restrict_at else pb.STANDING_WATCHED
        seconds = settings.half_life_seconds * math.log2(pressure / settings.watch_at)
        made.expires_unix_nano = history.newest_unix_nano + int(seconds * _NANOS)
    for kind in sorted(pressures, key=lambda one: (-pressures[one], one)):
        made.reasons.add(kind=kind, count=counts[kind], pressure=pressures[kind])
    return made


class _Weight(NamedTuple):
    kind: pb.ReasonKind.ValueType
    number: int
    weight: float
    hour: int


def _weights(history: pb.ActorHistory, settings: StandingSettings) -> Iterator[_Weight]:
    for one in history.hours:
        for kind, count, weight in (
            (pb.REASON_KIND_NEAR_MISS, one.near_misses, one.near_misses * settings.near_miss),
            (pb.REASON_KIND_BLOCK, one.blocks, one.blocks * settings.block),
            (pb.REASON_KIND_REPORT, one.reports, one.reports * settings.report),
            (pb.REASON_KIND_EVASION, one.evasions, one.evasions * settings.evasion),
            (pb.REASON_KIND_ESCALATION, one.escalations, one.escalations * settings.escalation),
            (pb.REASON_KIND_DRIP, one.drips, one.drip_sum * settings.drip),
        ):
            if count:
                yield _Weight(kind, count, weight, one.hour)


def _forget(history: pb.ActorHistory, settings: StandingSettings) -> None:
    oldest = history.newest_unix_nano // _HOUR_NANOS - settings.window_hours
    gone = 0
    while gone < len(history.hours) and history.hours[gone].hour <= oldest:
        gone += 1
    del history.hours[:gone]


def _hour(history: pb.ActorHistory, hour: int) -> pb.HourCounts:
    """The counts of an hour; decisions of several partitions come out of order, if not by much."""
    place = len(history.hours)
    while place and history.hours[place - 1].hour > hour:
        place -= 1
    if place and history.hours[place - 1].hour == hour:
        return history.hours[place - 1]
    if place == len(history.hours):
        return history.hours.add(hour=hour)
    history.hours.insert(place, pb.HourCounts(hour=hour))
    return history.hours[place]


def _escalates(history: pb.ActorHistory, event: pb.ActorEvent, settings: StandingSettings) -> bool:
    """Whether this event is the last of `rises` in its conversation; the count then begins anew."""
    if not event.conversation_id:
        return False
    course = pb.ConversationCourse(conversation_id=event.conversation_id, last_peak=event.peak)
    for place, known in enumerate(history.conversations):
        if known.conversation_id == event.conversation_id:
            course.rises = known.rises + (event.peak >= known.last_peak + settings.rise)
            del history.conversations[place]
            break
    escalates = course.rises >= settings.rises
    if escalates:
        course.rises = 0
    history.conversations.append(course)
    if len(history.conversations) > MAX_CONVERSATIONS:
        del history.conversations[0]
    return escalates


def _short(decision_id: str) -> int:
    """The first 8 bytes of a decision id, 32 hex digits; of anything else, a digest of it would do as well."""
    try:
        return int(decision_id[:16], 16)
    except ValueError:
        return 0
