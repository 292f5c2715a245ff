from __future__ import annotations

import threading
import time

import pytest

from seawall.runtime.batch_service import AdaptiveLimit
from seawall.runtime.workers import Job, Workers


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
