"""A few threads that work through batches, item by item, and can be left behind.

Why not a ThreadPoolExecutor: a hung scorer must not keep the process from ending (these threads are daemons), a batch
should cost one hand-over and one wake-up however many items it has, and a caller that gives up must stop the work at
the next item.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable


class Job:
    """One batch on its way through the workers. Workers take items one by one, so that a slow one holds up only itself.

    Args:
        count: how many items there are.
        work: called with each item's position; it must not raise.
        deadline: monotonic instant (seconds) after which no further item is begun.
        done: called once, by a worker, when no worker is on this job any more and none will be.
    """

    __slots__ = ("_active", "_cancelled", "_done", "_lock", "_next", "_work", "count", "deadline", "started")

    def __init__(self, count: int, work: Callable[[int], None], deadline: float, done: Callable[[], None]) -> None:
        self.count = count
        self.deadline = deadline
        #: Monotonic instant at which the first item was begun; 0 before.
        self.started = 0.0
        self._work = work
        self._done = done
        self._next = itertools.count()
        self._cancelled = False
        self._active = 0
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Begin no further item."""
        self._cancelled = True

    def expect(self, workers: int) -> None:
        """Say how many workers will call `run`."""
        self._active = workers

    def run(self, began: Callable[[float], None]) -> None:
        """Take items until none is left, the deadline has passed or the job is cancelled."""
        count, deadline, work, following = self.count, self.deadline, self._work, self._next
        while not self._cancelled:
            position = next(following)
            if position >= count:
                break
            now = time.monotonic()
            if now >= deadline:
                break
            if not self.started:
                self.started = now
            began(now)
            work(position)
        began(0.0)
        with self._lock:
            self._active -= 1
            last = self._active == 0
        if last:
            self._done()


class Workers:
    """``count`` daemon threads and the queue before them. The queue is bounded by whoever admits jobs."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        #: Monotonic instant at which each worker began the item it is on; 0 when it is on none.
        self._began = [0.0] * count
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=f"{name}-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Put ``job`` before as many workers as it can use."""
        share = min(self.count, job.count)
        job.expect(share)
        for _ in range(share):
            self._queue.put(job)

    def stuck(self, seconds: float) -> int:
        """How many workers have been on one item for longer than ``seconds``."""
        limit = time.monotonic() - seconds
        return sum(1 for began in self._began if 0.0 < began < limit)

    def stop(self) -> None:
        """Let each worker end after the jobs that were submitted before. Does not wait."""
        for _ in self._threads:
            self._queue.put(None)

    def _run(self, index: int) -> None:
        began = self._began

        def note(instant: float) -> None:
            began[index] = instant

        while (job := self._queue.get()) is not None:
            job.run(note)
