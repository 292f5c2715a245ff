"""Puts inputs that wait together into one inference; an input that finds the model idle goes alone and at once.

There is no thread of its own and no timer: a thread whose input arrives while a run may start leads it; the others
sleep until their result is there, or until it is their turn to lead a run with whatever waits then. So batches grow
with the load and are of one when there is none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from seawall.core.errors import Poison

Input = NDArray[np.float32]
#: A model's probabilities for one input, one a class.
Row = Sequence[float]


class Batcher:
    """Calls ``run`` with batches. Safe for threads.

    Args:
        run: n inputs to n rows; a Poison is one input's fault, and is brought home to that input alone.
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

    def __call__(self, tensor: Input) -> Row:
        """One input's row.

        Args:
            tensor: 1 x the model's input shape.

        Raises:
            Poison: as ``run``, for this input alone.
        """
        if self._size == 1:
            return self._run(tensor)[0]
        entry = _Entry(tensor)
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
        return entry.row

    def _lead(self, own: _Entry) -> None:
        """Run one batch, ``own`` and what waits, then let the first of those that came meanwhile lead."""
        with self._lock:
            if self._wait:
                self._arrived.wait_for(lambda: len(self._waiting) >= self._size - 1, self._wait)
            others = [self._waiting.popleft() for _ in range(min(self._size - 1, len(self._waiting)))]
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

    def _answer(self, batch: list[_Entry]) -> None:
        """Give every entry its row or its error. Never raises: the others wait for it."""
        try:
            rows = self._run(np.concatenate([entry.tensor for entry in batch]) if len(batch) > 1 else batch[0].tensor)
            for entry, row in zip(batch, rows, strict=True):
                entry.row = row
        except Poison as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            # One input may have spoilt the run for all: each alone, so that only that one errs.
            for entry in batch:
                self._answer([entry])
        except BaseException as error:
            for entry in batch:
                entry.error = error


class _Entry:
    __slots__ = ("error", "leads", "row", "settled", "tensor")

    def __init__(self, tensor: Input) -> None:
        self.tensor = tensor
        self.settled = threading.Event()
        #: Set before ``settled`` when the thread that waits is to lead instead of having its result.
        self.leads = False
        self.error: BaseException | None = None
        self.row: Row = ()
