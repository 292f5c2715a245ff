"""An actor's history: counts, windows, decay, repeats; the slow drip that no single decision shows."""

from __future__ import annotations

import pytest

from seawall.actor_history.settings import ActorHistorySettings
from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.core import actor, identity
from seawall.core.policy import ActorPolicy, Policy

ALLOW, REVIEW, BLOCK = decision_pb2.OUTCOME_ALLOW, decision_pb2.OUTCOME_REVIEW, decision_pb2.OUTCOME_BLOCK
HOUR = 3600 * 1_000_000_000
START = 472_000 * HOUR


def default() -> ActorPolicy:
    actors = Policy(ActorHistorySettings.model_fields["policy"].default).actors
    assert actors is not None
    return actors


RULES = default()


def decision(
    number: int, outcome: decision_pb2.Outcome.ValueType = ALLOW, score: float = 0.0, **fields: object
) -> decision_pb2.Decision:
    made = decision_pb2.Decision(
        decision_id=identity.decision_id(f"g-{number}", 1, "p"),
        tenant_id="t",
        actor_id="a",
        outcome=outcome,
        decided_unix_nano=START,
    )
    for name, value in fields.items():
        setattr(made, name, value)
    signal = made.signals.add().signal
    signal.stage = "prompt_scoring"
    signal.items.add(item_id="prompt").labels.add(label="minor_sexual", score=score)
    return made


def event(made: decision_pb2.Decision, offset: int, partition: int = 0) -> pb.ActorEvent:
    one = actor.event_of(made, "decisions.v1", partition, offset, RULES)
    assert one is not None
    return one


def standing(of: pb.ActorHistory) -> pb.ActorStanding:
    return actor.standing(of, "t", "a", RULES)


def test_what_adds_nothing_is_not_even_passed_on() -> None:
    for made in (
        decision(1),
        decision(1, score=0.2),
        decision(1, decision_pb2.OUTCOME_HOLD),
        decision(1, BLOCK, actor_id=""),
    ):
        assert actor.event_of(made, "decisions.v1", 0, 0, RULES) is None


def test_a_slow_drip_surfaces() -> None:
    kept = pb.ActorHistory()
    for number in range(7):
        actor.apply(kept, event(decision(number, score=0.4, decided_unix_nano=START + number * HOUR), number), RULES)
    assert standing(kept).standing == pb.STANDING_GOOD
    for number in range(7, 14):
        actor.apply(kept, event(decision(number, score=0.4, decided_unix_nano=START + number * HOUR), number), RULES)
    found = standing(kept)
    assert found.standing == pb.STANDING_WATCHED
    assert [(reason.kind, reason.count) for reason in found.reasons] == [(pb.REASON_KIND_DRIP, 14)]


def test_what_has_happened_weighs_half_after_its_half_life() -> None:
    kept = pb.ActorHistory()
    for number in range(2):
        actor.apply(kept, event(decision(number, BLOCK), number), RULES)
    assert standing(kept).pressure == pytest.approx(6.0)
    # Two half lives later a first near miss finds 1.5 of the 6 left.
    actor.apply(kept, event(decision(9, REVIEW, decided_unix_nano=START + 96 * HOUR), 9), RULES)
    found = standing(kept)
    assert found.pressure == pytest.approx(2.5, rel=0.02)
    assert (found.standing, found.expires_unix_nano, found.rule_id) == (pb.STANDING_GOOD, 0, "")


def test_a_standing_names_its_rule_and_its_end_and_nothing_new_shortens_it() -> None:
    kept = pb.ActorHistory()
    for number in range(3):
        actor.apply(kept, event(decision(number, BLOCK), number), RULES)
    first = standing(kept)
    assert (first.standing, first.rule_id) == (pb.STANDING_RESTRICTED, "actor-pressure-high")
    assert first.reason_code == "MANY_ATTEMPTS"
    assert first.policy_digest == RULES.digest
    assert first.expires_unix_nano == START + 72 * HOUR
    # By itself this would be WATCHED, and end later; what was given stands.
    actor.apply(kept, event(decision(5, REVIEW, decided_unix_nano=START + 60 * HOUR), 5), RULES)
    assert standing(kept).expires_unix_nano == START + 72 * HOUR
    assert standing(kept).standing == pb.STANDING_RESTRICTED
    # Once it has ended, what still holds counts.
    actor.apply(kept, event(decision(6, REVIEW, decided_unix_nano=START + 73 * HOUR), 6), RULES)
    again = standing(kept)
    assert (again.standing, again.rule_id) == (pb.STANDING_WATCHED, "actor-pressure")
    assert again.expires_unix_nano == START + (73 + 48) * HOUR


def test_a_standing_is_the_same_when_it_is_made_again() -> None:
    kept = pb.ActorHistory()
    for number in range(3):
        actor.apply(kept, event(decision(number, BLOCK), number), RULES)
    first = standing(kept)
    before = kept.SerializeToString(deterministic=True)
    assert standing(kept) == first
    assert kept.SerializeToString(deterministic=True) == before


def test_what_is_read_again_or_written_again_counts_once() -> None:
    kept = pb.ActorHistory()
    events = [event(decision(number, REVIEW), number) for number in range(5)]
    assert all(actor.apply(kept, one, RULES) for one in events)
    assert not any(actor.apply(kept, one, RULES) for one in events)
    # The aggregator's replay: the same decisions further up the log.
    assert not any(actor.apply(kept, event(decision(number, REVIEW), 5 + number), RULES) for number in range(5))
    assert standing(kept).reasons[0].count == 5
    # Another partition has offsets of its own.
    assert actor.apply(kept, event(decision(7, REVIEW), 0, partition=1), RULES)


def test_a_conversation_that_rises_turn_by_turn_escalates() -> None:
    kept = pb.ActorHistory()
    for number, score in enumerate((0.3, 0.4, 0.5, 0.6)):
        actor.apply(kept, event(decision(number, score=score, conversation_id="c"), number), RULES)
    kinds = {reason.kind: reason.count for reason in standing(kept).reasons}
    assert kinds == {pb.REASON_KIND_DRIP: 4, pb.REASON_KIND_ESCALATION: 1}


def test_evasion_counts_beside_what_it_hid() -> None:
    made = decision(1, BLOCK, score=0.9)
    made.signals[0].signal.items[0].labels.add(label="evasion", score=1.0)
    kept = pb.ActorHistory()
    actor.apply(kept, event(made, 0), RULES)
    assert {reason.kind for reason in standing(kept).reasons} == {pb.REASON_KIND_BLOCK, pb.REASON_KIND_EVASION}


def test_a_million_events_leave_a_history_of_bounded_size() -> None:
    kept = pb.ActorHistory()
    for number in range(3_000):
        made = decision(
            number, REVIEW, 0.4, conversation_id=f"c-{number}", decided_unix_nano=START + number * HOUR // 4
        )
        actor.apply(kept, event(made, number), RULES)
    # And by the thousand within one hour: they are one count.
    for number in range(3_000, 8_000):
        made = decision(number, REVIEW, 0.4, decided_unix_nano=START + 750 * HOUR + number)
        actor.apply(kept, event(made, number), RULES)
    assert max(hour.near_misses for hour in kept.hours) >= 5_000
    assert len(kept.hours) <= RULES.entry.window_hours
    assert len(kept.conversations) == actor.MAX_CONVERSATIONS
    assert len(kept.decisions) == actor.MAX_DECISIONS
    assert kept.ByteSize() < 8_000


def test_late_and_old_decisions_find_their_hour_or_none() -> None:
    kept = pb.ActorHistory()
    actor.apply(kept, event(decision(1, REVIEW, decided_unix_nano=START), 1), RULES)
    actor.apply(kept, event(decision(2, REVIEW, decided_unix_nano=START - 2 * HOUR), 2), RULES)
    actor.apply(kept, event(decision(3, REVIEW, decided_unix_nano=START - HOUR), 3), RULES)
    actor.apply(kept, event(decision(4, BLOCK, decided_unix_nano=START - 400 * HOUR), 4), RULES)
    assert [one.hour - START // HOUR for one in kept.hours] == [-2, -1, 0]
    assert [reason.kind for reason in standing(kept).reasons] == [pb.REASON_KIND_NEAR_MISS]
