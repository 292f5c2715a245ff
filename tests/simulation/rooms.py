"""The real engines as processes that are killed, stopped, restarted and multiplied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from opentelemetry.trace import SpanKind

from seawall.aggregator.engine import Engine as Aggregator
from seawall.core.decide import Written
from seawall.core.errors import Retryable, SeawallError
from seawall.relay.engine import Engine as Relay
from seawall.runtime.telemetry import BatchSpan, batch_span
from tests.simulation.cluster import Cluster, Connection

#: How long the group waits for a member that gives no sign of life.
SESSION_SECONDS = 6.0
_STOP_SECONDS = 60.0

Engine = Relay | Aggregator
Build = Callable[[Connection, "Listening"], Engine]


class Listening:
    """An observer of an engine."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def batch(self, records: object) -> BatchSpan:
        return batch_span("process", SpanKind.CONSUMER)

    def event(self, name: str, **fields: Any) -> None:
        self._say(f"{name} {fields}")

    def ready(self, ready: bool) -> None:
        return None

    def decided(self, decisions: Sequence[Written]) -> None:
        return None


class Room:
    """One process under its supervisor.

    Args:
        name: of this process, for the story.
        group: its consumer group.
        build: makes its engine, for each start anew.
        say: takes what happens, for the story.
    """

    def __init__(self, cluster: Cluster, name: str, group: str, build: Build, say: Callable[[str], None]) -> None:
        self.name = name
        self.group = group
        self._cluster = cluster
        self._build = build
        self._say = say
        self._wanted = False
        self.engine: Engine | None = None
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def wanted(self) -> bool:
        """Started, and not told to stop."""
        return self._wanted

    @property
    def is_gone(self) -> bool:
        """Never started, or stopped and ended."""
        return self._supervisor is None or self._supervisor.done()

    def start(self) -> None:
        """Start it, and again whenever it ends, until `stop`."""
        self._wanted = True
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise())

    async def _supervise(self) -> None:
        while self._wanted:
            connection = self._connection = Connection(self._cluster)
            engine = self.engine = self._build(connection, Listening(self._tell))
            self._task = asyncio.get_running_loop().create_task(engine.run())
            await asyncio.wait([self._task])
            await _end_tasks(engine)
            if not connection.dead:
                self._judge(connection)
            if self._wanted:
                await asyncio.sleep(0.5)

    def _judge(self, connection: Connection) -> None:
        """An engine may end when it is told to, and where the broker is away when it starts."""
        error = None if self._task is None or self._task.cancelled() else self._task.exception()
        if error is None or (isinstance(error, Retryable) and not connection.joined):
            return
        if not isinstance(error, SeawallError) or self._wanted:
            self._cluster.checks.fail(f"{self.name} ended with {type(error).__name__}: {error}")

    def _tell(self, what: str) -> None:
        self._say(f"{self.name}: {what}")
        if what.startswith(("crashed", "halted")):
            self._cluster.checks.fail(f"{self.name} {what}")

    async def kill(self) -> None:
        """As kill -9 does; its group learns of it when the session ends. The supervisor starts it again."""
        connection, task = self._connection, self._task
        if connection is None or task is None or task.done():
            return
        connection.kill()
        if isinstance(self.engine, Relay):
            # Its timers and callbacks end with it, too.
            self.engine._pending.clear()
        task.cancel()
        self._cluster.spawn(self._expire())

    async def _expire(self) -> None:
        await asyncio.sleep(SESSION_SECONDS)
        await self._cluster.broker.expire_sessions(self.group)

    async def freeze(self, seconds: float) -> None:
        """SIGSTOP for so long; the group goes on without it if that is longer than its session."""
        connection = self._connection
        if connection is None or connection.dead:
            return
        connection.freeze()
        self._cluster.spawn(self._thaw(connection, seconds))

    async def _thaw(self, connection: Connection, seconds: float) -> None:
        if seconds > SESSION_SECONDS:
            await asyncio.sleep(SESSION_SECONDS)
            for member in connection.members:
                self._cluster.spawn(self._cluster.broker.end_session(self.group, member))
            await asyncio.sleep(seconds - SESSION_SECONDS)
        else:
            await asyncio.sleep(seconds)
        connection.thaw()

    async def stop(self) -> None:
        """SIGTERM; returns when it is gone for good."""
        self._wanted = False
        if self._connection is not None:
            self._connection.thaw()
        if self.engine is not None:
            self.engine.stop()
        if self._supervisor is not None:
            ended, late = await asyncio.wait([self._supervisor], timeout=_STOP_SECONDS)
            for supervisor in ended:
                supervisor.result()
            if late:
                self._cluster.checks.fail(f"{self.name} did not stop within {_STOP_SECONDS:.0f} s")
                self._supervisor.cancel()
                if self._task is not None:
                    self._task.cancel()
        # A static member keeps its partitions until its session ends.
        self._cluster.spawn(self._expire())


async def _end_tasks(engine: Engine) -> None:
    """What a dead process leaves behind would go on here, where no process ends."""
    if isinstance(engine, Relay):
        engine._pending.clear()
        if engine._linger is not None:
            engine._linger.cancel()
    while left := [task for task in engine._tasks if not task.done()]:
        for task in left:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*left, return_exceptions=True)
