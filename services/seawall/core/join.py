"""The join: which signals belong to which generation, when it is complete, and how far the log may be forgotten.

A pure state machine, one instance per partition. It holds no clock and does no I/O: records go in, events come out, and
the state can be thrown away at any moment, because what is not yet settled is still in the log.

What makes a replay decide the same:

* Completion depends on the order of records in signals.v1 alone, never on how the two topics interleave: signals that
  come before their generation was read (*early*) wait and are applied in log order once it is read.
* Of two signals of one stage the first counts, unless it reports an error and the join is still open: then a later one
  replaces it. That, too, is a matter of log order.
* Time is a record: a Deadline that is read closes the join; a clock only decides when one is written.
* Whether a record repeats what is decided already is a matter of both records' log times, not of when they are read.

Offsets. A generation is *settled* once everything that follows from it has been acknowledged. The generation watermark
is the lowest unsettled generation. The signal watermark is the lowest signal of any generation at or above the
generation watermark: settled generations above it will be read again after a crash, and must find their signals again.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2

Required = Callable[[generation_pb2.Generation], frozenset[str]]
_ERROR = signal_pb2.ITEM_STATUS_ERROR


class Position(NamedTuple):
    """Where and when the broker wrote a record."""

    topic: str
    partition: int
    offset: int
    log_nanos: int


class ReadSignal(NamedTuple):
    """A signal and where it stood."""

    signal: signal_pb2.Signal
    position: Position
    #: The record's value, if it is at hand.
    value: bytes | None = None


@dataclass(slots=True)
class OpenGeneration:
    """A generation that waits for signals."""

    generation: generation_pb2.Generation
    position: Position
    traceparent: str
    required: frozenset[str]
    signals: dict[str, ReadSignal] = field(default_factory=dict)
    #: What stages measured of repeats of the record, by role.
    of_repeats: dict[str, ReadSignal] = field(default_factory=dict)
    #: Generation id and attempt.
    key: tuple[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.key = (self.generation.generation_id, self.generation.attempt)

    @property
    def missing(self) -> list[str]:
        """Required stages that have not reported, sorted."""
        return [] if self.required <= self.signals.keys() else sorted(self.required - self.signals.keys())


class Completed(NamedTuple):
    """All required stages have reported, or the deadline was read. The caller decides, then calls ``settle``."""

    joined: OpenGeneration
    completed_by: Position


class LateSignal(NamedTuple):
    """A signal of a generation that is decided already. The caller judges it alone, then calls ``settle_signal``."""

    read: ReadSignal


Event = Completed | LateSignal


class Decided(NamedTuple):
    """What is remembered of a decided generation attempt."""

    offset: int
    #: Stages whose signals the decision rests on and that reported no error; of a retroactive signal its id.
    stages: frozenset[str]
    #: Log time of its generation record.
    log_nanos: int


#: A signal, or None for a Deadline, and where it stood.
_Routed = tuple[ReadSignal | None, Position]


@lru_cache(maxsize=1024)
def _one_of(stages: frozenset[str]) -> frozenset[str]:
    """One object for equal sets: thousands of decisions that are remembered rest on the same stages."""
    return stages


def has_error(signal: signal_pb2.Signal) -> bool:
    """True if any item of the signal reports ERROR."""
    # A slice is a list, and quicker to walk. A generator would cost more than the loop, three times a generation.
    for item in signal.items[:]:  # noqa: SIM110
        if item.status == _ERROR:
            return True
    return False


def role(signal: signal_pb2.Signal) -> str:
    """What a signal is to a join: its stage, of which one counts; or its id, if a bank's change caused it, because a
    generation may have several of those, each with something else to say."""
    return signal.signal_id if signal.HasField("caused_by") else signal.stage


def _keep(signals: dict[str, ReadSignal], read: ReadSignal) -> bool:
    """Of two signals of one role the first counts, unless it reports an error. True if this one counts now."""
    part = role(read.signal)
    before = signals.get(part)
    if before is not None and not has_error(before.signal):
        return False
    signals[part] = read
    return True


class Join:
    """The join of one partition of generations.v1 with the same partition of signals.v1.

    Args:
        required: which stages must report for a generation.
        next_generation, next_signal: the offsets that will be read first.
        remember: how many decided attempts are remembered, to absorb repeats of generations and signals.
        remember_nanos: for how long, from a generation's log time on; longer than one can be open.
    """

    def __init__(
        self,
        required: Required,
        *,
        next_generation: int,
        next_signal: int,
        remember: int = 20_000,
        remember_nanos: int = 3_600_000_000_000,
    ) -> None:
        self._required = required
        self._next_generation = next_generation
        self._next_signal = next_signal
        self._remember = remember
        self._remember_nanos = remember_nanos
        self._open: dict[int, OpenGeneration] = {}
        self._open_by_id: dict[tuple[str, int], int] = {}
        #: Signals and deadlines read before their generation, by the generation's offset, in log order.
        self._early: dict[int, list[_Routed]] = {}
        self._early_count = 0
        self._decided: OrderedDict[tuple[str, int], Decided] = OrderedDict()
        #: Ids of retroactive signals that were judged alone, with their log times. The same id says the same, so it is
        #: judged once.
        self._judged: OrderedDict[str, int] = OrderedDict()
        #: Generations that are not settled; and all since the watermark in the order they were read, by offset.
        self._unsettled: set[int] = set()
        self._read: deque[int] = deque()
        #: (signal offset, generation offset) of each generation's first signal, in the order they were read.
        self._first_signal: set[int] = set()
        self._first_signals: deque[tuple[int, int]] = deque()
        self._unsettled_signals: set[int] = set()
        self._unsettled_signal_heap: list[int] = []

    # ---- what went in before -----------------------------------------------------------------------------------

    def remember(self, key: tuple[str, int], decided: Decided) -> None:
        """Recall a decision that was written before this instance took over (read back from decisions.v1)."""
        if key not in self._decided:
            self._remember_decided(key, decided)

    def remember_judged(self, signal: signal_pb2.Signal, log_nanos: int) -> None:
        """Recall a late signal that was judged before, here or by whoever had the partition."""
        if signal.HasField("caused_by"):
            judged = self._judged
            judged[signal.signal_id] = log_nanos
            while judged and (len(judged) > self._remember or not self._recent(next(iter(judged.values())), log_nanos)):
                judged.popitem(last=False)

    def _remember_decided(self, key: tuple[str, int], decided: Decided) -> None:
        remembered = self._decided
        remembered[key] = decided
        oldest = decided.log_nanos - self._remember_nanos
        while len(remembered) > self._remember or next(iter(remembered.values())).log_nanos < oldest:
            remembered.popitem(last=False)

    def _recent(self, then: int, now: int) -> bool:
        return now - then <= self._remember_nanos

    def _recall(self, key: tuple[str, int], position: Position) -> Decided | None:
        """What is known of an attempt that is decided, seen from a record's own log time."""
        decided = self._decided.get(key)
        return decided if decided is not None and self._recent(decided.log_nanos, position.log_nanos) else None

    # ---- records -----------------------------------------------------------------------------------------------

    def on_generation(
        self, generation: generation_pb2.Generation, position: Position, traceparent: str = ""
    ) -> Sequence[Event]:
        """A generation record was read. Repeats of an attempt, open or remembered, are absorbed."""
        offset = position.offset
        if offset < self._next_generation:
            return ()
        gone = self._advance(offset)
        joined = OpenGeneration(generation, position, traceparent, self._required(generation))
        key = joined.key
        decided = self._recall(key, position) if key in self._decided else None
        if key in self._open_by_id or (decided is not None and decided.offset < offset):
            return [*gone, *self._apply_early(offset)]
        self._open[offset] = joined
        self._open_by_id[key] = offset
        self._unsettle(offset)
        completed = () if joined.required else self._complete(joined, position)
        if offset in self._early:
            return [*gone, *completed, *self._apply_early(offset)]
        return [*gone, *completed] if gone or completed else ()

    def on_malformed(self, position: Position) -> Sequence[Event] | None:
        """A generation record was read that cannot be joined; the caller decides it alone, then settles it.

        Returns None if it was read before.
        """
        if position.offset < self._next_generation:
            return None
        events = self._advance(position.offset)
        self._take_early(position.offset)
        self._unsettle(position.offset)
        return events

    def on_signal(self, signal: signal_pb2.Signal, position: Position, value: bytes | None = None) -> Sequence[Event]:
        """A signal was read; ``value`` is its record's, which the decision will repeat."""
        if position.offset < self._next_signal:
            return ()
        self._next_signal = position.offset + 1
        return self._route(signal.generation_record.offset, ReadSignal(signal, position, value), position)

    def on_deadline(self, deadline: control_pb2.Deadline, position: Position) -> Sequence[Event]:
        """A Deadline was read: the join closes with what it has. It means nothing for a generation no longer open."""
        if position.offset < self._next_signal:
            return ()
        self._next_signal = position.offset + 1
        return self._route(deadline.generation_record.offset, None, position)

    def on_undecodable_signal(self, position: Position) -> bool:
        """A record of signals.v1 cannot be decoded; it is held until ``settle_signal``. False if it was read before."""
        if position.offset < self._next_signal:
            return False
        self._next_signal = position.offset + 1
        self._unsettle_signal(position.offset)
        return True

    # ---- offsets -----------------------------------------------------------------------------------------------

    def settle(self, generation_offset: int) -> None:
        """Everything that follows from this generation has been acknowledged by the broker."""
        self._unsettled.discard(generation_offset)

    def settle_signal(self, signal_offset: int) -> None:
        """Everything that follows from this late or undecodable record has been acknowledged."""
        self._unsettled_signals.discard(signal_offset)

    def generation_watermark(self) -> int:
        """Next offset to commit for generations.v1."""
        read, unsettled = self._read, self._unsettled
        while read and read[0] not in unsettled:
            read.popleft()
        return read[0] if read else self._next_generation

    def signal_watermark(self) -> int:
        """Next offset to commit for signals.v1, given ``generation_watermark``."""
        low = self.generation_watermark()
        first = self._first_signals
        while first and first[0][1] < low:
            self._first_signal.discard(first.popleft()[1])
        while self._unsettled_signal_heap and self._unsettled_signal_heap[0] not in self._unsettled_signals:
            heapq.heappop(self._unsettled_signal_heap)
        lowest = self._next_signal
        if first:
            lowest = min(lowest, first[0][0])
        if self._unsettled_signal_heap:
            lowest = min(lowest, self._unsettled_signal_heap[0])
        return lowest

    # ---- what is held ------------------------------------------------------------------------------------------

    @property
    def open_count(self) -> int:
        """Generations that wait for signals."""
        return len(self._open)

    @property
    def early_count(self) -> int:
        """Signals and deadlines that wait for their generation."""
        return self._early_count

    def is_open(self, generation_offset: int) -> bool:
        """True while the generation at this offset waits for signals."""
        return generation_offset in self._open

    def get_open(self, generation_offset: int) -> OpenGeneration | None:
        """The open generation at this offset, if there is one."""
        return self._open.get(generation_offset)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _route(self, generation_offset: int, read: ReadSignal | None, position: Position) -> Sequence[Event]:
        joined = self._open.get(generation_offset)
        # What is open is unsettled, and so not below the watermark.
        if generation_offset not in self._first_signal and (
            joined is not None or generation_offset >= self.generation_watermark()
        ):
            self._first_signal.add(generation_offset)
            self._first_signals.append((position.offset, generation_offset))
        if joined is not None:
            return self._apply(joined, read, position)
        if generation_offset >= self._next_generation:
            self._early.setdefault(generation_offset, []).append((read, position))
            self._early_count += 1
            return ()
        return () if read is None else self._late(generation_offset, read)

    def _apply(self, joined: OpenGeneration, read: ReadSignal | None, position: Position) -> Sequence[Event]:
        if read is None:
            return self._complete(joined, position)
        signal = read.signal
        generation_id, attempt = joined.key
        if signal.generation_id != generation_id or signal.attempt != attempt:
            # Coordinates of another topic's life (recreated, restored): not evidence about this generation.
            return ()
        if _keep(joined.signals, read) and joined.required <= joined.signals.keys():
            return self._complete(joined, position)
        return ()

    def _apply_early(self, generation_offset: int) -> list[Event]:
        """What waited for the generation at this offset, in log order; the generation is read, or will never be."""
        events: list[Event] = []
        for read, position in self._take_early(generation_offset):
            joined = self._open.get(generation_offset)
            if joined is not None:
                events.extend(self._apply(joined, read, position))
            elif read is not None:
                events.extend(self._late(generation_offset, read))
        return events

    def _late(self, generation_offset: int, read: ReadSignal) -> Sequence[Event]:
        signal, position, _ = read
        key = (signal.generation_id, signal.attempt)
        decided = self._recall(key, position)
        if decided is not None and role(signal) in decided.stages:
            return ()
        if decided is not None and signal.HasField("caused_by") and decided.offset != generation_offset:
            # Found again in a repeat of the record: the one that was decided has a signal of its own.
            return ()
        judged = self._judged.get(signal.signal_id)
        if judged is not None and self._recent(judged, position.log_nanos):
            return ()
        first = self._open_by_id.get(key)
        if first is not None:
            # Of a repeat, while the first record is still open. Should that one's own signal err or never come, this is
            # all that was measured: it waits, and is late once the first is decided, whichever was read sooner.
            if not signal.HasField("caused_by"):
                _keep(self._open[first].of_repeats, read)
            return ()
        self.remember_judged(signal, position.log_nanos)
        self._unsettle_signal(position.offset)
        return (LateSignal(read),)

    def _complete(self, joined: OpenGeneration, completed_by: Position) -> Sequence[Event]:
        offset, key = joined.position.offset, joined.key
        del self._open[offset]
        del self._open_by_id[key]
        stages = frozenset([part for part, read in joined.signals.items() if not has_error(read.signal)])
        self._decided.pop(key, None)
        self._remember_decided(key, Decided(offset, _one_of(stages), joined.position.log_nanos))
        events: list[Event] = [Completed(joined, completed_by)]
        for read in joined.of_repeats.values():
            events.extend(self._late(read.signal.generation_record.offset, read))
        return events

    def _take_early(self, generation_offset: int) -> Sequence[_Routed]:
        waiting = self._early.pop(generation_offset, ())
        self._early_count -= len(waiting)
        return waiting

    def _advance(self, offset: int) -> Sequence[Event]:
        """The generation at ``offset`` is read. Offsets that the topic no longer holds will never be: whoever waits for
        them is late."""
        if offset == self._next_generation or not self._early:
            self._next_generation = offset + 1
            return ()
        gone = sorted(early for early in self._early if early < offset)
        self._next_generation = offset
        events = [event for early in gone for event in self._apply_early(early)]
        self._next_generation = offset + 1
        return events

    def _unsettle(self, generation_offset: int) -> None:
        self._unsettled.add(generation_offset)
        self._read.append(generation_offset)

    def _unsettle_signal(self, signal_offset: int) -> None:
        self._unsettled_signals.add(signal_offset)
        heapq.heappush(self._unsettled_signal_heap, signal_offset)
