"""Puts what several threads bring into one inference; what finds the model idle goes alone and at once.

There is no thread of its own and no timer: a thread that comes while a run may start leads it; the others sleep until
their rows are there, or until it is their turn to lead a run with whatever waits then. So batches grow with the load.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from seawall.classification.preprocess import Input
from seawall.core.errors import Poison

#: A model's probabilities for one input, one a class.
Row = Sequence[float]


class Batcher:
    """Calls ``run`` with batches. Safe for threads.

    Args:
        run: n inputs to n rows; a Poison is one input's fault, and is brought home to the thread that brought it.
        size: inputs of one batch, at most.
        runs: batches on their way at a time, at most.
        wait: seconds that a batch that is not full waits for more.
    """

    def __init__(self, run: Callable[[Input], Sequence[Row]], size: int, runs: int, wait: float = 0.0) -> None:
        self._run = run
        self._size = size
        self._free = runs
        self._wait = wait
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._waiting: deque[_Entry] = deque()

    def __call__(self, inputs: Input) -> Sequence[Row]:
        """A row for each input.

        Args:
            inputs: at most ``size`` of them, contiguous.

        Raises:
            Poison: as ``run``, of one of these inputs.
        """
        if self._size == 1:
            return self._run(inputs)
        entry = _Entry(inputs)
        with self._lock:
            lead = self._free > 0
            if lead:
                self._free -= 1
            else:
                self._waiting.append(entry)
                self._arrived.notify()
        if not lead:
            entry.settled.wait()
        if lead or entry.leads:
            self._lead(entry)
        if entry.error is not None:
            raise entry.error
        return entry.rows

    def _lead(self, own: _Entry) -> None:
        """Run one batch, ``own`` and what waits, then let the first of those that came meanwhile lead."""
        room = self._size - len(own.inputs)
        with self._lock:
            if self._wait:
                self._arrived.wait_for(lambda: self._waiting_inputs() >= room, self._wait)
            others = []
            while self._waiting and (room := room - len(self._waiting[0].inputs)) >= 0:
                others.append(self._waiting.popleft())
        self._answer([own, *others])
        for entry in others:
            entry.settled.set()
        with self._lock:
            if self._waiting:
                following = self._waiting.popleft()
                following.leads = True
                following.settled.set()
            else:
                self._free += 1

    def _waiting_inputs(self) -> int:
        return sum(len(entry.inputs) for entry in self._waiting)

    def _answer(self, batch: list[_Entry]) -> None:
        """Give every entry its row or its error. Never raises: the others wait for it."""
        try:
            inputs = batch[0].inputs if len(batch) == 1 else np.concatenate([entry.inputs for entry in batch])
            rows = self._run(inputs)
            for entry in batch:
                count = len(entry.inputs)
                entry.rows, rows = rows[:count], rows[count:]
        except Poison as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            # One may have spoilt the run for all: each alone, so that only that one errs.
            for entry in batch:
                self._answer([entry])
        except BaseException as error:
            for entry in batch:
                entry.error = error


class _Entry:
    __slots__ = ("error", "inputs", "leads", "rows", "settled")

    def __init__(self, inputs: Input) -> None:
        self.inputs = inputs
        self.settled = threading.Event()
        #: Set before ``settled`` when the thread that waits is to lead instead of having its result.
        self.leads = False
        self.error: BaseException | None = None
        self.rows: Sequence[Row] = ()
