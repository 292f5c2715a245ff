from __future__ import annotations

import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

import pytest

from seawall.runtime import workers
from seawall.runtime.batch_service import AdaptiveLimit
from seawall.runtime.workers import BEGUN, HELD, Begun, Held, Job, Unfinished, Workers, finished
from tests.support.waiting import wait_for


def test_the_limit_falls_while_batches_wait_and_recovers() -> None:
    limit = AdaptiveLimit(maximum=16, target=1.0)
    assert limit.value == 16
    now = 100.0
    for _ in range(30):
        limit.observe(waited=3.0, now=now)
        now += 2.0
    assert limit.value == AdaptiveLimit.MINIMUM
    for _ in range(200):
        limit.observe(waited=0.1, now=now)
    assert limit.value == 16


def test_one_congestion_lowers_the_limit_once() -> None:
    limit = AdaptiveLimit(maximum=16, target=1.0)
    for _ in range(10):
        limit.observe(waited=3.0, now=100.0)
    assert limit.value == 11


@pytest.mark.parametrize("maximum", [1, 2, 3])
def test_a_small_maximum_is_kept(maximum: int) -> None:
    limit = AdaptiveLimit(maximum, target=1.0)
    assert limit.value == maximum
    limit.observe(waited=9.0, now=100.0)
    assert 1 <= limit.value <= maximum


class Run:
    """A job on workers of its own, and what it did."""

    def __init__(self, workers: int, count: int, deadline: float = 60.0) -> None:
        self.seen: list[int] = []
        self.entered = threading.Event()
        self.release = threading.Event()
        self.ended = threading.Event()
        self.workers = Workers(workers, "test")
        self.job = Job(count, self.work, time.monotonic() + deadline, self.ended.set)

    def work(self, position: int) -> None:
        self.seen.append(position)
        self.entered.set()
        assert self.release.wait(30)


def test_every_item_is_worked_on_once_and_the_end_is_told_once() -> None:
    run = Run(workers=4, count=200)
    run.release.set()
    run.workers.submit(run.job)
    assert run.ended.wait(30)
    assert sorted(run.seen) == list(range(200))


def test_a_cancelled_job_ends_after_the_item_in_progress() -> None:
    run = Run(workers=1, count=10)
    run.workers.submit(run.job)
    assert run.entered.wait(30)
    run.job.cancel()
    assert not run.ended.is_set()
    run.release.set()
    assert run.ended.wait(30)
    assert run.seen == [0]


def test_no_item_is_begun_after_the_deadline() -> None:
    run = Run(workers=2, count=10, deadline=-1.0)
    run.workers.submit(run.job)
    assert run.ended.wait(30)
    assert run.seen == []
    assert run.job.started == 0.0


def test_a_worker_on_one_item_for_long_is_stuck() -> None:
    run = Run(workers=2, count=1)
    assert run.workers.stuck(seconds=-1.0) == 0
    run.workers.submit(run.job)
    assert run.entered.wait(30)
    assert run.workers.stuck(seconds=-1.0) == 1
    assert run.workers.stuck(seconds=600.0) == 0
    run.release.set()
    assert run.ended.wait(30)
    # A worker ends the job before it says that it is free.
    wait_for(lambda: run.workers.stuck(seconds=-1.0) == 0)


class Slow:
    """Work elsewhere that ends when it is told to."""

    room = False

    def __init__(self, within: float = 60.0) -> None:
        self.due = time.monotonic() + within
        self._ours, self._theirs = socket.socketpair()

    def fileno(self) -> int:
        return self._ours.fileno()

    def ready(self) -> bool:
        return True

    def late(self) -> bool:
        return True

    def end(self) -> None:
        self._theirs.send(b"!")

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


MakeSlow = Callable[..., Slow]


@pytest.fixture
def slow() -> Iterator[MakeSlow]:
    with ExitStack() as made:
        yield lambda **how: made.enter_context(closing(Slow(**how)))


class Elsewhere:
    """A job of one worker whose items are begun; what was done, in order."""

    def __init__(self, works: Sequence[Slow]) -> None:
        self.log: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.workers = Workers(1, "test")
        self.works = works
        self.job = Job(len(works), self.begin, time.monotonic() + 60, self.ended.set)

    def begin(self, position: int) -> Begun:
        self.log.put(f"begin {position}")
        return Begun(self.works[position], lambda: self.log.put(f"finish {position}"))

    def says(self, count: int) -> list[str]:
        return [self.log.get(timeout=30) for _ in range(count)]


def test_the_next_item_is_begun_before_one_is_finished(slow: MakeSlow) -> None:
    run = Elsewhere([slow() for _ in range(3)])
    run.workers.submit(run.job)
    assert run.says(2) == ["begin 0", "begin 1"]
    for work in run.works:
        work.end()
    assert run.says(4) == ["finish 0", "begin 2", "finish 1", "finish 2"]
    assert run.ended.wait(30)


def test_more_items_are_begun_while_the_last_has_room_for_more(slow: MakeSlow) -> None:
    items = [slow() for _ in range(BEGUN + 4)]
    for item in items[: BEGUN + 1]:
        item.room = True
    run = Elsewhere(items)
    run.workers.submit(run.job)
    assert run.says(BEGUN + 2) == [f"begin {k}" for k in range(BEGUN + 2)]
    items[0].end()
    # There is room again for as many as ever, no more.
    assert run.says(1) == ["finish 0"]
    for item in items[1:]:
        item.end()
    assert run.says(2 * (BEGUN + 4) - (BEGUN + 3))[-1].startswith("finish")


class Twins:
    """A job of two workers that begin as many items each; ``finish`` is called with the thread's ident."""

    EACH = 6

    def __init__(self, slow: MakeSlow, finish: Callable[[int], None]) -> None:
        self.works = [slow() for _ in range(2 * self.EACH)]
        for work in self.works:
            work.room = True
        self.ended = threading.Event()
        self._finish = finish
        self._together = threading.Barrier(2)
        Workers(2, "test").submit(Job(len(self.works), self._begin, time.monotonic() + 60, self.ended.set))

    def end(self) -> None:
        for work in self.works:
            work.end()

    def _begin(self, position: int) -> Begun:
        self._together.wait(30)
        return Begun(self.works[position], lambda: self._finish(threading.get_ident()))


def test_of_two_threads_with_many_items_one_finishes_at_a_time(slow: MakeSlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_FLOOR_SECONDS", 60.0)
    left: Counter[int] = Counter()
    side_by_side = [0]
    most: list[int] = []

    def finish(thread: int) -> None:
        left[thread] += 1
        if left[thread] > Twins.EACH - BEGUN:
            # It has few items by now.
            return
        side_by_side[0] += 1
        threading.Event().wait(0.005)
        most.append(side_by_side[0])
        side_by_side[0] -= 1

    twins = Twins(slow, finish)
    twins.end()
    assert twins.ended.wait(30)
    assert most == [1] * 2 * (Twins.EACH - BEGUN)


def test_a_thread_that_hangs_on_an_item_holds_up_no_other(slow: MakeSlow) -> None:
    hangs, others = threading.Event(), queue.SimpleQueue[int]()
    first: list[int] = []

    def finish(thread: int) -> None:
        first.append(thread)
        if len(first) == 1:
            assert hangs.wait(30)
        elif thread != first[0]:
            others.put(thread)

    twins = Twins(slow, finish)
    twins.end()
    for _ in range(Twins.EACH):
        others.get(timeout=30)
    hangs.set()
    assert twins.ended.wait(30)


def test_an_item_that_takes_long_elsewhere_holds_up_no_other(slow: MakeSlow) -> None:
    run = Elsewhere([slow() for _ in range(4)])
    for work in run.works[1:]:
        work.end()
    run.workers.submit(run.job)
    assert run.says(7) == ["begin 0", "begin 1", "finish 1", "begin 2", "finish 2", "begin 3", "finish 3"]
    assert not run.ended.is_set()
    run.works[0].end()
    assert run.says(1) == ["finish 0"]
    assert run.ended.wait(30)


def test_a_job_that_comes_while_a_worker_waits_is_begun_at_once(slow: MakeSlow) -> None:
    run = Elsewhere([slow()])
    run.workers.submit(run.job)
    assert run.says(1) == ["begin 0"]
    other = Elsewhere([slow()])
    run.workers.submit(other.job)
    assert other.says(1) == ["begin 0"]
    other.works[0].end()
    assert other.ended.wait(30)
    assert not run.ended.is_set()
    run.works[0].end()
    assert run.ended.wait(30)


def test_what_is_not_done_when_it_is_due_is_finished_all_the_same(slow: MakeSlow) -> None:
    run = Elsewhere([slow(within=0.02), slow(within=-1)])
    run.workers.submit(run.job)
    assert sorted(run.says(4)) == ["begin 0", "begin 1", "finish 0", "finish 1"]
    assert run.ended.wait(30)


def test_of_items_that_one_process_has_the_first_is_finished_first(slow: MakeSlow) -> None:
    shared = slow()
    run = Elsewhere([shared, shared])
    run.workers.submit(run.job)
    assert run.says(2) == ["begin 0", "begin 1"]
    shared.end()
    assert run.says(2) == ["finish 0", "finish 1"]
    assert run.ended.wait(30)


class Moved(Slow):
    """Work that is given to another process when it is late."""

    def late(self) -> bool:
        self.due += 60.0
        self.end()
        return False


def test_what_is_due_may_go_on_elsewhere(slow: MakeSlow) -> None:
    with closing(Moved(within=0.02)) as moved:
        run = Elsewhere([slow(), moved])
        run.workers.submit(run.job)
        assert run.says(3) == ["begin 0", "begin 1", "finish 1"]
        run.works[0].end()
        assert run.says(1) == ["finish 0"]
        assert run.ended.wait(30)


def test_a_cancelled_job_ends_when_what_was_begun_is_finished(slow: MakeSlow) -> None:
    run = Elsewhere([slow() for _ in range(BEGUN + 3)])
    run.workers.submit(run.job)
    assert run.says(BEGUN) == [f"begin {k}" for k in range(BEGUN)]
    run.job.cancel()
    assert not run.ended.is_set()
    for work in run.works:
        work.end()
    assert run.says(BEGUN) == [f"finish {k}" for k in range(BEGUN)]
    assert run.ended.wait(30)
    assert run.log.empty()


def test_workers_that_are_stopped_end_what_they_have_begun(slow: MakeSlow) -> None:
    run = Elsewhere([slow()])
    run.workers.submit(run.job)
    assert run.says(1) == ["begin 0"]
    run.workers.stop()
    run.works[0].end()
    assert run.ended.wait(30)
    for thread in run.workers._threads:
        thread.join(30)
        assert not thread.is_alive()


# ---- items that are held ---------------------------------------------------------------------------------------------


class Holding:
    """A job whose items are held, once their work elsewhere (if any) is done; what was done together, in order."""

    def __init__(self, count: int, works: Sequence[Slow] = (), workers: int = 1) -> None:
        self.works = works
        self.groups: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.began: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.shares: list[int] = []
        self.ended = threading.Event()
        self.workers = Workers(workers, "test")
        self.job = Job(count, self.begin, time.monotonic() + 60, self.ended.set)

    def begin(self, position: int) -> Unfinished:
        self.began.put(position)
        held = Held(position, self.together, self.shares.append)
        return Begun(self.works[position], lambda: held) if self.works else held

    def together(self, positions: list[int]) -> None:
        self.groups.put(positions)

    def group(self) -> list[int]:
        return self.groups.get(timeout=30)


def test_what_a_worker_holds_is_done_together_in_order_and_only_so_much() -> None:
    run = Holding(2 * HELD + 1)
    run.workers.submit(run.job)
    assert run.ended.wait(30)
    assert [run.group() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert len(run.shares) == 2 * HELD + 1 and all(share > 0 for share in run.shares)


def test_items_of_two_jobs_are_done_together(slow: MakeSlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 60.0)
    first = Holding(1, [slow()])
    second = Holding(1, [slow()])
    theirs = Held(7, first.together, second.shares.append)
    second.job = Job(1, lambda _: Begun(second.works[0], lambda: theirs), time.monotonic() + 60, second.ended.set)
    first.workers.submit(first.job)
    first.workers.submit(second.job)
    first.works[0].end()
    second.works[0].end()
    assert sorted(first.group()) == [0, 7]
    assert first.ended.wait(30) and second.ended.wait(30)


def test_what_is_held_waits_for_what_is_begun(slow: MakeSlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 60.0)
    run = Holding(2, [slow(), slow()])
    run.workers.submit(run.job)
    run.works[1].end()
    run.works[0].end()
    assert sorted(run.group()) == [0, 1]
    assert run.ended.wait(30)


def test_what_is_held_does_not_wait_long_for_what_is_begun(slow: MakeSlow) -> None:
    run = Holding(2, [slow(), slow()])
    run.workers.submit(run.job)
    run.works[0].end()
    assert run.group() == [0]
    assert not run.ended.is_set()
    run.works[1].end()
    assert run.group() == [1]
    assert run.ended.wait(30)


def test_workers_share_a_batch() -> None:
    run = Holding(2 * HELD, workers=2)
    both = threading.Barrier(2)
    together = run.together

    def meet(positions: list[int]) -> None:
        both.wait(30)
        together(positions)

    run.together = meet  # type: ignore[method-assign]
    run.workers.submit(run.job)
    # Neither has all of it: each waits for the other before its first group is done.
    assert sorted(run.group() + run.group()) == list(range(2 * HELD))
    assert run.ended.wait(30)


def test_a_cancelled_job_ends_when_what_is_held_is_finished(slow: MakeSlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 60.0)
    run = Holding(5, [slow() for _ in range(5)])
    run.workers.submit(run.job)
    run.works[0].end()
    assert [run.began.get(timeout=30) for _ in range(3)] == [0, 1, 2]
    run.job.cancel()
    run.workers.stop()
    for work in run.works[1:]:
        work.end()
    assert sorted(run.group()) == [0, 1, 2]
    assert run.ended.wait(30)
    assert run.began.empty()


def test_a_worker_whose_items_take_long_together_is_stuck() -> None:
    run = Holding(1)
    entered, release = threading.Event(), threading.Event()

    def hang(positions: list[int]) -> None:
        entered.set()
        assert release.wait(30)

    run.together = hang  # type: ignore[method-assign]
    run.workers.submit(run.job)
    assert entered.wait(30)
    assert run.workers.stuck(seconds=-1.0) == 1
    release.set()
    assert run.ended.wait(30)
    # A worker ends the job before it says that it is free.
    wait_for(lambda: run.workers.stuck(seconds=-1.0) == 0)


def test_what_was_held_may_be_begun_or_held_again(slow: MakeSlow) -> None:
    work = slow()
    run = Holding(0)
    last = Held(2, run.groups.put, run.shares.append)
    chain = Held(1, run.groups.put, lambda share: Begun(work, lambda: last))
    run.job = Job(1, lambda _: chain, time.monotonic() + 60, run.ended.set)
    run.workers.submit(run.job)
    assert run.groups.get(timeout=30) == [1]
    assert not run.ended.is_set()
    work.end()
    assert run.groups.get(timeout=30) == [2]
    assert run.ended.wait(30)
    assert finished(chain) is None
    assert [run.groups.get(timeout=30) for _ in range(2)] == [[1], [2]]
