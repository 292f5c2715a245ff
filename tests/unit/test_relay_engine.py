"""The relay's engine on the in-memory broker: what each kind of failure becomes, and that nothing is lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Poison, Retryable
from seawall.relay.dead_letters import Fuse
from seawall.runtime.broker import Output, TopicPartition
from seawall.runtime.telemetry import TraceContext
from tests.support.records import generation
from tests.support.stream import NAMES, Reply, Request, Seen, Stream, answer

ERROR, OK = signal_pb2.ITEM_STATUS_ERROR, signal_pb2.ITEM_STATUS_OK


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path)


class Service:
    """A scorer's stand-in: does with each batch what the test says, and remembers the batches."""

    def __init__(self, behave: Any = None) -> None:
        self.batches: list[list[str]] = []
        self._behave = behave or (lambda request: answer(request))

    async def __call__(self, request: Request, *, timeout: float, wait_for_ready: bool, context: TraceContext) -> Reply:
        self.batches.append([item.generation_id for item in request.items])
        await asyncio.sleep(0)
        reply = self._behave(request)
        return await reply if asyncio.iscoroutine(reply) else reply


def statuses(stream: Stream) -> dict[str, tuple[int, str]]:
    return {s.generation_id: (s.items[0].status, s.items[0].reason) for s in stream.signals()}


async def test_each_generation_gets_a_signal_with_its_coordinates(stream: Stream) -> None:
    await stream.send(*(generation(f"g-{n}") for n in range(10)))
    async with stream.relay(Service(), Seen()):
        await stream.written(NAMES.signals, 10)
        await stream.committed("prompt_scoring", NAMES.generations, 10)
    for offset, signal in enumerate(sorted(stream.signals(), key=lambda s: s.generation_record.offset)):
        assert signal.generation_id == f"g-{offset}"
        assert (signal.generation_record.topic, signal.generation_record.offset) == (NAMES.generations, offset)
        assert signal.items[0].status == OK
        assert signal.timings.received_unix_nano <= signal.timings.sent_unix_nano <= signal.timings.produced_unix_nano


async def test_a_backlog_rides_in_full_batches(stream: Stream) -> None:
    await stream.send(*(generation(f"g-{n}") for n in range(150)))
    service = Service()
    async with stream.relay(service, Seen(), linger_seconds=1.0):
        await stream.written(NAMES.signals, 128)
        assert max(len(batch) for batch in service.batches) == 64
        await stream.written(NAMES.signals, 150)


async def test_what_a_stage_need_not_see_is_passed_over(stream: Stream) -> None:
    service = Service()
    await stream.send(generation("media-only", prompt=False, media=1), generation("asked"))
    async with stream.relay(service, Seen()) as relay:
        await stream.written(NAMES.signals, 1)
        await stream.committed("prompt_scoring", NAMES.generations, 2)
        assert relay.stats.skipped == 1
    assert service.batches == [["asked"]]


async def test_a_required_stage_with_nothing_to_measure_says_so(stream: Stream) -> None:
    await stream.send(generation("m", prompt=False, media=1, required_stages=["prompt_scoring"]))
    async with stream.relay(Service(), Seen()):
        await stream.written(NAMES.signals, 1)
    assert statuses(stream)["m"] == (signal_pb2.ITEM_STATUS_SKIPPED, "NOTHING_TO_SCAN")


# ---- replies that cannot be trusted (F17) ----------------------------------------------------------------------------


async def test_short_reordered_and_broken_replies(stream: Stream) -> None:
    def behave(request: Request) -> Reply:
        reply = answer(request)
        by_id = {item.id: item.generation_id for item in request.items}
        kept = [r for r in reply.replies if by_id[r.id] != "short"]
        for r in kept:
            if by_id[r.id] == "nan":
                r.result.labels[0].score = math.nan
        del reply.replies[:]
        reply.replies.extend(reversed(kept))
        return reply

    await stream.send(*(generation(name) for name in ("a", "short", "nan", "b")))
    async with stream.relay(Service(behave), Seen()):
        await stream.written(NAMES.signals, 4)
    assert statuses(stream) == {
        "a": (OK, ""),
        "b": (OK, ""),
        "short": (ERROR, "NO_REPLY"),
        "nan": (ERROR, "BAD_SCORE"),
    }


# ---- RPCs that fail --------------------------------------------------------------------------------------------------


async def test_a_passing_fault_is_retried(stream: Stream) -> None:
    failures = iter([Retryable("UNAVAILABLE", "away"), Retryable("DEADLINE_EXCEEDED", "slow")])

    def behave(request: Request) -> Reply:
        if error := next(failures, None):
            raise error
        return answer(request)

    await stream.send(generation("g"))
    async with stream.relay(Service(behave), Seen()):
        await stream.written(NAMES.signals, 1)
    [signal] = stream.signals()
    assert (signal.items[0].status, signal.rpc_attempts) == (OK, 3)


async def test_one_item_that_kills_the_service_is_left_alone(stream: Stream) -> None:
    # F18: each death costs a restart, so what matters is how few there are.
    deaths = 0

    def behave(request: Request) -> Reply:
        nonlocal deaths
        if any(item.generation_id == "g-41" for item in request.items):
            deaths += 1
            raise Retryable("UNAVAILABLE", "the connection broke")
        return answer(request)

    await stream.send(*(generation(f"g-{n}") for n in range(64)))
    async with stream.relay(Service(behave), Seen()):
        await stream.written(NAMES.signals, 64)
    said = statuses(stream)
    assert said.pop("g-41") == (ERROR, "UNAVAILABLE")
    assert set(said.values()) == {(OK, "")}
    assert deaths == 4, "twice with its neighbours, twice alone"


async def test_an_overloaded_service_is_asked_until_the_budget_is_spent(stream: Stream) -> None:
    # F19: giving up makes a HOLD and another attempt, which is more load on a service that has too much.
    refusals = 20

    def busy(request: Request) -> Reply:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Retryable("RESOURCE_EXHAUSTED", "16 batches are in progress: try again later")
        return answer(request)

    await stream.send(generation("g"))
    async with stream.relay(Service(busy), Seen(), max_attempts=3):
        await stream.written(NAMES.signals, 1)
    assert statuses(stream) == {"g": (OK, "")}


async def test_a_refused_request_is_halved_and_the_culprit_diverted(stream: Stream) -> None:
    def behave(request: Request) -> Reply:
        if any(item.generation_id == "bad" for item in request.items):
            raise Poison("INVALID_ARGUMENT", "refused")
        return answer(request)

    await stream.send(generation("a"), generation("bad"), generation("b"))
    async with stream.relay(Service(behave), Seen()):
        await stream.written(NAMES.signals, 3)
        await stream.written(NAMES.dead_letters, 1)
    assert statuses(stream) == {"a": (OK, ""), "b": (OK, ""), "bad": (ERROR, "INVALID_ARGUMENT")}
    assert stream.dead_letters()[0].reason == "INVALID_ARGUMENT"


async def test_a_spent_budget_is_an_error_signal_never_silence(stream: Stream) -> None:
    async def hang(request: Request) -> Reply:
        raise Retryable("DEADLINE_EXCEEDED", "hung")

    await stream.send(generation("g"))
    async with stream.relay(Service(hang), Seen(), budget_seconds=0.05, max_attempts=50):
        await stream.written(NAMES.signals, 1)
    assert statuses(stream)["g"] == (ERROR, "BUDGET_SPENT")


async def test_one_overdue_generation_does_not_spoil_its_batch(stream: Stream) -> None:
    overdue = generation("overdue")
    overdue.deadline_time.FromSeconds(1)
    await stream.send(overdue, generation("in-time"))
    async with stream.relay(Service(), Seen()):
        await stream.written(NAMES.signals, 2)
    assert statuses(stream) == {"overdue": (ERROR, "BUDGET_SPENT"), "in-time": (OK, "")}


# ---- records that cannot be processed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff\xff not a message", "UNDECODABLE"),
        (b"", "UNDECODABLE"),
        (generation("x", attempt=0).SerializeToString(), "BAD_ATTEMPT"),
        (generation("bad id").SerializeToString(), "BAD_ID"),
        (generation("x", prompt=False).SerializeToString(), "NOTHING_TO_SCAN"),
        (generation_pb2.Generation(generation_id="x", attempt=1, modality=77).SerializeToString(), "UNKNOWN_MODALITY"),  # type: ignore[arg-type]
    ],
)
async def test_poison_is_a_dead_letter_and_an_error_signal(stream: Stream, value: bytes, reason: str) -> None:
    await stream.send(value, generation("after"))
    async with stream.relay(Service(), Seen()):
        await stream.written(NAMES.signals, 2)
        await stream.committed("prompt_scoring", NAMES.generations, 2)
    assert statuses(stream) == {"raw": (ERROR, reason), "after": (OK, "")}
    [letter] = stream.dead_letters()
    assert (letter.reason, letter.source.offset, letter.key) == (reason, 0, b"raw")
    assert stream.sealer.open_bytes(letter.key_id, letter.sealed_value, f"{NAMES.generations}/0/0") == value
    if value:
        assert value not in (stream.broker.records(NAMES.dead_letters)[0].value or b"")


async def test_a_signal_too_large_is_diverted_and_the_partition_moves_on(stream: Stream) -> None:
    def behave(request: Request) -> Reply:
        reply = answer(request)
        for item, said in zip(request.items, reply.replies, strict=True):
            if item.generation_id == "big":
                said.result.hashes.add(hash_type="x", value=bytes(3_000_000))
        return reply

    await stream.send(generation("a"), generation("big"), generation("b"))
    async with stream.relay(Service(behave), Seen()):
        await stream.written(NAMES.signals, 3)
        await stream.committed("prompt_scoring", NAMES.generations, 3)
    assert statuses(stream)["big"] == (ERROR, "RECORD_TOO_LARGE")
    assert [letter.reason for letter in stream.dead_letters()] == ["RECORD_TOO_LARGE"]


async def test_the_fuse_stops_a_stage_that_would_divert_everything(stream: Stream) -> None:
    seen = Seen()
    await stream.send(*(b"\xff" * 3 for _ in range(100)))
    async with stream.relay(Service(), seen, fuse_minimum=10):
        await seen.until(lambda: bool(seen.named("halted")))
        assert not seen.is_ready
        assert seen.named("halted")[0]["reason"] == "FUSE_TRIPPED"
    assert len(stream.dead_letters()) == 10
    # What was not diverted is still there for the next start: the offset has not moved past it.
    seen = Seen()
    async with stream.relay(Service(), seen, fuse_minimum=200):
        await stream.written(NAMES.dead_letters, 100)


def test_the_fuse_looks_at_the_recent_share() -> None:
    fuse = Fuse(window=100, minimum=5, share=0.5)
    for _ in range(5):
        fuse.check()
        fuse.diverted()
    with pytest.raises(Exception, match="FUSE_TRIPPED"):
        fuse.check()
    fuse.passed(10)
    fuse.check()  # 5 of 15
    fuse.passed(1_000)
    for _ in range(50):
        fuse.check()
        fuse.diverted()
    fuse.check()  # 50 of 100: not above the share
    fuse.diverted()
    with pytest.raises(Exception, match="FUSE_TRIPPED"):
        fuse.check()


# ---- the broker's faults ---------------------------------------------------------------------------------------------


async def test_an_unacknowledged_produce_is_repeated_before_the_offset_moves(stream: Stream) -> None:
    seen = Seen()
    await stream.send(generation("g"))
    stream.broker.fail_next_sends(3)
    async with stream.relay(Service(), seen):
        await stream.written(NAMES.signals, 1)
        await stream.committed("prompt_scoring", NAMES.generations, 1)
    assert len(seen.named("produce_failed")) == 3


async def test_a_lost_acknowledgement_repeats_the_same_signal_id(stream: Stream) -> None:
    await stream.send(generation("g"))
    stream.broker.fail_next_sends(1, written=True)
    async with stream.relay(Service(), Seen()):
        await stream.written(NAMES.signals, 2)
    assert len({signal.signal_id for signal in stream.signals()}) == 1


async def test_memory_is_bounded_while_the_broker_takes_nothing(stream: Stream) -> None:
    seen = Seen()
    await stream.send(*(generation(f"g-{n}") for n in range(500)))
    stream.broker.fail_next_sends(1_000_000)
    async with stream.relay(Service(), seen, max_in_flight=64, batch_size=16) as relay:
        await seen.until(lambda: len(seen.named("produce_failed")) > 20)
        assert relay.stats.read <= 64
        assert not seen.is_ready


async def test_a_restart_repeats_what_was_not_committed(stream: Stream) -> None:
    hold = asyncio.Event()

    async def wait(request: Request) -> Reply:
        await hold.wait()
        return answer(request)

    await stream.send(*(generation(f"g-{n}") for n in range(5)))
    async with stream.relay(Service(wait), Seen(), revoke_seconds=0.01):
        await stream.send(generation("later"))
    assert stream.signals() == []
    async with stream.relay(Service(), Seen()):
        await stream.written(NAMES.signals, 6)
    assert {signal.generation_id for signal in stream.signals()} == {*(f"g-{n}" for n in range(5)), "later"}


async def test_a_relay_is_not_ready_while_a_refused_produce_is_tried_again(stream: Stream) -> None:
    seen = Seen()
    trying, release = asyncio.Event(), asyncio.Event()
    async with stream.relay(Service(), seen) as relay:
        await seen.until(lambda: seen.is_ready)
        send = relay._producer.send
        tries = 0

        async def slow(outputs: Sequence[Output]) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise Retryable("BROKER_UNAVAILABLE", "told to fail")
            trying.set()
            await release.wait()
            await send(outputs)

        relay._producer.send = slow  # type: ignore[method-assign]
        await stream.send(generation("g"))
        await trying.wait()
        # The engine turns meanwhile, and would say that it is ready.
        relay._tell_ready()
        assert not seen.is_ready
        release.set()
        await stream.committed("prompt_scoring", NAMES.generations, 1)
        await seen.until(lambda: seen.is_ready)


async def test_what_a_full_relay_is_given_all_the_same_is_not_passed_over(stream: Stream) -> None:
    hold = asyncio.Event()

    async def wait(request: Request) -> Reply:
        await hold.wait()
        return answer(request)

    await stream.send(*(generation(f"g-{n}") for n in range(4)))
    async with stream.relay(Service(wait), seen := Seen(), max_in_flight=1) as relay:
        # As when a rebalance forgets what was held back, in the middle of the wait for room.
        relay._consumer.pause = lambda partitions: None  # type: ignore[method-assign]
        await seen.until(lambda: seen.is_ready)
        async with asyncio.timeout(20):
            while relay.stats.read < 2:  # noqa: ASYNC110  a count that nothing announces
                await asyncio.sleep(0.005)
        hold.set()
        await stream.committed("prompt_scoring", NAMES.generations, 4)
    assert {signal.generation_id for signal in stream.signals()} == {f"g-{n}" for n in range(4)}


async def test_what_a_full_relay_paused_is_read_again_although_a_rebalance_is_on(stream: Stream) -> None:
    hold = asyncio.Event()

    async def wait(request: Request) -> Reply:
        await hold.wait()
        return answer(request)

    await stream.send(*(generation(f"g-{n}") for n in range(4)))
    async with stream.relay(Service(wait), Seen(), max_in_flight=1) as relay:
        consumer = relay._consumer
        assignment, pause, resume = consumer.assignment, consumer.pause, consumer.resume
        paused, resumed = asyncio.Event(), asyncio.Event()

        def seen_to_pause(partitions: Collection[TopicPartition]) -> None:
            pause(partitions)
            paused.set()

        def seen_to_resume(partitions: Collection[TopicPartition]) -> None:
            resume(partitions)
            resumed.set()

        consumer.pause = seen_to_pause  # type: ignore[method-assign]
        await paused.wait()
        consumer.resume = seen_to_resume  # type: ignore[method-assign]
        consumer.assignment = frozenset  # type: ignore[method-assign]  # between what is revoked and what is assigned
        hold.set()
        await resumed.wait()
        consumer.assignment = assignment  # type: ignore[method-assign]
        await stream.committed("prompt_scoring", NAMES.generations, 4)


async def test_a_broker_that_fails_while_the_relay_is_full_does_not_end_it(stream: Stream) -> None:
    hold = asyncio.Event()

    async def wait(request: Request) -> Reply:
        await hold.wait()
        return answer(request)

    seen = Seen()
    await stream.send(*(generation(f"g-{n}") for n in range(3)))
    async with stream.relay(Service(wait), seen, max_in_flight=1) as relay:
        poll = relay._consumer.poll

        async def away(*, max_records: int, timeout: float) -> Any:
            if not hold.is_set() and relay.stats.read:
                raise Retryable("BROKER_UNAVAILABLE", "told to fail")
            return await poll(max_records=max_records, timeout=timeout)

        relay._consumer.poll = away  # type: ignore[method-assign]
        await seen.until(lambda: len(seen.named("poll_failed")) > 2)
        hold.set()
        await stream.committed("prompt_scoring", NAMES.generations, 3)
    assert len(stream.signals()) == 3
