"""Faults of the aggregator: it is killed anywhere, its evidence is late or silent, its clock wrong, its policy new."""

from __future__ import annotations

import os
import signal
import time

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from seawall.api.decision.v1 import decision_pb2
from tests.faults.sending import expected, ids, send
from tests.support.mesh import Lane
from tests.support.stages import AGGREGATOR, PICTURES, SERVICE, WORDS

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]

HOLD, ALLOW = decision_pb2.OUTCOME_HOLD, decision_pb2.OUTCOME_ALLOW


def soon() -> Timestamp:
    """A platform's deadline that passes while a stage is silent. The next attempt has the policy's budget, which does
    not: so what follows does not depend on the machine's speed."""
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns() + 500_000_000)
    return stamp


async def replay(lane: Lane) -> None:
    """Decide everything once more from the first record on; the ledger compares the bytes."""
    before = {attempt: sum(values.values()) for attempt, values in lane.ledger.joint.items()}
    again = lane.start(AGGREGATOR, name="replay", REPLAY="1")
    await again.ready()
    await lane.until(
        lambda: all(sum(lane.ledger.joint[attempt].values()) > count for attempt, count in before.items()),
        "every decision written again",
    )
    await again.stop()
    await lane.read_all()
    lane.ledger.check()
    assert set(lane.ledger.joint) == set(before), "a replay decides nothing else"


@pytest.mark.parametrize(
    "point",
    ["aggregator.read", "aggregator.decided", "aggregator.produced", "aggregator.acknowledged", "aggregator.committed"],
)
async def test_the_aggregator_is_killed(lane: Lane, point: str) -> None:
    """F24: between any two steps; then everything once more. Byte-identical decisions."""
    rooms = await lane.start_all(aggregator=point)
    sent = [*ids("plain", 30), *ids("block", 5), *ids("slow", 5)]
    await send(lane, sent, media=1)
    await rooms[AGGREGATOR].died()
    await lane.settled()
    await lane.until_committed(AGGREGATOR)
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    if point in ("aggregator.produced", "aggregator.acknowledged"):
        assert lane.ledger.copies() > 0, "what was written and not committed is written again"
    await replay(lane)


@pytest.mark.parametrize("point", ["aggregator.deadline", "aggregator.held"])
async def test_the_aggregator_is_killed_over_a_hold(lane: Lane, point: str) -> None:
    """F24: after a Deadline is written and before it is read; between a HOLD's acknowledgement and its next attempt."""
    aggregator = lane.start(AGGREGATOR, kill=point)
    await lane.ready([aggregator, lane.start(SERVICE), lane.start(WORDS)])
    sent = [*ids("plain", 12), *ids("block", 3)]
    await send(lane, sent, media=1, deadline_time=soon())
    await aggregator.died()
    await lane.until(lambda: any(one.outcome == HOLD for one in lane.ledger.decisions), "a HOLD")
    lane.start(PICTURES)
    await lane.settled()
    await lane.until_committed(AGGREGATOR)
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    for one in ids("plain", 12):
        first, second = lane.ledger.joint_of(one)
        assert (first.attempt, first.outcome) == (1, HOLD)
        assert PICTURES in first.missing_stages
        assert (second.attempt, second.outcome) == (2, ALLOW)
    if point == "aggregator.held":
        assert lane.ledger.copies() > 0
    await replay(lane)


async def test_a_silent_stage(lane: Lane) -> None:
    """F23: HOLD at the deadline, scanned again; when it speaks at last it may escalate, never lower."""
    lane.policy(budget=0.5, max_attempts=2)
    await lane.ready([lane.start(AGGREGATOR), lane.start(SERVICE), lane.start(WORDS)])
    # The prompt of "late" is harmless and its picture is not; only the picture's stage could tell.
    sent = [*ids("plain", 5), *ids("late", 5)]
    await send(lane, sent, media=1)
    await lane.settled()
    for one in sent:
        first, second = lane.ledger.joint_of(one)
        assert (first.outcome, first.rule_id, first.rescanned) == (HOLD, "engine/incomplete-evidence", True)
        assert (second.attempt, second.rule_id) == (2, "engine/attempts-exhausted")
        assert PICTURES in first.missing_stages
        assert PICTURES in second.missing_stages
    assert lane.ledger.outcomes(sent) == dict.fromkeys(sent, "REVIEW")
    lane.start(PICTURES)
    await lane.until(lambda: all(lane.ledger.outcome(one) == "BLOCK" for one in ids("late", 5)), "escalated")
    await lane.until(lambda: all(lane.ledger.signals_of(one, PICTURES) for one in sent), "it spoke of all")
    # Decided after them in every partition: what the late signals cause is written by now.
    await lane.until_committed(PICTURES)
    after = ids("plain", 8, first=100)
    await send(lane, after)
    await lane.finish()
    assert lane.ledger.outcomes(ids("late", 5)) == dict.fromkeys(ids("late", 5), "BLOCK")
    assert lane.ledger.outcomes(ids("plain", 5)) == dict.fromkeys(ids("plain", 5), "REVIEW")
    for one in ids("late", 5):
        assert {(late.kind, late.rule_id) for late in lane.ledger.amendments_of(one)} == {
            (decision_pb2.DECISION_KIND_AMENDMENT, PICTURES)
        }
    for one in ids("plain", 5):
        assert lane.ledger.amendments_of(one) == [], "a harmless late signal changes nothing"
    await replay(lane)


@pytest.mark.parametrize("kill", [False, True])
async def test_the_same_generation_twice(lane: Lane, kill: bool) -> None:
    """F14: at once, later, and after a restart of the aggregator: one decision."""
    rooms = await lane.start_all()
    sent = [*ids("plain", 10), *ids("block", 3)]
    await send(lane, [*sent, *sent], media=1)
    await lane.settled()
    await send(lane, sent, media=1)
    # All is committed, so only the decisions read back can tell that it was decided.
    await lane.until_committed(AGGREGATOR)
    if kill:
        os.kill(rooms[AGGREGATOR].pid, signal.SIGKILL)
        await rooms[AGGREGATOR].died()
    else:
        await rooms[AGGREGATOR].stop()
        rooms[AGGREGATOR] = lane.start(AGGREGATOR)
    await rooms[AGGREGATOR].ready()
    await send(lane, sent, media=1)
    await send(lane, ids("plain", 10, first=100), media=1)
    await lane.settled()
    await lane.until_committed(AGGREGATOR)
    await lane.until_committed(WORDS)
    await lane.finish()
    for one in sent:
        assert len(lane.ledger.decisions_of(one)) == 1, "absorbed, not repeated"
        assert lane.ledger.sent[one] == 4
    assert lane.ledger.outcomes(sent) == expected(sent)


async def test_signals_before_their_generation(lane: Lane) -> None:
    """F26: the aggregator reads every signal before any generation."""
    await lane.ready([lane.start(SERVICE), lane.start(WORDS), lane.start(PICTURES)])
    sent = [*ids("plain", 30), *ids("block", 5)]
    await send(lane, sent, media=1)
    await lane.until(lambda: len(lane.ledger.signals) >= 2 * len(sent), "every signal")
    lane.start(AGGREGATOR, SIGNALS_FIRST=str(2 * len(sent)))
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert {one.attempt for one in lane.ledger.decisions} == {1}
    await replay(lane)


async def test_a_new_policy_in_the_middle_of_a_join(lane: Lane) -> None:
    """F26: at most one distinct decision for each policy digest."""
    aggregator = lane.start(AGGREGATOR, kill="aggregator.produced")
    await lane.ready([aggregator, lane.start(SERVICE), lane.start(WORDS)])
    # Rooms read the policy when they start: the one that follows the killed one reads this.
    lane.policy(version=2)
    sent = ids("plain", 20)
    waiting = [*ids("plain", 10, first=100), *ids("block", 3)]
    await send(lane, waiting, media=1)
    await send(lane, sent)
    await aggregator.died()
    await lane.until(lambda: all(lane.ledger.outcome(one) for one in sent), "the prompts decided")
    lane.start(PICTURES)
    await lane.settled()
    await lane.until_committed(AGGREGATOR)
    await lane.finish()
    assert lane.ledger.outcomes([*sent, *waiting]) == expected([*sent, *waiting])
    digests = {one: {decision.policy_digest for decision in lane.ledger.decisions_of(one)} for one in sent}
    assert max(map(len, digests.values())) == 2, "some were decided under both"
    assert {len(values) for values in digests.values()} <= {1, 2}
    for one in waiting:
        assert len(lane.ledger.joint_of(one)) == 1


@pytest.mark.parametrize("clock", ["+300", "-300", "strobe:300"])
async def test_clocks_are_wrong(lane: Lane, clock: str) -> None:
    """F25: five minutes ahead, behind, or to and fro; the budget is two minutes, and no decision differs."""
    lane.policy(max_attempts=2)
    aggregator = lane.start(AGGREGATOR, CLOCK=clock)
    rooms = [lane.start(SERVICE), lane.start(WORDS, CLOCK=clock), aggregator]
    await lane.ready(rooms)
    sent = [*ids("plain", 20), *ids("block", 3), *ids("raise", 2)]
    await send(lane, sent, media=1)
    # The aggregator has the generations open, and looks at its clock, for as long as the other stage takes to start.
    await lane.until(lambda: all(lane.ledger.signals_of(one, WORDS) for one in sent), "one stage spoke")
    pictures = lane.start(PICTURES, CLOCK=clock)
    await pictures.ready()
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent, **{"raise": "REVIEW"})
    assert lane.ledger.deadlines == [], "no budget was spent"
    assert {len(lane.ledger.joint_of(one)) for one in ids("plain", 20)} == {1}
    await replay(lane)
