"""The aggregator's engine on the in-memory broker: decisions, time as a record, re-scans, amendments."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from seawall.aggregator.engine import Engine
from seawall.aggregator.settings import AggregatorSettings
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.clock import ManualClock
from seawall.core.errors import Retryable
from seawall.runtime.broker import Consumer, Output
from tests.support.records import CLASSIFICATION, HASHING, PROMPT, deadline, generation, signal
from tests.support.stream import NAMES, Seen, Stream

ALLOW, HOLD, REVIEW, BLOCK = (
    decision_pb2.OUTCOME_ALLOW,
    decision_pb2.OUTCOME_HOLD,
    decision_pb2.OUTCOME_REVIEW,
    decision_pb2.OUTCOME_BLOCK,
)
SECOND = 1_000_000_000


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path)


async def opened(aggregator: Engine, count: int) -> None:
    """Wait until so many generations of partition 0 wait for signals; nothing is written that could be awaited."""
    async with asyncio.timeout(20):
        while 0 not in aggregator._partitions or aggregator._partitions[0].join.open_count < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_joined_generation_is_decided_and_explained(stream: Stream) -> None:
    g = generation(media=1)
    await stream.send(g)
    await stream.send_join(*(signal(g, stage, offset=0) for stage in (PROMPT, HASHING, CLASSIFICATION)))
    seen = Seen()
    async with stream.aggregator(seen):
        await seen.until(lambda: bool(seen.decisions))
        await stream.committed("aggregator", NAMES.signals, 3)
        await stream.committed("aggregator", NAMES.generations, 1)
    [decision] = stream.decisions()
    assert decision.outcome == ALLOW
    assert [joined.signal.stage for joined in decision.signals] == [CLASSIFICATION, HASHING, PROMPT]
    assert [joined.record.offset for joined in decision.signals] == [2, 1, 0]
    assert decision.completed_by.offset == 2
    assert decision.decided_unix_nano == stream.broker.records(NAMES.signals)[2].timestamp * 1_000_000
    assert len(decision.policy_digest) == 64
    assert decision.comparisons


async def test_a_replay_writes_the_same_bytes(stream: Stream) -> None:
    for n in range(5):
        g = generation(f"g-{n}")
        await stream.send(g)
        await stream.send_join(signal(g, PROMPT, offset=n, scores={"minor_sexual": 0.6}))
    for count in (5, 10):
        seen = Seen()
        # Never committed, and with no memory of what was written: as after a kill -9 at the worst moment.
        async with stream.aggregator(seen, commit_seconds=1_000.0, recall=0):
            await stream.written(NAMES.decisions, count)
            stream.broker._groups["aggregator"].committed.clear()
        stream.broker._groups["aggregator"].committed.clear()
    values = [record.value for record in stream.broker.records(NAMES.decisions)]
    assert sorted(values[:5]) == sorted(values[5:])  # type: ignore[type-var]


async def test_time_is_written_to_the_log_and_obeyed_when_read(tmp_path: Path) -> None:
    clock = ManualClock()
    stream = Stream(tmp_path, clock=clock)
    g = generation(media=1)
    await stream.send(g)
    seen = Seen()
    async with stream.aggregator(seen, rescan_seconds=1.0) as aggregator:
        await stream.send_join(signal(g, PROMPT, offset=0))
        await opened(aggregator, 1)
        clock.advance(29 * SECOND)
        turns = aggregator.stats.turns
        async with asyncio.timeout(20):
            while aggregator.stats.turns < turns + 3:  # noqa: ASYNC110  it has looked at the clock since
                await asyncio.sleep(0.005)
        assert stream.decisions() == []
        clock.advance(2 * SECOND)
        await stream.written(NAMES.decisions, 1)
        [held] = stream.decisions()
        assert (held.outcome, held.rule_id, held.rescanned) == (HOLD, "engine/incomplete-evidence", True)
        assert list(held.missing_stages) == [CLASSIFICATION, HASHING]
        # The Deadline is a record like any other: it stands behind the signal.
        assert held.completed_by.offset == 1

        # F23: scanned again; a late signal escalates and never lowers.
        await stream.send_join(signal(g, HASHING, offset=0))  # late and clean: nothing to say
        match = signal_pb2.BankMatch(bank="b", entry_id="e", hash_type="pdq")
        await stream.send_join(signal(g, CLASSIFICATION, offset=0, matches=[match]))
        await stream.written(NAMES.decisions, 2)
        amendment = stream.decisions()[1]
        assert amendment.kind == decision_pb2.DECISION_KIND_AMENDMENT
        assert amendment.outcome == decision_pb2.OUTCOME_BLOCK_AND_REPORT
        clock.advance(2 * SECOND)
        await stream.written(NAMES.generations, 2)
        again = stream.broker.records(NAMES.generations)[1]
        attempt = generation_pb2.Generation.FromString(again.value or b"")
        assert (attempt.generation_id, attempt.attempt, attempt.rescan_of.offset) == (g.generation_id, 2, 0)


async def looked(aggregator: Engine) -> None:
    """Wait until it has looked at the clock again."""
    turns = aggregator.stats.turns
    async with asyncio.timeout(20):
        while aggregator.stats.turns < turns + 3:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(("said", "due"), [(-300, 0), (20, 20), (10**9, 3_600)])
async def test_an_event_from_a_wrong_clock_is_held_in_time(tmp_path: Path, said: int, due: int) -> None:
    """A platform five minutes behind, one that is right, and one in another century: seconds from now, and the wait."""
    clock = ManualClock()
    stream = Stream(tmp_path, clock=clock)
    g = generation(media=1)
    g.create_time.seconds = g.deadline_time.seconds = clock.now_nanos() // SECOND + said
    await stream.send(g)
    async with stream.aggregator(Seen()) as aggregator:
        if due:
            await opened(aggregator, 1)
            clock.advance(due * SECOND - SECOND)
            await looked(aggregator)
            assert stream.decisions() == []
            clock.advance(2 * SECOND)
        await stream.written(NAMES.decisions, 1)
    assert [(d.outcome, d.rescanned) for d in stream.decisions()] == [(HOLD, True)]


async def test_budgets_of_decided_generations_are_let_go(stream: Stream) -> None:
    """Their budgets are spent long after they were decided, by when others have come by the thousand."""
    count = 1_200
    await stream.send(*(generation(f"g-{n}") for n in range(count)))
    await stream.send_join(*(signal(generation(f"g-{n}"), PROMPT, offset=n) for n in range(count)))
    await stream.send(generation("open", media=1))
    async with stream.aggregator(Seen()) as aggregator:
        await stream.written(NAMES.decisions, count)
        await opened(aggregator, 1)
        state = aggregator._partitions[0]
        async with asyncio.timeout(20):
            while len(state.due) > 1_002:  # noqa: ASYNC110  it looks now and then
                await asyncio.sleep(0.005)
        assert count in {offset for _, offset in state.due}, "the open one's is kept"


async def test_a_rule_that_errs_holds_the_generation_and_is_named(stream: Stream, tmp_path: Path) -> None:
    document = yaml.safe_load((AggregatorSettings().policy / "policy.yaml").read_text("utf-8"))
    broken = [("divides", "1 / evidence.matches.size() == 1"), ("reads", "evidence.items[7].score['x'] > 0.5")]
    document["rules"] += [{"id": i, "when": when, "outcome": "REVIEW", "reason": "X"} for i, when in broken]
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(document))
    nothing: dict[str, float] = {}
    for offset, scores in enumerate((nothing, {"minor_sexual": 0.9, "minor_sexual_semantic": 0.9})):
        g = generation(f"g-{offset}")
        await stream.send(g)
        await stream.send_join(signal(g, PROMPT, offset=offset, scores=scores))
    async with stream.aggregator(Seen(), policy=policy):
        await stream.written(NAMES.decisions, 2)
    held, blocked = sorted(stream.decisions(), key=lambda decision: decision.generation_id)
    assert (held.outcome, held.rule_id, held.reason_code) == (HOLD, "engine/rule-error", "RULE_ERROR")
    assert (blocked.outcome, blocked.rule_id) == (BLOCK, "attempt-in-prompt")
    for decision in (held, blocked):
        assert list(decision.rule_errors) == ["divides", "reads"]


async def test_attempts_end_in_review(stream: Stream) -> None:
    g = generation(attempt=3)
    await stream.send(g)
    await stream.send_join(signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR))
    seen = Seen()
    async with stream.aggregator(seen):
        await seen.until(lambda: bool(seen.decisions))
    assert seen.decisions[0].outcome == REVIEW
    assert not seen.decisions[0].rescanned


async def test_the_pause_before_another_attempt_doubles_up_to_its_bound_and_a_person_is_asked_at_last(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    stream = Stream(tmp_path, clock=clock)
    await stream.send(generation())
    async with stream.aggregator(Seen(), rescan_seconds=10.0, max_rescan_seconds=15.0) as aggregator:

        async def fails(attempt: int) -> None:
            """Its stage errs; wait for the decision."""
            g = generation(attempt=attempt)
            await stream.send_join(signal(g, PROMPT, offset=attempt - 1, status=signal_pb2.ITEM_STATUS_ERROR))
            await stream.written(NAMES.decisions, attempt)

        for attempt, pause in ((1, 10), (2, 15)):
            await fails(attempt)
            async with asyncio.timeout(20):
                while not aggregator.waiting().rescans:  # noqa: ASYNC110  the acknowledgement comes a little later
                    await asyncio.sleep(0.005)
            clock.advance(pause * SECOND - SECOND // 100)
            await looked(aggregator)
            assert len(stream.broker.records(NAMES.generations)) == attempt
            clock.advance(SECOND // 50)
            await stream.written(NAMES.generations, attempt + 1)
        await fails(3)
    assert [(one.outcome, one.rescanned) for one in stream.decisions()] == [(HOLD, True), (HOLD, True), (REVIEW, False)]


async def test_a_hold_is_settled_only_when_its_rescan_is_written(stream: Stream) -> None:
    g = generation()
    await stream.send(g)
    await stream.send_join(signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR))
    seen = Seen()
    async with stream.aggregator(seen, rescan_seconds=600.0, max_rescan_seconds=600.0):
        await seen.until(lambda: bool(seen.decisions))
        await stream.send(generation("other"))
        await stream.send_join(signal(generation("other"), PROMPT, offset=1))
        await seen.until(lambda: len(seen.decisions) == 2)
    # It stops: nothing below the HOLD was committed, so the next start finds it and plans the scan again.
    assert stream.broker._groups["aggregator"].committed.get((NAMES.generations, 0), 0) == 0  # type: ignore[call-overload]
    async with stream.aggregator(Seen()):
        await stream.written(NAMES.generations, 3)


async def test_the_same_generation_twice_is_decided_once_even_over_a_restart(stream: Stream) -> None:
    g = generation()
    await stream.send(g)
    await stream.send_join(signal(g, PROMPT, offset=0))
    seen = Seen()
    async with stream.aggregator(seen):
        await stream.committed("aggregator", NAMES.generations, 1)
    await stream.send(g, generation("next"))
    await stream.send_join(signal(g, PROMPT, offset=1), signal(generation("next"), PROMPT, offset=2))
    async with stream.aggregator(Seen()):
        await stream.committed("aggregator", NAMES.signals, 3)
    assert [d.generation_id for d in stream.decisions()] == ["g-1", "next"]


async def test_a_malformed_record_is_held_and_set_aside(stream: Stream) -> None:
    await stream.send(b"\xff\xff", generation("after"))
    await stream.send_join(signal(generation("after"), PROMPT, offset=1))
    seen = Seen()
    async with stream.aggregator(seen):
        await seen.until(lambda: len(seen.decisions) == 2)
        await stream.committed("aggregator", NAMES.generations, 2)
    held = stream.decisions()[0]
    assert (held.generation_id, held.outcome, held.reason_code) == ("raw", HOLD, "UNDECODABLE")
    assert held.rule_id == "engine/malformed-record"
    assert [letter.room for letter in stream.dead_letters()] == ["aggregator"]


@pytest.mark.parametrize("kind", ["garbage", "empty", "wrong partition"])
async def test_an_unusable_signal_record_is_set_aside(stream: Stream, kind: str) -> None:
    g = generation()
    await stream.send(g)
    if kind == "wrong partition":
        await stream.send_join(signal(g, PROMPT, offset=0, partition=5))
    else:
        await stream.send(b"\xff\xff" if kind == "garbage" else b"\x1a\x00", topic=NAMES.signals)
    await stream.send_join(signal(g, PROMPT, offset=0))
    seen = Seen()
    async with stream.aggregator(seen):
        await seen.until(lambda: bool(seen.decisions))
        await stream.committed("aggregator", NAMES.signals, 2)
    reasons = [letter.reason for letter in stream.dead_letters()]
    assert reasons == ["WRONG_PARTITION" if kind == "wrong partition" else "UNDECODABLE"]


async def test_signals_before_their_generation_are_joined(stream: Stream) -> None:
    g = generation(media=1)
    await stream.send_join(*(signal(g, stage, offset=0) for stage in (PROMPT, HASHING, CLASSIFICATION)))
    seen = Seen()
    async with stream.aggregator(seen):
        await seen.until(lambda: seen.is_ready)
        await stream.send(g)
        await seen.until(lambda: bool(seen.decisions))
    assert seen.decisions[0].outcome == ALLOW


async def test_what_is_held_is_bounded_and_deadlines_still_get_through(stream: Stream) -> None:
    generations = [generation(f"g-{n}", media=1) for n in range(50)]
    await stream.send(*generations)
    seen = Seen()
    async with stream.aggregator(seen, max_open=10, max_poll=5, rescan_seconds=0.01) as aggregator:
        await seen.until(lambda: seen.is_ready)
        await opened(aggregator, 10)
        assert aggregator.stats.generations <= 15  # ten, and what one poll may add
        for offset, g in enumerate(generations[:40]):
            await stream.send_join(deadline(g, offset=offset))
        await seen.until(lambda: len({d.generation_id for d in seen.decisions}) >= 40)


async def test_a_decision_too_large_keeps_its_outcome(stream: Stream) -> None:
    g = generation()
    said = signal(g, PROMPT, offset=0, scores={"minor_sexual": 0.9})
    said.items[0].hashes.add(hash_type="x", value=bytes(900_000))
    await stream.send(g)
    await stream.send_join(said)
    stream.broker._topics[NAMES.decisions].max_bytes = 500_000
    seen = Seen()
    async with stream.aggregator(seen):
        await stream.committed("aggregator", NAMES.generations, 1)
    [decision] = stream.decisions()
    assert (decision.outcome, decision.truncated) == (REVIEW, True)
    assert decision.signals[0].signal.items == []
    assert seen.named("decision_truncated")


async def test_decisions_wait_for_the_broker_and_are_not_lost(stream: Stream) -> None:
    g = generation()
    await stream.send(g)
    await stream.send_join(signal(g, PROMPT, offset=0))
    stream.broker.fail_next_sends(3)
    seen = Seen()
    async with stream.aggregator(seen):
        await stream.committed("aggregator", NAMES.generations, 1)
    assert len(seen.named("produce_failed")) == 3
    assert len(stream.decisions()) == 1


async def test_the_fuse_stops_an_aggregator_that_can_read_nothing(stream: Stream) -> None:
    await stream.send(*(b"\xff\xff" for _ in range(60)))
    seen = Seen()
    async with stream.aggregator(seen, fuse_minimum=10):
        await seen.until(lambda: bool(seen.named("halted")))
    assert len(stream.dead_letters()) == 10


async def test_another_policy_decides_again_under_its_own_id(stream: Stream, tmp_path: Path) -> None:
    # F26: at most one distinct decision per policy digest.
    document = yaml.safe_load((AggregatorSettings().policy / "policy.yaml").read_text())
    document["version"] = "2"
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(document))
    g = generation()
    await stream.send(g)
    await stream.send_join(signal(g, PROMPT, offset=0))
    async with stream.aggregator(Seen(), commit_seconds=1_000.0):
        await stream.written(NAMES.decisions, 1)
        stream.broker._groups["aggregator"].committed.clear()
    stream.broker._groups["aggregator"].committed.clear()
    async with stream.aggregator(Seen(), policy=other):
        await stream.written(NAMES.decisions, 2)
    first, second = stream.decisions()
    assert first.decision_id != second.decision_id
    assert first.policy_digest != second.policy_digest


async def test_a_broker_that_goes_away_during_a_take_over_is_waited_for(stream: Stream) -> None:
    # F07: it must not be stuck, and must not begin without the decisions that are there.
    g = generation()
    await stream.send(g)
    await stream.send_join(signal(g, PROMPT, offset=0))
    async with stream.aggregator(Seen()):
        await stream.committed("aggregator", NAMES.generations, 1)
    await stream.send(g, generation("g-2"))
    await stream.send_join(signal(g, PROMPT, offset=1), signal(generation("g-2"), PROMPT, offset=2))
    reads = stream.broker.reader
    failing = [Retryable("BROKER_UNAVAILABLE", "for a moment")]

    def reader(topics: Sequence[str], *, from_end: bool = False) -> Consumer:
        if failing:
            raise failing.pop()
        return reads(topics, from_end=from_end)

    stream.broker.reader = reader  # type: ignore[assignment,method-assign]
    seen = Seen()
    async with stream.aggregator(seen):
        await seen.until(lambda: bool(seen.decisions))
    assert seen.named("take_over_failed") == [{"reason": "BROKER_UNAVAILABLE"}]
    assert [decision.generation_id for decision in stream.decisions()] == [g.generation_id, "g-2"]


async def test_an_aggregator_is_not_ready_while_a_refused_produce_is_tried_again(stream: Stream) -> None:
    seen = Seen()
    trying, release = asyncio.Event(), asyncio.Event()
    async with stream.aggregator(seen) as aggregator:
        await seen.until(lambda: seen.is_ready)
        send = aggregator._producer.send
        tries = 0

        async def slow(outputs: Sequence[Output]) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise Retryable("BROKER_UNAVAILABLE", "told to fail")
            trying.set()
            await release.wait()
            await send(outputs)

        aggregator._producer.send = slow  # type: ignore[method-assign]
        await stream.send(generation())
        await stream.send_join(signal(generation(), PROMPT, offset=0))
        await trying.wait()
        # The engine turns meanwhile, and would say that it is ready.
        aggregator._tell_ready()
        assert not seen.is_ready
        release.set()
        await stream.committed("aggregator", NAMES.generations, 1)
        await seen.until(lambda: seen.is_ready)
