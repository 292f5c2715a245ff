"""An actor's history: counts, windows, decay, repeats; the slow drip that no single decision shows."""

from __future__ import annotations

import pytest

from seawall.actor_history import history
from seawall.actor_history.settings import StandingSettings
from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.core import identity

ALLOW, REVIEW, BLOCK = decision_pb2.OUTCOME_ALLOW, decision_pb2.OUTCOME_REVIEW, decision_pb2.OUTCOME_BLOCK
HOUR = 3600 * 1_000_000_000
START = 472_000 * HOUR
SETTINGS = StandingSettings()


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
    one = history.event_of(made, "decisions.v1", partition, offset, SETTINGS)
    assert one is not None
    return one


def standing(of: pb.ActorHistory) -> pb.ActorStanding:
    return history.standing(of, "t", "a", SETTINGS)


def test_what_adds_nothing_is_not_even_passed_on() -> None:
    for made in (
        decision(1),
        decision(1, score=0.2),
        decision(1, decision_pb2.OUTCOME_HOLD),
        decision(1, BLOCK, actor_id=""),
    ):
        assert history.event_of(made, "decisions.v1", 0, 0, SETTINGS) is None


def test_a_slow_drip_surfaces() -> None:
    kept = pb.ActorHistory()
    for number in range(7):
        history.apply(
            kept, event(decision(number, score=0.4, decided_unix_nano=START + number * HOUR), number), SETTINGS
        )
    assert standing(kept).standing == pb.STANDING_GOOD
    for number in range(7, 14):
        history.apply(
            kept, event(decision(number, score=0.4, decided_unix_nano=START + number * HOUR), number), SETTINGS
        )
    found = standing(kept)
    assert found.standing == pb.STANDING_WATCHED
    assert [(reason.kind, reason.count) for reason in found.reasons] == [(pb.REASON_KIND_DRIP, 14)]


def test_a_standing_expires_when_its_pressure_has_halved_below_the_threshold() -> None:
    kept = pb.ActorHistory()
    for number in range(2):
        history.apply(kept, event(decision(number, BLOCK), number), SETTINGS)
    found = standing(kept)
    assert found.standing == pb.STANDING_WATCHED
    assert found.pressure == pytest.approx(6.0)
    assert found.expires_unix_nano - START == pytest.approx(SETTINGS.half_life_seconds * 1e9)
    # Two half lives later a first near miss finds 1.5 of the 6 left.
    history.apply(kept, event(decision(9, REVIEW, decided_unix_nano=START + 96 * HOUR), 9), SETTINGS)
    assert standing(kept).standing == pb.STANDING_GOOD
    assert standing(kept).pressure == pytest.approx(2.5, rel=0.02)


def test_what_is_read_again_or_written_again_counts_once() -> None:
    kept = pb.ActorHistory()
    events = [event(decision(number, REVIEW), number) for number in range(5)]
    assert all(history.apply(kept, one, SETTINGS) for one in events)
    assert not any(history.apply(kept, one, SETTINGS) for one in events)
    # The aggregator's replay: the same decisions further up the log.
    assert not any(history.apply(kept, event(decision(number, REVIEW), 5 + number), SETTINGS) for number in range(5))
    assert standing(kept).reasons[0].count == 5
    # Another partition has offsets of its own.
    assert history.apply(kept, event(decision(7, REVIEW), 0, partition=1), SETTINGS)


def test_a_conversation_that_rises_turn_by_turn_escalates() -> None:
    kept = pb.ActorHistory()
    for number, score in enumerate((0.3, 0.4, 0.5, 0.6)):
        history.apply(kept, event(decision(number, score=score, conversation_id="c"), number), SETTINGS)
    kinds = {reason.kind: reason.count for reason in standing(kept).reasons}
    assert kinds == {pb.REASON_KIND_DRIP: 4, pb.REASON_KIND_ESCALATION: 1}


def test_evasion_counts_beside_what_it_hid() -> None:
    made = decision(1, BLOCK, score=0.9)
    made.signals[0].signal.items[0].labels.add(label="evasion", score=1.0)
    kept = pb.ActorHistory()
    history.apply(kept, event(made, 0), SETTINGS)
    assert {reason.kind for reason in standing(kept).reasons} == {pb.REASON_KIND_BLOCK, pb.REASON_KIND_EVASION}


def test_a_million_events_leave_a_history_of_bounded_size() -> None:
    kept = pb.ActorHistory()
    for number in range(3_000):
        made = decision(
            number, REVIEW, 0.4, conversation_id=f"c-{number}", decided_unix_nano=START + number * HOUR // 4
        )
        history.apply(kept, event(made, number), SETTINGS)
    assert len(kept.hours) <= SETTINGS.window_hours
    assert len(kept.conversations) == history.MAX_CONVERSATIONS
    assert len(kept.decisions) == history.MAX_DECISIONS
    assert kept.ByteSize() < 8_000


def test_late_and_old_decisions_find_their_hour_or_none() -> None:
    kept = pb.ActorHistory()
    history.apply(kept, event(decision(1, REVIEW, decided_unix_nano=START), 1), SETTINGS)
    history.apply(kept, event(decision(2, REVIEW, decided_unix_nano=START - 2 * HOUR), 2), SETTINGS)
    history.apply(kept, event(decision(3, REVIEW, decided_unix_nano=START - HOUR), 3), SETTINGS)
    history.apply(kept, event(decision(4, BLOCK, decided_unix_nano=START - 400 * HOUR), 4), SETTINGS)
    assert [one.hour - START // HOUR for one in kept.hours] == [-2, -1, 0]
    assert [reason.kind for reason in standing(kept).reasons] == [pb.REASON_KIND_NEAR_MISS]
