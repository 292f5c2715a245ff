"""The life that the engines of the stream path lead: turns until they are told to stop, a stand-still where a person
must look, outputs that are sent until the broker has acknowledged them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from seawall.core.errors import Fatal, Retryable, SeawallError
from seawall.runtime.broker import Consumer, Output, Producer

#: How often an engine that stands still says so.
_HALTED_SECONDS = 10.0


class Observer(Protocol):
    """What an engine tells the outside. Must not block or raise."""

    def event(self, name: str, **fields: Any) -> None:
        """Something an operator may ask about."""
        ...

    def ready(self, ready: bool) -> None:
        """The engine does its work, or has stopped doing so."""
        ...


class StreamEngine(ABC):
    """Runs until it is told to stop. What it does meanwhile is the subclass's: a turn, and how it commits.

    Args:
        consumer, producer: its own; they are started and stopped with it.
        retry_seconds, max_retry_seconds: the pause before a refused send is tried again; it doubles up to the second.
        revoke_seconds: how long tasks may take to end when partitions go, or everything does.
    """

    _observer: Observer
    #: What is kept of each partition that is ours.
    _partitions: Mapping[Any, object]

    def __init__(
        self,
        *,
        consumer: Consumer,
        producer: Producer,
        retry_seconds: float,
        max_retry_seconds: float,
        revoke_seconds: float,
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._retry_seconds = retry_seconds
        self._max_retry_seconds = max_retry_seconds
        self._revoke_seconds = revoke_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._fatal: SeawallError | None = None
        #: Sends that the broker has refused and that are tried again.
        self._blocked = 0

    @abstractmethod
    async def _turn(self) -> None:
        """Do some work; return within a poll's wait."""

    @abstractmethod
    async def _commit(self, partitions: Collection[Any]) -> None:
        """Commit what is done of these partitions, as far as they are ours."""

    async def run(self) -> None:
        """Work until ``stop`` is called, then finish what is in flight and commit.

        Raises:
            Fatal: what it had to stand still for, once it has been told to stop (until then it is alive, not ready).
        """
        await self._producer.start()
        await self._consumer.start()
        try:
            while not self._stopping.is_set():
                if self._fatal is not None:
                    await self._stand_still(self._fatal)
                    break
                await self._turn()
            await self._finish()
        finally:
            self._observer.ready(False)
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._consumer.stop()
            await self._producer.stop()
        if self._fatal is not None:
            raise self._fatal

    def stop(self) -> None:
        """Ask ``run`` to end. Safe in a signal handler of the loop."""
        self._stopping.set()

    async def _finish(self) -> None:
        await self._tasks_end()
        await self._commit(list(self._partitions))

    async def _stand_still(self, fatal: SeawallError) -> None:
        """Not ready, still alive, nothing moves: a person has to look."""
        self._observer.ready(False)
        while not self._stopping.is_set():
            self._observer.event("halted", reason=fatal.reason, detail=fatal.detail)
            self._consumer.pause(self._consumer.assignment())
            try:
                await self._consumer.poll(max_records=1, timeout=0)
            except Retryable as error:
                self._observer.event("poll_failed", reason=error.reason)
            await self._pause(_HALTED_SECONDS)

    def _halt(self, error: SeawallError) -> None:
        """Stand still from the next turn on. The first reason is the one that is told."""
        if self._fatal is None:
            self._fatal = error
        self._observer.ready(False)

    def _tell_ready(self) -> None:
        self._observer.ready(bool(self._partitions) and not self._blocked and self._fatal is None)

    async def _pause(self, seconds: float) -> None:
        """Wait; a request to stop ends the wait."""
        try:
            await asyncio.wait_for(self._stopping.wait(), timeout=seconds)
        except TimeoutError:
            return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it beside the turns. Should it fail, the engine halts."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # A fault of ours, not of a record: stop rather than lose count of what is in flight.
        if not isinstance(error, SeawallError):
            self._observer.event("crashed", error=error)
        if not isinstance(error, Fatal):
            error = Fatal("INTERNAL", f"the room failed ({type(error).__name__}): see the log, then restart it")
        self._halt(error)

    async def _tasks_end(self) -> None:
        """Let tasks end, within bounds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._revoke_seconds)

    async def _send(self, outputs: Sequence[Output]) -> None:
        """Send until the broker has acknowledged: while it is away nothing moves, and nothing is lost.

        Raises RecordTooLarge as the producer does; the other outputs are acknowledged then.
        """
        delay = self._retry_seconds
        blocked = False
        try:
            while True:
                try:
                    await self._producer.send(outputs)
                    return
                except Retryable as error:
                    # Until it is acknowledged: the next try may take as long as the delivery deadline.
                    self._blocked += not blocked
                    blocked = True
                    self._tell_ready()
                    self._observer.event("produce_failed", reason=error.reason, records=len(outputs))
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, self._max_retry_seconds)
        finally:
            self._blocked -= blocked
