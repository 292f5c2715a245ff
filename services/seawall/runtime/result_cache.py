"""Results by what they rest on. Bounded; the same content that comes many times at once is scored once."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class ResultCache(Generic[Result]):
    """The results used last. Safe for threads.

    Args:
        size: results kept; 0 keeps none, and nothing waits for another.
        patience: seconds to wait for another thread's result before working it out oneself: a thread that hangs on a
            picture must not hold those that bring the same one.
    """

    def __init__(self, size: int, patience: float = 5.0) -> None:
        self.size = size
        self._patience = patience
        self._lock = threading.Lock()
        self._results: OrderedDict[Hashable, Result] = OrderedDict()
        self._working: dict[Hashable, threading.Event] = {}

    def get(self, key: Hashable, work: Callable[[], Result], keep: Callable[[Result], bool]) -> tuple[Result, bool]:
        """The result for ``key``, and whether it was there or another thread's.

        Args:
            work: makes it. What it raises is raised here, and nothing is kept.
            keep: whether a result may be given again.
        """
        if not self.size:
            return work(), False
        mine = threading.Event()
        until = time.monotonic() + self._patience
        while True:
            with self._lock:
                if (found := self._find(key)) is not None:
                    return found, True
                theirs = self._working.setdefault(key, mine)
            if theirs is mine:
                break
            if not theirs.wait(until - time.monotonic()):
                return work(), False
        try:
            result = work()
            if keep(result):
                self.keep(key, result)
            return result, False
        finally:
            with self._lock:
                del self._working[key]
            mine.set()

    def find(self, key: Hashable) -> Result | None:
        """The result for ``key``, if it is there."""
        with self._lock:
            return self._find(key)

    def keep(self, key: Hashable, result: Result) -> None:
        """Have ``result`` found from now on."""
        if not self.size:
            return
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while len(self._results) > self.size:
                self._results.popitem(last=False)

    def _find(self, key: Hashable) -> Result | None:
        found = self._results.get(key)
        if found is not None:
            self._results.move_to_end(key)
        return found

    def __len__(self) -> int:
        return len(self._results)
