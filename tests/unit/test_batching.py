from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from seawall.classification.batching import Batcher, Row
from seawall.core.errors import Poison
from tests.support.waiting import wait_for

WAIT = 20.0


def tensor(*values: float) -> NDArray[np.float32]:
    return np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)


class Runs:
    """Twice the input as rows; each run waits until it is let go."""

    def __init__(self, bad: float | None = None) -> None:
        self.sizes: list[int] = []
        self.bad = bad
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, batch: NDArray[np.float32]) -> list[list[float]]:
        self.sizes.append(len(batch))
        self.started.release()
        assert self.go.acquire(timeout=WAIT)
        if self.bad is not None and (batch[:, 0] == self.bad).any():
            raise Poison("INFERENCE_FAILED", "this input is beyond the model")
        rows: list[list[float]] = (batch * 2).tolist()
        return rows

    def let(self, runs: int) -> None:
        for _ in range(runs):
            self.go.release()


def together(
    batcher: Batcher, runs: Runs, values: Sequence[float], let: Callable[[], None]
) -> list[Future[Sequence[Row]]]:
    """The first input begins a run; the others arrive while it is on its way."""
    with ThreadPoolExecutor(len(values)) as pool:
        futures = [pool.submit(batcher, tensor(values[0]))]
        assert runs.started.acquire(timeout=WAIT)
        futures += [pool.submit(batcher, tensor(value)) for value in values[1:]]
        waiting = batcher._waiting
        wait_for(lambda: len(waiting) == len(values) - 1)
        let()
    return futures


def test_an_idle_model_takes_one_input_at_once() -> None:
    runs = Runs()
    runs.let(1)
    assert Batcher(runs, size=8, runs=1)(tensor(3)) == [[6, 6]]
    assert runs.sizes == [1]


def test_what_waits_during_a_run_goes_together_and_each_gets_its_own_row() -> None:
    runs = Runs()
    batcher = Batcher(runs, size=4, runs=1)
    futures = together(batcher, runs, range(8), lambda: runs.let(8))
    assert [future.result()[0][0] for future in futures] == [2.0 * value for value in range(8)]
    assert runs.sizes == [1, 4, 3]
    runs.let(1)
    assert batcher(tensor(1)) == [[2, 2]]


def test_what_one_thread_brings_stays_together_and_no_batch_is_larger_than_it_may_be() -> None:
    runs = Runs()
    batcher = Batcher(runs, size=4, runs=1)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(batcher, tensor(0, 1))]
        assert runs.started.acquire(timeout=WAIT)
        for values in ((2, 3), (4, 5), (6,)):
            before = len(batcher._waiting)
            futures.append(pool.submit(batcher, tensor(*values)))
            wait_for(lambda before=before: len(batcher._waiting) > before)  # type: ignore[misc]
        runs.let(3)
        rows = [[row[0] for row in future.result(timeout=WAIT)] for future in futures]
    assert rows == [[0, 2], [4, 6], [8, 10], [12]]
    assert runs.sizes == [2, 4, 1]


def test_one_bad_input_errs_alone() -> None:
    runs = Runs(bad=3)
    futures = together(Batcher(runs, size=8, runs=1), runs, range(6), lambda: runs.let(20))
    assert isinstance(futures[3].exception(), Poison)
    assert [f.result()[0][0] for n, f in enumerate(futures) if n != 3] == [0, 2, 4, 8, 10]
    assert runs.sizes == [1, 5, 1, 1, 1, 1, 1]


def test_an_error_that_is_no_inputs_fault_reaches_everyone() -> None:
    def broken(batch: NDArray[np.float32]) -> list[list[float]]:
        raise RuntimeError("the device is gone")

    batcher = Batcher(broken, size=8, runs=1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the device is gone"):
            batcher(tensor(1))


def test_a_batch_waits_for_more_no_longer_than_it_may() -> None:
    runs = Runs()
    batcher = Batcher(runs, size=3, runs=1, wait=30.0)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(batcher, tensor(value)) for value in range(3)]
        runs.let(1)
        assert [future.result(timeout=WAIT)[0][0] for future in futures] == [0, 2, 4]
    assert runs.sizes == [3]
    runs.let(1)
    assert Batcher(runs, size=3, runs=1, wait=0.01)(tensor(5))[0][0] == 10


def test_a_batch_size_of_one_runs_as_many_at_once_as_there_are_threads() -> None:
    runs = Runs()
    batcher = Batcher(runs, size=1, runs=2)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batcher, tensor(value)) for value in (1, 2)]
        assert runs.started.acquire(timeout=WAIT) and runs.started.acquire(timeout=WAIT)
        runs.let(2)
        assert [future.result()[0][0] for future in futures] == [2, 4]
