"""Ends or disturbs a room from inside, at a point that no signal from outside could hit. Armed by the environment.

KILL_POINT    where, one of POINTS
KILL_MARKER   a file; it is made just before the kill, and where it is there nothing is killed: once, not for ever
CLOCK         "+300", "-300" (seconds) or "strobe:300" (every second reading so far ahead, the others so far behind)
REPLAY        any value: the aggregator reads under a group of its own, from the first record on
SIGNALS_FIRST a number: the aggregator reads no generation before so many signals
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seawall.aggregator import engine as aggregator_engine
from seawall.aggregator import service as aggregator_service
from seawall.core import decide
from seawall.core.clock import SystemClock
from seawall.core.join import Completed
from seawall.core.policy import Lineup
from seawall.relay import engine as relay_engine
from seawall.runtime.broker import Output, TopicPartition
from seawall.runtime.kafka.consumer import KafkaConsumer
from seawall.runtime.kafka.producer import KafkaProducer

Aggregator: Any = aggregator_engine.Engine
Relay: Any = relay_engine.Engine


def kill_once() -> None:
    """SIGKILL to this process, if none was sent before."""
    try:
        os.close(os.open(os.environ["KILL_MARKER"], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def arm() -> None:
    """Do what the environment says."""
    if point := os.environ.get("KILL_POINT"):
        POINTS[point]()
    if clock := os.environ.get("CLOCK"):
        _set_clock(clock)
    if os.environ.get("REPLAY"):
        aggregator_service.ROOM = "replay"
    if count := os.environ.get("SIGNALS_FIRST"):
        _signals_first(int(count))


# ---- points --------------------------------------------------------------------------------------------------------


def _relay_scored() -> None:
    """After the RPC, before the produce."""
    Relay._emit = _before(Relay._emit)


def _relay_acknowledged() -> None:
    """After the broker has acknowledged signals, before the commit: a relay commits nothing else."""
    consumer: Any = KafkaConsumer
    consumer.commit = _before(consumer.commit)


def _relay_produced() -> None:
    """The broker has the signals; this process does not know."""
    _after_sending("signals.v1")


def _relay_committed() -> None:
    """Just committed: whatever is committed must be acknowledged by now."""
    _after_commit(lambda: True)


def _aggregator_read() -> None:
    """All is read that a decision needs; it is not decided."""
    module: Any = decide
    joint = decide.joint

    def killed(completed: Completed, lineup: Lineup) -> decide.Written:
        kill_once()
        return joint(completed, lineup)

    module.joint = killed


def _aggregator_decided() -> None:
    """Decided, not produced."""
    Aggregator._hand_over = _before(Aggregator._hand_over, lambda outbox: bool(outbox.decisions))


def _aggregator_produced() -> None:
    """The broker has the decisions; this process does not know."""
    _after_sending("decisions.v1")


def _aggregator_acknowledged() -> None:
    """This process knows that the broker has the decisions, and has not committed."""
    acknowledged = _note_acknowledged()
    consumer: Any = KafkaConsumer
    consumer.commit = _before(consumer.commit, lambda offsets: bool(acknowledged))


def _aggregator_committed() -> None:
    """Committed, with decisions among what was settled."""
    acknowledged = _note_acknowledged()
    _after_commit(lambda: bool(acknowledged))


def _aggregator_held() -> None:
    """A HOLD is acknowledged, its next attempt not written."""
    rescan = Aggregator._rescan

    def killed(self: Any, *arguments: Any) -> Any:
        kill_once()
        return rescan(self, *arguments)

    Aggregator._rescan = killed


def _aggregator_deadline() -> None:
    """A Deadline is written, and not read."""
    _after_sending("signals.v1")


POINTS: dict[str, Callable[[], None]] = {
    "relay.scored": _relay_scored,
    "relay.produced": _relay_produced,
    "relay.acknowledged": _relay_acknowledged,
    "relay.committed": _relay_committed,
    "aggregator.read": _aggregator_read,
    "aggregator.decided": _aggregator_decided,
    "aggregator.produced": _aggregator_produced,
    "aggregator.acknowledged": _aggregator_acknowledged,
    "aggregator.committed": _aggregator_committed,
    "aggregator.held": _aggregator_held,
    "aggregator.deadline": _aggregator_deadline,
}


def _before(method: Any, condition: Callable[..., bool] = lambda *arguments: True) -> Any:
    async def killed(self: Any, *arguments: Any, **options: Any) -> Any:
        if condition(*arguments, **options):
            kill_once()
        return await method(self, *arguments, **options)

    return killed


def _after_commit(due: Callable[[], bool]) -> None:
    commit = KafkaConsumer.commit

    async def killed(self: KafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        was_due = due()
        await commit(self, offsets)
        if was_due:
            kill_once()

    consumer: Any = KafkaConsumer
    consumer.commit = killed


def _after_sending(topic: str) -> None:
    send = KafkaProducer.send

    async def killed(self: KafkaProducer, outputs: Sequence[Output]) -> None:
        await send(self, outputs)
        if any(output.topic.endswith(topic) for output in outputs):
            kill_once()

    producer: Any = KafkaProducer
    producer.send = killed


def _note_acknowledged() -> list[int]:
    """A list that is not empty once the engine knows of an acknowledged decision."""
    acknowledged: list[int] = []
    deliver = Aggregator._deliver

    async def noted(self: Any, outbox: Any) -> None:
        await deliver(self, outbox)
        if outbox.decisions:
            acknowledged.append(len(outbox.decisions))

    Aggregator._deliver = noted
    return acknowledged


# ---- time, and order -------------------------------------------------------------------------------------------------


def _set_clock(setting: str) -> None:
    kind, _, seconds = setting.rpartition(":")
    offset = int(float(seconds) * 1_000_000_000)
    readings = 0

    def now_nanos(_: SystemClock) -> int:
        nonlocal readings
        readings += 1
        return time.time_ns() + (-offset if kind and readings % 2 else offset)

    clock: Any = SystemClock
    clock.now_nanos = now_nanos


def _signals_first(count: int) -> None:
    bound = Aggregator._bound

    def held_back(self: Any) -> None:
        if self.stats.signals < count:
            self._consumer.pause([TopicPartition(self._generations, number) for number in self._partitions])
        else:
            bound(self)

    Aggregator._bound = held_back
