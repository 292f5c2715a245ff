"""The aggregator's engine: generations and signals in, decisions out.

    1. poll        generations.v1 and signals.v1, the same partitions of both
    2. join        core.join, one instance a partition
    3. time        generations whose budget is spent: a Deadline record into signals.v1, obeyed when it is read (1)
    4. decide      core.decide over what is joined; late signals are judged alone
    5. produce     decisions, acks=all
    6. rescan      after a HOLD, and a pause: the same generation as attempt + 1 into generations.v1
    7. settle      only now is the generation done; the watermarks of both topics follow
    8. commit      both topics in one request

State is thrown away at every crash and rebalance: the uncommitted tail of the two topics is the state.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from seawall.aggregator.recall import recall_decisions
from seawall.aggregator.settings import JoinSettings
from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import decide
from seawall.core.clock import Clock, SystemClock
from seawall.core.errors import Fatal, Poison, Retryable
from seawall.core.join import Completed, Event, Join, LateSignal, OpenGeneration, Position
from seawall.core.policy import Lineup, Rollout
from seawall.core.validate import generation_id_of, parse_generation, parse_join_record
from seawall.relay import lifecycle
from seawall.relay.dead_letters import DeadLetters, Fuse
from seawall.relay.lifecycle import StreamEngine
from seawall.relay.signals import trace_headers
from seawall.runtime.broker import Broker, Output, Record, RecordTooLarge, TopicPartition

_NANOS = 1_000_000_000
_MILLIS = 1_000_000
#: Budgets of decided generations that are kept before they are looked through, per partition.
_SPARE = 1_000
#: Pauses between tries of a send that was refused: the first, and the longest.
_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 2.0


class Observer(lifecycle.Observer, Protocol):
    """What the aggregator tells the outside."""

    def decided(self, decisions: Sequence[decide.Written]) -> None:
        """Decisions were acknowledged by the broker."""
        ...


@dataclass
class Stats:
    """Counts since the start."""

    turns: int = 0
    generations: int = 0
    signals: int = 0
    decisions: int = 0
    amendments: int = 0
    deadlines: int = 0
    rescans: int = 0
    diverted: int = 0


class Waiting(NamedTuple):
    """How much of the join is not settled."""

    #: Generations that wait for signals, signals that wait for their generation, HOLDs that wait to be scanned again.
    open: int
    early: int
    rescans: int


@dataclass
class _Partition:
    number: int
    join: Join
    #: Who judges the open generations, by offset: chosen when they are read, whatever is reloaded before they complete.
    lineups: dict[int, Lineup] = field(default_factory=dict)
    #: (due, generation offset) of every open generation and of some that are decided, seconds of the monotonic clock.
    due: list[tuple[float, int]] = field(default_factory=list)
    #: (due, generation offset, next attempt, trace context) of every HOLD that waits to be scanned again.
    rescans: list[tuple[float, int, generation_pb2.Generation, str]] = field(default_factory=list)
    committed: tuple[int, int] = (-1, -1)


@dataclass
class _Outbox:
    """Outputs of one turn, and what is settled once they are acknowledged."""

    outputs: list[Output] = field(default_factory=list)
    decisions: list[decide.Written] = field(default_factory=list)
    settle: list[Callable[[], None]] = field(default_factory=list)


class Engine(StreamEngine):
    """Runs the aggregator until it is told to stop.

    Args:
        generations_topic, signals_topic, decisions_topic: names in this lane; equal partition counts.
        member: static membership id, or None.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        rollout: Rollout,
        dead_letters: DeadLetters,
        generations_topic: str,
        signals_topic: str,
        decisions_topic: str,
        group: str,
        member: str | None,
        settings: JoinSettings,
        observer: Observer,
        clock: Clock | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            consumer=broker.consumer(group, [generations_topic, signals_topic], instance=member, listener=self),
            producer=broker.producer(),
            retry_seconds=_RETRY_SECONDS,
            max_retry_seconds=_MAX_RETRY_SECONDS,
            revoke_seconds=settings.revoke_seconds,
        )
        self._observer: Observer = observer
        self._broker = broker
        self._rollout = rollout
        self._dead_letters = dead_letters
        self._generations = generations_topic
        self._signals = signals_topic
        self._decisions = decisions_topic
        self._settings = settings
        self._clock = clock or SystemClock()
        self._monotonic = monotonic
        self._fuse = Fuse(window=settings.fuse_window, minimum=settings.fuse_minimum, share=settings.fuse_share)
        self._partitions: dict[int, _Partition] = {}
        self._send_slots = asyncio.Semaphore(settings.max_sends)
        self._next_commit = 0.0
        self._next_deadline_check = 0.0
        self.stats = Stats()

    # ---- life --------------------------------------------------------------------------------------------------

    def use(self, rollout: Rollout) -> None:
        """Judge what is read from now on by ``rollout``. Call it in the loop that ``run`` runs in.

        Generations that are open are decided by the lineup that they were opened with: which stages must report is
        part of what makes a decision, and a replay must find a decision of the same digest the same.
        """
        self._rollout = rollout

    def waiting(self) -> Waiting:
        """What is open now. May be asked by another thread."""
        states = list(self._partitions.values())
        return Waiting(
            sum(state.join.open_count for state in states),
            sum(state.join.early_count for state in states),
            sum(len(state.rescans) for state in states),
        )

    def policies(self) -> list[dict[str, str]]:
        """The bundles that judge what is read now, the one in force first, as plain data."""
        return [{"name": one.name, "version": one.version, "sha256": one.digest} for one in self._rollout.policies]

    async def _turn(self) -> None:
        self.stats.turns += 1
        await self._commit_if_due()
        self._bound()
        try:
            polled = await self._consumer.poll(
                max_records=self._settings.max_poll, timeout=self._settings.deadline_check_seconds
            )
        except Retryable as error:
            self._observer.ready(False)
            self._observer.event("poll_failed", reason=error.reason)
            await asyncio.sleep(1.0)
            return
        self._tell_ready()
        outbox = _Outbox()
        try:
            # Generations first: fewer signals have to wait. The decisions do not depend on it.
            for partition, records in sorted(polled.items(), key=lambda item: item[0][0] != self._generations):
                state = self._partitions.get(partition[1])
                if state is None:
                    continue  # revoked while the poll was on its way
                read = self._read_generation if partition[0] == self._generations else self._read_signal
                for record in records:
                    read(state, record, outbox)
            self._watch_time(outbox)
        except Fatal as error:
            self._halt(error)
        await self._hand_over(outbox)
        # In a backlog neither the poll nor the hand-over has to wait, for up to `max_sends` turns: the heartbeats would
        # miss the session, and the sends begin late.
        await asyncio.sleep(0)

    def _bound(self) -> None:
        """Pause what would grow without end. Never both topics of a partition: Deadlines ride in signals.v1, and early
        signals can only wait for generations."""
        pause: list[TopicPartition] = []
        resume: list[TopicPartition] = []
        for state in self._partitions.values():
            generations = TopicPartition(self._generations, state.number)
            signals = TopicPartition(self._signals, state.number)
            early_full = state.join.early_count >= self._settings.max_early
            open_full = state.join.open_count + len(state.rescans) >= self._settings.max_open
            (pause if early_full else resume).append(signals)
            (pause if open_full and not early_full else resume).append(generations)
        self._consumer.pause(pause)
        self._consumer.resume(resume)

    # ---- read, join --------------------------------------------------------------------------------------------

    def _read_generation(self, state: _Partition, record: Record, outbox: _Outbox) -> None:
        self.stats.generations += 1
        position = _position(record)
        traceparent = _traceparent(record)
        try:
            generation = parse_generation(record.value)
        except Poison as error:
            events = state.join.on_malformed(position)
            if events is None:
                return
            self._follow(state, events, outbox)
            self._divert(record, error, outbox)
            generation_id = generation_id_of(record.key, record.topic, record.partition, record.offset)
            lineup = self._rollout.choose_by_id(generation_id)
            self._put(outbox, state, decide.malformed(generation_id, position, traceparent, error, lineup))
            outbox.settle.append(partial(state.join.settle, position.offset))
            return
        self._fuse.passed()
        lineup = state.lineups[position.offset] = self._rollout.choose(generation)
        self._follow(state, state.join.on_generation(generation, position, traceparent), outbox)
        if state.join.is_open(position.offset):
            heapq.heappush(state.due, (self._due(generation, lineup), position.offset))
        else:
            state.lineups.pop(position.offset, None)  # a repeat, or decided at once

    def _due(self, generation: generation_pb2.Generation, lineup: Lineup) -> float:
        """When the generation's budget is spent. Counted from when it was read, so that a backlog is worked off rather
        than held, and on the monotonic clock, which does not jump when the wall clock is set."""
        nanos = lineup.policy.budget_nanos(generation)
        if generation.HasField("deadline_time"):
            deadline = generation.deadline_time.seconds * _NANOS + generation.deadline_time.nanos
            # A platform whose clock is wrong, or that asks for a year: nothing stays open for longer than a decision is
            # remembered, or a repeat would be decided anew.
            nanos = min(deadline - self._clock.now_nanos(), int(self._settings.remember_seconds * _NANOS))
        return self._monotonic() + nanos / _NANOS

    def _read_signal(self, state: _Partition, record: Record, outbox: _Outbox) -> None:
        self.stats.signals += 1
        position = _position(record)
        try:
            body = parse_join_record(record.value, state.number)
        except Poison as error:
            if state.join.on_undecodable_signal(position):
                self._divert(record, error, outbox)
                outbox.settle.append(partial(state.join.settle_signal, position.offset))
            return
        if isinstance(body, signal_pb2.Signal):
            events = state.join.on_signal(body, position, record.value)
        else:
            events = state.join.on_deadline(body, position)
        if events:
            self._follow(state, events, outbox)

    def _divert(self, record: Record, error: Poison, outbox: _Outbox) -> None:
        self._fuse.check()
        self._fuse.diverted()
        self.stats.diverted += 1
        self._observer.event("diverted", reason=error.reason, partition=record.partition, offset=record.offset)
        outbox.outputs.append(self._dead_letters.output(record, error))

    # ---- decide ------------------------------------------------------------------------------------------------

    def _follow(self, state: _Partition, events: Sequence[Event], outbox: _Outbox) -> None:
        for event in events:
            match event:
                case Completed(joined, _):
                    offset = joined.position.offset
                    written = decide.joint(event, state.lineups.pop(offset))
                    self._put(outbox, state, written)
                    if written.head.rescanned:
                        outbox.settle.append(partial(self._plan_rescan, state, joined))
                    else:
                        outbox.settle.append(partial(state.join.settle, offset))
                case LateSignal(read):
                    lineup = self._rollout.choose_by_id(read.signal.generation_id, read.signal.tenant_id)
                    amendment = decide.amendment(read, lineup)
                    if amendment is not None:
                        self._put(outbox, state, amendment)
                        self.stats.amendments += 1
                    offset = read.position.offset
                    outbox.settle.append(partial(state.join.settle_signal, offset))

    def _put(self, outbox: _Outbox, state: _Partition, written: decide.Written) -> None:
        head = written.head
        traceparent = head.traceparent
        headers = (("traceparent", traceparent.encode()),) if traceparent else ()
        outbox.decisions.append(written)
        outbox.outputs.append(
            Output(self._decisions, state.number, head.generation_id.encode(), written.value, headers)
        )

    # ---- time --------------------------------------------------------------------------------------------------

    def _watch_time(self, outbox: _Outbox) -> None:
        now = self._monotonic()
        if now < self._next_deadline_check:
            return
        self._next_deadline_check = now + self._settings.deadline_check_seconds
        for state in self._partitions.values():
            while state.due and state.due[0][0] <= now:
                _, offset = heapq.heappop(state.due)
                joined = state.join.get_open(offset)
                if joined is not None:
                    outbox.outputs.append(self._deadline(joined))
                    self.stats.deadlines += 1
            if len(state.due) > 2 * state.join.open_count + _SPARE:
                # Of those that are decided, most long before their budget is spent.
                state.due = [one for one in state.due if state.join.is_open(one[1])]
                heapq.heapify(state.due)
            while state.rescans and state.rescans[0][0] <= now:
                _, offset, generation, traceparent = heapq.heappop(state.rescans)
                outbox.outputs.append(self._rescan(generation, state.number, traceparent))
                outbox.settle.append(partial(state.join.settle, offset))
                self.stats.rescans += 1

    def _deadline(self, joined: OpenGeneration) -> Output:
        generation, position = joined.generation, joined.position
        record = control_pb2.JoinRecord(
            deadline=control_pb2.Deadline(
                generation_id=generation.generation_id,
                attempt=generation.attempt,
                generation_record=generation_pb2.RecordCoordinates(
                    topic=position.topic, partition=position.partition, offset=position.offset
                ),
                due_unix_nano=self._clock.now_nanos(),
            )
        )
        return Output(self._signals, position.partition, generation.generation_id.encode(), record.SerializeToString())

    def _plan_rescan(self, state: _Partition, joined: OpenGeneration) -> None:
        """The generation stays unsettled until its next attempt is written: a crash in between plans it again."""
        position = joined.position
        again = generation_pb2.Generation()
        again.CopyFrom(joined.generation)
        if not again.HasField("rescan_of"):
            again.rescan_of.topic = position.topic
            again.rescan_of.partition = position.partition
            again.rescan_of.offset = position.offset
        # The platform's own deadline has passed; the new attempt has the policy's budget.
        again.ClearField("deadline_time")
        pause = min(self._settings.rescan_seconds * 2 ** (again.attempt - 1), self._settings.max_rescan_seconds)
        again.attempt += 1
        due = self._monotonic() + pause
        heapq.heappush(state.rescans, (due, position.offset, again, joined.traceparent))

    def _rescan(self, generation: generation_pb2.Generation, partition: int, traceparent: str) -> Output:
        headers = [("traceparent", traceparent.encode())] if traceparent else []
        key = generation.generation_id.encode()
        return Output(self._generations, partition, key, generation.SerializeToString(deterministic=True), headers)

    # ---- produce, settle ---------------------------------------------------------------------------------------

    async def _hand_over(self, outbox: _Outbox) -> None:
        """Let the producer have a turn's outputs; wait here when it is too far behind."""
        if not outbox.outputs:
            for settle in outbox.settle:
                settle()
            return
        await self._send_slots.acquire()
        self._spawn(self._deliver(outbox)).add_done_callback(lambda _: self._send_slots.release())

    async def _deliver(self, outbox: _Outbox) -> None:
        outputs: Sequence[Output] = outbox.outputs
        while outputs:
            try:
                await self._send(outputs)
                break
            except RecordTooLarge as refused:
                # The others are acknowledged. What is too large goes again without its explanation's detail.
                outputs = [self._shorten(output) for output in refused.outputs]
        for settle in outbox.settle:
            settle()
        self.stats.decisions += len(outbox.decisions)
        self._observer.decided(outbox.decisions)

    def _shorten(self, output: Output) -> Output:
        if output.topic != self._decisions:
            raise Fatal(
                "RECORD_TOO_LARGE",
                f"a record for {output.topic} exceeds max.message.bytes: raise it (seawall topics apply)",
            )
        value = output.value or b""
        shorter = decide.shortened(value)
        if len(shorter) >= len(value):
            raise Fatal("RECORD_TOO_LARGE", f"max.message.bytes of {output.topic} is too small for any decision")
        self._observer.event("decision_truncated", generation_id=(output.key or b"").decode())
        return output._replace(value=shorter)

    # ---- commit, rebalance -------------------------------------------------------------------------------------

    async def _commit_if_due(self) -> None:
        now = self._monotonic()
        if now >= self._next_commit:
            self._next_commit = now + self._settings.commit_seconds
            await self._commit(list(self._partitions))

    async def _commit(self, numbers: Collection[int]) -> None:
        offsets = {}
        marks = {}
        for number in numbers:
            state = self._partitions.get(number)
            if state is None:
                continue
            mark = (state.join.generation_watermark(), state.join.signal_watermark())
            if mark != state.committed:
                marks[number] = mark
                offsets[TopicPartition(self._generations, number)] = mark[0]
                offsets[TopicPartition(self._signals, number)] = mark[1]
        if not offsets:
            return
        try:
            await self._consumer.commit(offsets)
        except Retryable as error:
            self._observer.event("commit_refused", reason=error.reason)
            return
        for number, mark in marks.items():
            if (state := self._partitions.get(number)) is not None:
                state.committed = mark

    async def on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let sends end, commit what is settled, forget."""
        numbers = {partition for _, partition in revoked}
        await self._tasks_end()
        await self._commit(numbers)
        for number in numbers:
            self._partitions.pop(number, None)

    async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin at the committed offsets of both topics, knowing the newest decisions."""
        numbers = {partition for topic, partition in assigned if topic == self._generations}
        if numbers != {partition for topic, partition in assigned if topic == self._signals}:
            raise Fatal(
                "NOT_CO_PARTITIONED",
                f"{self._generations} and {self._signals} were assigned unequally: their partition counts must be "
                "equal; run `seawall topics check`",
            )
        while not self._stopping.is_set():
            try:
                self._partitions.update(await self._take_over(numbers))
                return
            except Retryable as error:
                # Nothing is read until this returns, and nothing could be: it is the broker that does not answer.
                self._observer.ready(False)
                self._observer.event("take_over_failed", reason=error.reason)
                await self._pause(1.0)

    async def _take_over(self, numbers: Collection[int]) -> dict[int, _Partition]:
        taken = {}
        for number in numbers:
            generations = await self._consumer.committed(TopicPartition(self._generations, number))
            signals = await self._consumer.committed(TopicPartition(self._signals, number))
            join = Join(
                lambda generation: self._rollout.choose(generation).policy.required(generation),
                next_generation=generations or 0,
                next_signal=signals or 0,
                remember=self._settings.remember,
                remember_nanos=int(self._settings.remember_seconds * _NANOS),
            )
            taken[number] = _Partition(number, join, committed=(generations or 0, signals or 0))
        if numbers and self._settings.recall:
            joins = {number: state.join for number, state in taken.items()}
            await recall_decisions(self._broker, self._decisions, joins, self._settings.recall)
        return taken


def _position(record: Record) -> Position:
    return Position(record.topic, record.partition, record.offset, record.timestamp * _MILLIS)


def _traceparent(record: Record) -> str:
    for key, value in trace_headers(record):
        if key == "traceparent":
            # A header is a sender's word: what is not ASCII is no trace context.
            return value.decode("ascii", "ignore")
    return ""
