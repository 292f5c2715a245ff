from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

import pytest

from seawall.runtime.batch_service import AdaptiveLimit
from seawall.runtime.workers import BEGUN, Begun, Job, Workers


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
    assert run.workers.stuck(seconds=-1.0) == 0


class Slow:
    """Work elsewhere that ends when it is told to."""

    def __init__(self, within: float = 60.0) -> None:
        self.due = time.monotonic() + within
        self._ours, self._theirs = socket.socketpair()

    def fileno(self) -> int:
        return self._ours.fileno()

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
