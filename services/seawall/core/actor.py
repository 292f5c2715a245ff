"""An actor's history: pure arithmetic over counts by the hour. No clock: the log's time is the only one.

Idempotent twice over. The same record of decisions.v1, read again after a crash, is known by its offset; the same
decision, written again by a replay of the aggregator, is known by its id. What counts, how much, and what it all
comes to is the policy's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.core.actor_counts import HOUR_NANOS, count_decision, move_on, short
from seawall.core.actor_overrides import word_on
from seawall.core.policy.actor import ActorPolicy
from seawall.core.policy.actor_entry import ActorsEntry

_DAY_HOURS: Final = 24
#: Bounds of what is kept of one actor.
MAX_CONVERSATIONS = 8
MAX_DECISIONS = 256
#: From here on the label says that something was disguised.
_EVASION_SCORE: Final = 0.5
#: Of HourCounts, ActorCounts and ActorDecayed alike.
_FIELDS: Final = ("near_misses", "blocks", "reports", "evasions", "escalations", "drips", "drip_sum")


def key_of(tenant_id: str, actor_id: str) -> bytes:
    """The key of an actor: neither id holds a slash."""
    return f"{tenant_id}/{actor_id}".encode()


def event_of(
    decision: decision_pb2.Decision, topic: str, partition: int, offset: int, policy: ActorPolicy
) -> pb.ActorEvent | None:
    """What a decision adds to its actor's history; None where it adds nothing: no actor, HOLD, or allowed without a
    score worth noting."""
    if not decision.actor_id or decision.outcome <= decision_pb2.OUTCOME_HOLD:
        return None
    peak, evasion = 0.0, False
    for joined in decision.signals:
        signal = joined.signal
        if (looked_at := policy.looked_at.get(signal.stage)) is None:
            continue
        for item in signal.items:
            for label in item.labels:
                if (rare := looked_at.get(label.label)) is None:
                    continue
                if rare:
                    peak = max(peak, label.score)
                elif label.score >= _EVASION_SCORE:
                    evasion = True
    if decision.outcome == decision_pb2.OUTCOME_ALLOW and peak < policy.entry.drip_floor:
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


def apply(history: pb.ActorHistory, event: pb.ActorEvent, policy: ActorPolicy) -> bool:
    """Count an event, in place. False, and nothing changed, if it is counted already."""
    source = event.decision_record
    applied = history.applied.get(source.partition, -1)
    if source.offset <= applied:
        return False
    history.applied[source.partition] = source.offset
    decision = short(event.decision_id)
    if decision in history.decisions:
        return False
    entry = policy.entry
    oldest = move_on(history, event.decided_unix_nano, entry.window_hours)
    hour = event.decided_unix_nano // HOUR_NANOS
    drips = event.outcome < decision_pb2.OUTCOME_REVIEW and event.peak >= entry.drip_floor
    adds = history.counted.add(
        hour=hour,
        outcome=event.outcome,
        drip=event.peak if drips else 0.0,
        evasion=event.evasion,
        escalation=hour > oldest and _escalates(history, event, entry),
    )
    count_decision(history, adds, word_on(history, decision), oldest)
    history.decisions.append(decision)
    if len(history.decisions) > MAX_DECISIONS:
        del history.decisions[0]
    if len(history.counted) > len(history.decisions):
        del history.counted[0]
    return True


def features(
    history: pb.ActorHistory, tenant_id: str, policy: ActorPolicy, as_of: int | None = None
) -> pb.ActorFeatures:
    """What the policy's rules see: the counts at the time of the newest decision, or of an earlier one, ``as_of``, Unix
    nanoseconds. What the window has left behind since is lost."""
    newest = history.newest_unix_nano if as_of is None else as_of
    last_hour = newest // HOUR_NANOS
    half_life = policy.entry.half_life_hours * HOUR_NANOS
    # Sums by field, in plain Python: a history may have hundreds of hours.
    nothing: list[Any] = [0] * len(_FIELDS)
    hour, day, window, decayed = (list(nothing) for _ in range(4))
    for one in history.hours:
        if one.hour > last_hour:
            break
        # An hour's events count from its end, or from the newest decision where that is sooner.
        age = newest - min((one.hour + 1) * HOUR_NANOS, newest)
        weight = 0.5 ** (age / half_life)
        stretches = [window]
        if one.hour > last_hour - _DAY_HOURS:
            stretches.append(day)
        if one.hour >= last_hour - 1:
            stretches.append(hour)
        for place, count in enumerate(_counted(one)):
            if count:
                decayed[place] += count * weight
                for sums in stretches:
                    sums[place] += count
    made = pb.ActorFeatures(
        tenant_id=tenant_id,
        hour=pb.ActorCounts(**_named(hour)),
        day=pb.ActorCounts(**_named(day)),
        window=pb.ActorCounts(**_named(window)),
        decayed=pb.ActorDecayed(**_named(decayed)),
    )
    made.pressure = sum(pressure for _, _, pressure in _kinds(made, policy))
    return made


def standing(history: pb.ActorHistory, tenant_id: str, actor_id: str, policy: ActorPolicy) -> pb.ActorStanding:
    """What the history comes to at the time of its newest decision; what was given is renewed in it, in place.

    A standing that has not ended is never lowered by something new, nor shortened at the same height.
    """
    seen = features(history, tenant_id, policy)
    verdict = policy.judge(seen)
    now, given = history.newest_unix_nano, history.given
    if given.expires_unix_nano <= now:
        given.Clear()
    if (rule := verdict.rule) is not None and rule.standing >= given.standing:
        ends = now + rule.lasts_nanos
        if rule.standing > given.standing or ends >= given.expires_unix_nano:
            given.standing, given.rule_id, given.reason_code = rule.standing, rule.rule_id, rule.reason_code
            given.expires_unix_nano, given.given_unix_nano = ends, now
    made = pb.ActorStanding(
        tenant_id=tenant_id,
        actor_id=actor_id,
        standing=given.standing or pb.STANDING_GOOD,
        pressure=seen.pressure,
        half_life_seconds=policy.entry.half_life_hours * 3600,
        as_of_unix_nano=now,
        expires_unix_nano=given.expires_unix_nano,
        rule_id=given.rule_id,
        reason_code=given.reason_code,
        policy_digest=policy.digest,
        shadow_rules=verdict.shadow_rules,
        rule_errors=verdict.errors,
    )
    for kind, count, pressure in sorted(_kinds(seen, policy), key=lambda one: (-one[2], one[0])):
        made.reasons.add(kind=kind, count=count, pressure=pressure)
    return made


def reconsider(history: pb.ActorHistory, tenant_id: str, policy: ActorPolicy) -> None:
    """Something was taken out of the counts: of a standing stays, in place, what would have been given without it."""
    given = history.given
    if not given.standing:
        return
    at = given.given_unix_nano or history.newest_unix_nano
    rule = policy.judge(features(history, tenant_id, policy, at)).rule
    if rule is None:
        given.Clear()
    elif rule.standing < given.standing:
        given.standing, given.rule_id, given.reason_code = rule.standing, rule.rule_id, rule.reason_code
        given.expires_unix_nano = at + rule.lasts_nanos


def _counted(one: pb.HourCounts) -> tuple[float, ...]:
    """In the order of _FIELDS."""
    return one.near_misses, one.blocks, one.reports, one.evasions, one.escalations, one.drips, one.drip_sum


def _named(sums: Sequence[Any]) -> dict[str, Any]:
    """By field, those that are not 0: what is whole was summed as whole numbers."""
    return {name: value for name, value in zip(_FIELDS, sums, strict=True) if value}


def _kinds(seen: pb.ActorFeatures, policy: ActorPolicy) -> list[tuple[pb.ReasonKind.ValueType, int, float]]:
    """Kind, number in the window and share of the pressure, of what counts at all."""
    window, decayed, weights = seen.window, seen.decayed, policy.entry.weights
    kinds = (
        (pb.REASON_KIND_NEAR_MISS, window.near_misses, decayed.near_misses * weights.near_miss),
        (pb.REASON_KIND_BLOCK, window.blocks, decayed.blocks * weights.block),
        (pb.REASON_KIND_REPORT, window.reports, decayed.reports * weights.report),
        (pb.REASON_KIND_EVASION, window.evasions, decayed.evasions * weights.evasion),
        (pb.REASON_KIND_ESCALATION, window.escalations, decayed.escalations * weights.escalation),
        (pb.REASON_KIND_DRIP, window.drips, decayed.drip_sum * weights.drip),
    )
    return [one for one in kinds if one[1]]


def _escalates(history: pb.ActorHistory, event: pb.ActorEvent, entry: ActorsEntry) -> bool:
    """Whether this event is the last of `rises` in its conversation; the count then begins anew."""
    if not event.conversation_id:
        return False
    course = pb.ConversationCourse(conversation_id=event.conversation_id, last_peak=event.peak)
    for place, known in enumerate(history.conversations):
        if known.conversation_id == event.conversation_id:
            course.rises = known.rises + (event.peak >= known.last_peak + entry.rise)
            del history.conversations[place]
            break
    escalates = course.rises >= entry.rises
    if escalates:
        course.rises = 0
    history.conversations.append(course)
    if len(history.conversations) > MAX_CONVERSATIONS:
        del history.conversations[0]
    return escalates
