"""The retroactive room's engine: measured pictures and listed entries in, late signals out.

    1. poll        signals.v1 as a member of the group, bank_entries.v1 whole
    2. compare     new pictures with the entries that are known, new entries with the pictures that are known
    3. resolve     a hit is read again, both records of it: what is still true becomes a late signal
    4. produce     acks=all; what was written is remembered by its id

Nothing is committed: whoever takes a partition over reads it back as far as the window goes, and with it what was
written already. Until that is done nothing is written, so nothing is written twice; and if it is (two owners for a
moment), the bytes are the same and the join absorbs it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import DecodeError

from seawall.api.bank.v1 import bank_pb2
from seawall.api.control.v1 import control_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.clock import Clock, SystemClock
from seawall.core.errors import Fatal, Retryable
from seawall.perceptual_hashing.measured import PDQ_TYPES, all_turns, is_pdq
from seawall.perceptual_hashing.retroactive import pairs
from seawall.perceptual_hashing.retroactive.columns import Columns
from seawall.perceptual_hashing.retroactive.entries import Change, Entries, holds
from seawall.perceptual_hashing.retroactive.fetch import Fetcher
from seawall.perceptual_hashing.retroactive.late import ROOM, AllBenign, Benign, late_signal, to_record
from seawall.perceptual_hashing.retroactive.settings import RetroactiveSettings
from seawall.perceptual_hashing.retroactive.window import HashWindow, Rows, comparable
from seawall.runtime.broker import Broker, Output, Record, TopicPartition
from seawall.runtime.topics import TopicNames

_MILLIS = 1_000
_NANOS_PER_MILLI = 1_000_000
#: Polls in which a partition brought nothing, after which it counts as read back: what is left was deleted.
_QUIET_POLLS = 15
#: Changes that are compared at once.
_CHANGES = 50_000
#: Hits that wait. More is not a few pictures found late but a list that lists the ordinary: a person must look.
_MAX_HITS = 200_000
#: The stage whose signals carry hashes.
_MEASURED = "perceptual_hashing"
_HINT = _MEASURED.encode()


class Observer(Protocol):
    """What the engine tells the outside. Must not block or raise."""

    def event(self, name: str, **fields: Any) -> None:
        """Something an operator may ask about."""
        ...

    def ready(self, ready: bool) -> None:
        """The room compares, or has stopped doing so."""
        ...

    def held(self, hashes: int, entries: int) -> None:
        """How many hashes of pictures and of entries are held."""
        ...

    def wrote(self, signals: int) -> None:
        """Late signals were acknowledged by the broker."""
        ...


class Hit(NamedTuple):
    """A picture near an entry, by the coordinates of their records."""

    partition: int
    offset: int
    entry_partition: int
    entry_offset: int


@dataclass
class Stats:
    """Counts since the start."""

    signals: int = 0
    changes: int = 0
    hits: int = 0
    written: int = 0
    repeated: int = 0


@dataclass
class _Partition:
    window: HashWindow
    #: Read back up to here before anything is written.
    end: int
    position: int = 0
    quiet: int = 0
    #: Ids of the late signals that the log has, and when: no older than the window.
    written: dict[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return self.position >= self.end or self.quiet >= _QUIET_POLLS


class Engine:
    """Runs the room until it is told to stop."""

    def __init__(
        self,
        *,
        broker: Broker,
        names: TopicNames,
        group: str,
        member: str | None,
        settings: RetroactiveSettings,
        observer: Observer,
        clock: Clock | None = None,
    ) -> None:
        self._signals = names.signals
        self._changes = names.bank_entries
        self._settings = settings
        self._observer = observer
        self._clock = clock or SystemClock()
        self._consumer = broker.consumer(group, [self._signals], instance=member, listener=self, commits=False)
        self._reader = broker.reader([self._changes])
        self._fetcher = Fetcher(broker, (self._signals, self._changes))
        self._producer = broker.producer()
        self._partitions: dict[int, _Partition] = {}
        #: Partitions that were just assigned, and the offset they are to be read from.
        self._to_seek: dict[int, int] = {}
        self._entries = Entries(settings.window.max_entries, self._clock)
        self._entries_ends: dict[TopicPartition, int] = {}
        self._entries_quiet = 0
        self._hits: deque[Hit] = deque()
        self._queued: set[Hit] = set()
        #: Pictures that an entry's change met, by its coordinates.
        self._met: Counter[tuple[int, int]] = Counter()
        self._paused = False
        self._told: set[str] = set()
        self._stopping = asyncio.Event()
        self.stats = Stats()

    # ---- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Compare until ``stop`` is called.

        Raises:
            Fatal: as the broker seam says; Retryable if it cannot be reached at the start.
        """
        await self._producer.start()
        try:
            await self._reader.start()
            await self._fetcher.start()
            await self._consumer.start()
            ends = await self._reader.end_offsets(self._reader.assignment())
            self._entries_ends = {partition: end for partition, end in ends.items() if end > 0}
            while not self._stopping.is_set():
                try:
                    await self._turn()
                except Retryable as error:
                    # What was read is held, what was found is queued: it goes on where it was.
                    self._observer.ready(False)
                    self._observer.event("turn_failed", reason=error.reason)
                    await self._pause(1.0)
        finally:
            self._observer.ready(False)
            for client in (self._consumer, self._fetcher, self._reader, self._producer):
                await client.stop()

    def stop(self) -> None:
        """Ask ``run`` to end. Safe in a signal handler of the loop."""
        self._stopping.set()

    async def _turn(self) -> None:
        window = self._settings.window
        now = self._clock.now_nanos() // _NANOS_PER_MILLI
        # Hits that wait are worked off before more are looked for.
        full = self._is_whole() and len(self._hits) > self._settings.max_resolve
        if full != self._paused:
            self._paused = full
            (self._consumer.pause if full else self._consumer.resume)(self._consumer.assignment())
        if not full:
            await self._read_changes(now)
        polled = await self._consumer.poll(
            max_records=self._settings.max_poll, timeout=0.0 if self._hits else self._settings.poll_seconds
        )
        await self._read_signals(polled)
        self._forget(now - int(window.seconds * _MILLIS))
        whole = self._is_whole()
        self._observer.ready(whole)
        if whole:
            self._tell_unmeasured()
            await self._resolve()

    def _is_whole(self) -> bool:
        """Both topics are read back: who is known, what they list, and what was said already."""
        read = not self._entries_ends or self._entries_quiet >= _QUIET_POLLS
        return read and not self._to_seek and all(state.whole for state in self._partitions.values())

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    # ---- pictures ----------------------------------------------------------------------------------------------

    async def _read_signals(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> None:
        for number, offset in list(self._to_seek.items()):
            # What came before the seek is from elsewhere in the log.
            with contextlib.suppress(Retryable):  # revoked meanwhile
                self._consumer.seek(TopicPartition(self._signals, number), offset)
            self._to_seek.pop(number, None)
            polled = {key: records for key, records in polled.items() if key[1] != number}
        got = {partition for _, partition in polled}
        for number, state in self._partitions.items():
            state.quiet = 0 if number in got else state.quiet + 1
        for (_, number), records in polled.items():
            mine = self._partitions.get(number)
            if mine is None or not records:
                continue
            rows = Rows()
            for record in records:
                self._read_signal(mine, record, rows)
            mine.position = records[-1].offset + 1
            for kind, values, offsets, times in rows.by_type():
                found = await asyncio.to_thread(_compare, self._entries.positive(kind), values, times, self._reach)
                self._queue(number, kind, offsets, found, 0)
            mine.window.add(rows)

    def _read_signal(self, state: _Partition, record: Record, rows: Rows) -> None:
        self.stats.signals += 1
        value = record.value or b""
        # Most records are of other stages: their bytes need not be taken apart.
        if _HINT not in value:
            return
        try:
            signal = control_pb2.JoinRecord.FromString(value).signal
        except DecodeError:
            return  # the aggregator sets it aside; it measured nothing that could be compared
        if signal.stage == ROOM:
            state.written[signal.signal_id] = record.timestamp
        elif signal.stage == _MEASURED:
            rows.add(signal, record.offset, record.timestamp)

    # ---- entries -----------------------------------------------------------------------------------------------

    async def _read_changes(self, now: int) -> None:
        changes = await self._poll_changes()
        if not changes:
            return
        fresh = self._entries.add(changes, now - sum(self._reach))
        for kind, count in fresh.items():
            table = self._entries.positive(kind)
            first = len(table) - count
            for number, state in list(self._partitions.items()):
                rows = state.window.table(kind)
                found = await asyncio.to_thread(_compare, table, rows["value"], rows["time"], self._reach, first=first)
                self._queue(number, kind, rows["offset"], found, first)

    async def _poll_changes(self) -> list[Change]:
        """What is there now, up to a bound: a list of millions is compared in few large pieces."""
        changes: list[Change] = []
        while len(changes) < _CHANGES:
            polled = await self._reader.poll(max_records=self._settings.max_poll, timeout=0.0)
            self._entries_quiet = 0 if polled else self._entries_quiet + 1
            if not polled:
                break
            for key, records in polled.items():
                self.stats.changes += len(records)
                changes += [change for record in records if (change := self._change(record)) is not None]
                partition = TopicPartition(*key)
                if records[-1].offset + 1 >= self._entries_ends.get(partition, 0):
                    self._entries_ends.pop(partition, None)
        return changes

    def _tell_unmeasured(self) -> None:
        """Pictures are measured by the pipelines that a bank asked for at the time; by others nothing can be found."""
        windows = [state.window for state in self._partitions.values()]
        for kind in PDQ_TYPES.values():
            if kind in self._told or not len(self._entries.positive(kind)):
                continue
            if any(map(len, windows)) and not any(len(window.table(kind)) for window in windows):
                self._told.add(kind)
                self._observer.event("kind_not_measured", reason="KIND_NOT_MEASURED", kind=kind)

    def _change(self, record: Record) -> Change | None:
        try:
            change = bank_pb2.BankChange.FromString(record.value or b"")
        except DecodeError:
            change = bank_pb2.BankChange()
        if change.WhichOneof("change") is None:
            self._observer.event(
                "bank_change_undecodable", reason="UNDECODABLE", partition=record.partition, offset=record.offset
            )
            return None
        return Change(change, record.partition, record.offset, record.timestamp)

    @property
    def _reach(self) -> tuple[int, int]:
        """How long before and after an entry a picture is compared with it, milliseconds."""
        window = self._settings.window
        return int(window.seconds * _MILLIS), int(window.overlap_seconds * _MILLIS)

    # ---- hits --------------------------------------------------------------------------------------------------

    def _queue(self, number: int, kind: str, offsets: Any, found: pairs.Pairs, first: int) -> None:
        table = self._entries.positive(kind)
        radius = {bank: card.radius for bank, card in self._entries.cards.items()}
        rows = (found.left + first).tolist()
        for row, picture, distance in zip(rows, found.right.tolist(), found.distance.tolist(), strict=True):
            if is_pdq(kind) and distance > radius.get(self._entries.bank(int(table["bank"][row])), -1):
                continue
            hit = Hit(number, int(offsets[picture]), int(table["partition"][row]), int(table["offset"][row]))
            if hit in self._queued:
                continue
            self.stats.hits += 1
            entry = (hit.entry_partition, hit.entry_offset)
            self._met[entry] += 1
            limit = self._settings.window.max_hits_per_entry
            if self._met[entry] <= limit:
                if len(self._hits) >= _MAX_HITS:
                    raise Fatal(
                        "TOO_MANY_HITS",
                        f"new entries meet more than {_MAX_HITS} recent pictures: look at what was listed, disable it, "
                        "and restart the room, which looks again",
                    )
                self._queued.add(hit)
                self._hits.append(hit)
            elif self._met[entry] == limit + 1:
                self._hold(entry)

    def _hold(self, entry: tuple[int, int]) -> None:
        """The entry met too much: nothing of it that is not written yet is written."""
        kept = [hit for hit in self._hits if (hit.entry_partition, hit.entry_offset) != entry]
        self._queued.difference_update(self._hits)
        self._hits = deque(kept)
        self._queued.update(kept)
        self._observer.event(
            "entry_flood", reason="ENTRY_FLOOD", topic=self._changes, partition=entry[0], offset=entry[1]
        )

    async def _resolve(self) -> None:
        """Work off some hits, and write what they come to."""
        taken = [self._hits.popleft() for _ in range(min(len(self._hits), self._settings.max_resolve))]
        try:
            outputs, ids = await self._outputs(taken)
            if outputs:
                await self._producer.send(outputs)
        except Retryable:
            self._hits.extendleft(reversed(taken))
            raise
        for hit in taken:
            self._queued.discard(hit)
        now = self._clock.now_nanos() // _NANOS_PER_MILLI
        for number, signal_id in ids:
            if (state := self._partitions.get(number)) is not None:
                state.written[signal_id] = now
        if outputs:
            self.stats.written += len(outputs)
            self._observer.wrote(len(outputs))

    async def _outputs(self, hits: Sequence[Hit]) -> tuple[list[Output], list[tuple[int, str]]]:
        measured = await self._fetcher.fetch({(self._signals, hit.partition, hit.offset) for hit in hits})
        listed = await self._fetcher.fetch({(self._changes, hit.entry_partition, hit.entry_offset) for hit in hits})
        benign = await self._speaks_against(measured.values())
        outputs, ids = [], []
        seen = set()
        for hit in hits:
            state = self._partitions.get(hit.partition)
            picture = measured.get((self._signals, hit.partition, hit.offset))
            record = listed.get((self._changes, hit.entry_partition, hit.entry_offset))
            if state is None or picture is None or record is None:
                # Another owner's now; or the log has let go of it: a change that another one has replaced.
                continue
            signal = self._late(picture, record, benign)
            if signal is None:
                continue
            if signal.signal_id in state.written or signal.signal_id in seen:
                self.stats.repeated += 1
                continue
            seen.add(signal.signal_id)
            ids.append((hit.partition, signal.signal_id))
            key = signal.generation_id.encode()
            outputs.append(Output(self._signals, hit.partition, key, to_record(signal)))
        return outputs, ids

    async def _speaks_against(self, pictures: Iterable[Record]) -> AllBenign:
        """The nearest negative entry of each hash that these pictures have."""
        nearest: dict[tuple[str, bytes], tuple[int, int, int]] = {}
        for picture in pictures:
            for item in _signal(picture).items:
                for hash_ in filter(comparable, item.hashes):
                    kind = hash_.hash_type
                    values = [value for _, value in all_turns(hash_)] if is_pdq(kind) else [hash_.value]
                    for value in values:
                        if (found := self._entries.nearest_negative(kind, value)) is not None:
                            nearest[kind, value] = found
        changes = await self._fetcher.fetch(
            {(self._changes, partition, offset) for _, partition, offset in nearest.values()}
        )
        benign = {}
        for key, (distance, partition, offset) in nearest.items():
            record = changes.get((self._changes, partition, offset))
            change = None if record is None else self._change(record)
            if change is not None:
                entry = change.change.entry
                benign[key] = Benign(f"{entry.bank}/{entry.entry_id}", distance)
        return benign

    def _late(self, picture: Record, record: Record, benign: AllBenign) -> signal_pb2.Signal | None:
        change = self._change(record)
        if change is None or not self._entries.is_current(change):
            return None
        entry = change.change.entry
        card = self._entries.cards.get(entry.bank)
        if card is None or not holds(card, self._clock.now_nanos()):
            return None
        if 0 < entry.expires_unix_nano <= self._clock.now_nanos():
            return None
        return late_signal(_signal(picture), change, self._changes, card, benign)

    # ---- bounds ------------------------------------------------------------------------------------------------

    def _forget(self, before: int) -> None:
        window = self._settings.window
        dropped = self._entries.dropped
        self._entries.forget_before(before - int(window.overlap_seconds * _MILLIS))
        if self._entries.dropped > dropped:
            self._observer.event("entries_shortened", reason="MAX_ENTRIES", rows=self._entries.dropped - dropped)
        share = window.max_hashes // max(1, len(self._partitions))
        held = 0
        for number, state in self._partitions.items():
            state.window.forget_before(before)
            if (gone := state.window.forget_beyond(share)) > 0 and state.whole:
                self._observer.event("window_shortened", reason="MAX_HASHES", partition=number, rows=gone)
            held += len(state.window)
            for signal_id in [one for one, time in state.written.items() if time < before]:
                del state.written[signal_id]
        self._observer.held(held, len(self._entries))

    # ---- rebalance ---------------------------------------------------------------------------------------------

    async def on_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Forget: the next owner reads back what it needs."""
        self._paused = False  # a rebalance resumes everything
        for _, number in revoked:
            self._partitions.pop(number, None)
            self._to_seek.pop(number, None)

    async def on_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Read back as far as the window may go."""
        if not assigned:
            return
        share = self._settings.window.max_hashes // (len(assigned) + len(self._partitions))
        for partition, end in (await self._consumer.end_offsets(assigned)).items():
            # A picture has three hashes or more, and a generation a signal of each of its stages: so this reaches as
            # far back as the bound on hashes does.
            start = max(0, end - share)
            self._partitions[partition.partition] = _Partition(HashWindow(), end, position=start)
            self._to_seek[partition.partition] = start


def _signal(record: Record) -> signal_pb2.Signal:
    return control_pb2.JoinRecord.FromString(record.value or b"").signal


def _compare(entries: Columns, values: Any, times: Any, reach: tuple[int, int], *, first: int = 0) -> pairs.Pairs:
    """Pairs of (entry from ``first`` on, picture) near each other, in value and in time."""
    listed = entries["value"][first:]
    find = pairs.near_turned if listed.shape[1] == 4 else pairs.equal
    found = find(listed, values)
    if not len(found.left):
        return found
    at = entries["time"][first:][found.left]
    measured = times[found.right]
    before, after = reach
    keep = entries["alive"][first:][found.left] & (measured > at - before) & (measured < at + after)
    return pairs.Pairs(found.left[keep], found.right[keep], found.distance[keep])
