"""A few threads that work through batches, item by item, and can be left behind.

Why not a ThreadPoolExecutor: a hung scorer must not keep the process from ending (these threads are daemons), a batch
should cost one hand-over and one wake-up however many items it has, and a caller that gives up must stop the work at
the next item.

An item may be *begun*, with another process working on it, and finished later. A thread begins the next item before it
finishes one, whichever can be finished first: it hardly ever sleeps while there is work, nor does the other process,
and an item that takes long elsewhere holds up no other.

An item may also be *held*, because what is left of it costs less together with others': a thread that holds one
finishes what it has begun, and works on all that it holds when that is all, or enough, or would take long. Nothing
waits for an item that is not there yet.

Threads that finish items side by side stop each other at every call that frees the interpreter's lock: each time one
sleeps, a process that decodes runs in its place, and both find their caches cold. So of two threads that have many
items begun, one has the *floor*.
"""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

#: Items that one thread has begun and not finished, unless the last has `Elsewhere.room` for more: one to finish, and
#: one ahead. With more, a thread would hold what another has time for.
BEGUN: Final = 2
#: Items that one thread holds, at most. An inference of four pictures costs 8 % less than four of one, of eight hardly
#: less than that, and the first of them waits for the last.
HELD: Final = 4
#: How long what is held waits for the next of the items that are begun (seconds): twice what a photograph takes to
#: decode. For one that takes longer the others would wait for longer than they gain.
PATIENCE: Final = 0.002
#: How long a thread waits for the floor (seconds): longer than another takes for what it was woken for.
_FLOOR_SECONDS: Final = 0.05


class Elsewhere(Protocol):
    """Work in another process."""

    @property
    def due(self) -> float:
        """Monotonic instant at which `late` wants to be called."""
        ...

    def late(self) -> bool:
        """`due` has passed; whether waiting is over. If not, it may be another process's work now."""
        ...

    def fileno(self) -> int:
        """A descriptor that can be read when the work is done; negative: there is nothing to wait for."""
        ...

    def ready(self) -> bool:
        """The descriptor can be read; whether the work is done. If not, it cannot be read any more."""
        ...

    @property
    def room(self) -> bool:
        """Whether a thread that began this last may begin more than `BEGUN`: items so small that it matters more how
        often the two wake each other."""
        ...


class Begun(NamedTuple):
    """An item whose work goes on elsewhere."""

    work: Elsewhere
    #: Waits for it if need be and does the rest, or what comes next. Must be called, whatever has become of the item.
    finish: Callable[[], Any]


class Held(NamedTuple):
    """An item of which something is left that is better done for several at once."""

    work: Any
    #: Does it, for the ``work`` of every item held. It must not raise.
    together: Callable[[list[Any]], object]
    #: Does the rest, called with the item's share of the time that ``together`` took (nanoseconds).
    finish: Callable[[int], Any]


#: An item that is not done yet.
Unfinished = Begun | Held


def finished(item: Any) -> Any:
    """What comes of an item, alone and in this thread."""
    while isinstance(item, Unfinished):
        if isinstance(item, Held):
            item.together([item.work])
            item = item.finish(0)
        else:
            item = item.finish()
    return item


class Job:
    """One batch on its way through the workers. Workers take items one by one, so that a slow one holds up only itself.

    Args:
        count: how many items there are.
        work: called with each item's position: does its work, or begins it. It must not raise, nor may what finishes
            it; that gives None, or what is still to be finished.
        deadline: monotonic instant (seconds) after which no further item is begun.
        done: called once, by a worker, when no worker is on this job any more and none will be.
    """

    __slots__ = ("_cancelled", "_done", "_held", "_lock", "_next", "_work", "count", "deadline", "started")

    def __init__(
        self, count: int, work: Callable[[int], Unfinished | None], deadline: float, done: Callable[[], None]
    ) -> None:
        self.count = count
        self.deadline = deadline
        #: Monotonic instant at which the first item was begun; 0 before.
        self.started = 0.0
        self._work = work
        self._done = done
        self._next = itertools.count()
        self._cancelled = False
        self._held = 0
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Begin no further item."""
        self._cancelled = True

    def take(self, now: float) -> int | None:
        """The position of an item for the caller to `begin`; None: none is left, the deadline has passed or the job is
        cancelled."""
        position = next(self._next)
        if self._cancelled or position >= self.count or now >= self.deadline:
            return None
        if not self.started:
            self.started = now
        return position

    def begin(self, position: int) -> Unfinished | None:
        """Do the item's work, or begin it."""
        return self._work(position)

    def hold(self, times: int = 1) -> None:
        """The job does not end before as many calls of `release`."""
        with self._lock:
            self._held += times

    def release(self) -> None:
        """See `hold`."""
        with self._lock:
            self._held -= 1
            last = self._held == 0
        if last:
            self._done()


class Workers:
    """``count`` daemon threads and the queue before them. The queue is bounded by whoever admits jobs."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._lock = threading.Lock()
        #: A job stands here once for each worker that is to join it.
        self._queue: deque[Job] = deque()
        #: Those who sleep.
        self._asleep: list[_Bell] = []
        self._stopped = False
        #: Monotonic instant at which each worker began the item it is on; 0 when it is on none.
        self._began = [0.0] * count
        floors = [threading.Lock() for _ in range(0, count, 2)]
        self._threads = [
            threading.Thread(
                target=self._run, args=(index, _Floor(floors[index // 2])), name=f"{name}-{index}", daemon=True
            )
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Put ``job`` before as many workers as it can use."""
        share = min(self.count, job.count)
        job.hold(share)
        with self._lock:
            self._queue.extend([job] * share)
            woken, self._asleep = self._asleep[:share], self._asleep[share:]
        for bell in woken:
            bell.ring()

    def stuck(self, seconds: float) -> int:
        """How many workers have been on one item for longer than ``seconds``."""
        limit = time.monotonic() - seconds
        return sum(1 for began in self._began if 0.0 < began < limit)

    def stop(self) -> None:
        """Let each worker end after the jobs that were submitted before. Does not wait."""
        with self._lock:
            self._stopped = True
            woken, self._asleep = self._asleep, []
        for bell in woken:
            bell.ring()

    def _run(self, index: int, floor: _Floor) -> None:
        bell = _Bell()
        mine = _Items()
        job: Job | None = None
        while True:
            if mine.room and (job := job or self._next_job()):
                now = self._began[index] = time.monotonic()
                position = job.take(now)
                if position is None:
                    job.release()
                    job = None
                elif item := job.begin(position):
                    job.hold()
                    mine.put(job, item)
            elif mine.together:
                self._began[index] = time.monotonic()
                mine.finish_held()
            elif self._stopped and not mine.begun:
                floor.leave()
                bell.close()
                return
            elif (place := self._wait(mine, bell, floor)) is not None:
                self._began[index] = time.monotonic()
                mine.finish_begun(place)
            self._began[index] = 0.0

    def _next_job(self) -> Job | None:
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def _wait(self, mine: _Items, bell: _Bell, floor: _Floor) -> int | None:
        """Sleep until one of those begun can be finished, and say which, or until there may be something else to do."""
        begun = mine.begun
        if not mine.room:
            return _ready(begun, mine.patience, floor)
        if begun and (place := _ready(begun, 0, floor)) is not None:
            return place
        with self._lock:
            if self._queue or (self._stopped and not begun):
                return None
            # Whoever has nothing to do is woken before those that wait.
            self._asleep.insert(len(self._asleep) if begun else 0, bell)
        place = _ready(begun, mine.patience, floor, bell)
        with self._lock:
            if bell in self._asleep:
                self._asleep.remove(bell)
                return place
        # Whoever took it from the list rings it.
        bell.hear()
        return place


class _Items:
    """What one thread has in hand."""

    def __init__(self) -> None:
        self.begun: deque[tuple[Job, Begun]] = deque()
        self._held: list[tuple[Job, Held]] = []
        #: Monotonic instant until which what is held waits for more.
        self._until = 0.0

    @property
    def room(self) -> bool:
        """Whether another item may be begun."""
        if self._held and len(self.begun) + len(self._held) >= HELD:
            return False
        return len(self.begun) < BEGUN or self.begun[-1][1].work.room

    @property
    def patience(self) -> float | None:
        """Seconds to wait for one of those begun; None: as long as it takes."""
        return max(self._until - time.monotonic(), 0.0) if self._held else None

    @property
    def together(self) -> bool:
        """Whether to work on what is held now."""
        held = self._held
        return bool(held) and (not self.begun or len(held) == HELD or self._until <= time.monotonic())

    def put(self, job: Job, item: Unfinished) -> None:
        """An item that is not done yet, for which the job is held."""
        if isinstance(item, Held):
            self._held.append((job, item))
            self._until = time.monotonic() + PATIENCE
        else:
            self.begun.append((job, item))

    def finish_begun(self, place: int) -> None:
        """Finish one, or bring it to where it is held."""
        job, item = self.begun[place]
        del self.begun[place]
        self._went_on(job, item.finish())

    def finish_held(self) -> None:
        """Do what is left of all that are held."""
        held, self._held = self._held, []
        start = time.perf_counter_ns()
        held[0][1].together([item.work for _, item in held])
        share = (time.perf_counter_ns() - start) // len(held)
        for job, item in held:
            self._went_on(job, item.finish(share))

    def _went_on(self, job: Job, item: Unfinished | None) -> None:
        if item is None:
            job.release()
        else:
            self.put(job, item)


class _Floor:
    """What one thread of two has while it finishes what it was woken for."""

    def __init__(self, lock: threading.Lock) -> None:
        """``lock``: of the two."""
        self._lock = lock
        self._mine = False
        self._patient = True

    def take(self) -> None:
        """Wait for it, but not for long: whoever has it may hang, or never sleep. Then go on without, and do not wait
        again before it was to be had."""
        self._mine = self._mine or self._lock.acquire(timeout=_FLOOR_SECONDS if self._patient else 0)
        self._patient = self._mine

    def leave(self) -> None:
        """Before sleeping."""
        if self._mine:
            self._mine = False
            self._lock.release()


class _Bell:
    """Wakes a thread that waits for descriptors."""

    def __init__(self) -> None:
        self._ear, self._rope = os.pipe()

    def fileno(self) -> int:
        return self._ear

    def ring(self) -> None:
        os.write(self._rope, b"!")

    def hear(self) -> None:
        """Wait for one ring."""
        os.read(self._ear, 1)

    def close(self) -> None:
        os.close(self._ear)
        os.close(self._rope)


def _ready(
    begun: deque[tuple[Job, Begun]], timeout: float | None, floor: _Floor, bell: _Bell | None = None
) -> int | None:
    """The place of one that can be finished or has waited long enough; None: the bell rang, or ``timeout`` (seconds,
    None: until the first is due) has passed. Whoever must sleep for it leaves the floor."""
    poll = select.poll()
    places: dict[int, int] = {}
    until = float("inf")
    for place, (_, item) in enumerate(begun):
        descriptor = item.work.fileno()
        if descriptor < 0:
            return place
        # Of several that the same process has, the first is answered first.
        if descriptor not in places:
            poll.register(descriptor, select.POLLIN)
            places[descriptor] = place
        until = min(until, item.work.due)
    if bell is not None:
        poll.register(bell.fileno(), select.POLLIN)
    if timeout is None and begun:
        timeout = max(until - time.monotonic(), 0.0)
    floor.leave()
    readable = poll.poll(None if timeout is None else timeout * 1000)
    if readable and len(begun) > BEGUN:
        floor.take()
    for descriptor, _ in readable:
        found = places.get(descriptor)
        if found is not None and begun[found][1].work.ready():
            return found
    now = time.monotonic()
    return next((place for place, (_, item) in enumerate(begun) if item.work.due <= now and item.work.late()), None)
