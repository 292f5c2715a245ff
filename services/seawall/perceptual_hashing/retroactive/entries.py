"""What was listed lately, by every bank: hashes, when, and where the change stands in bank_entries.v1."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from seawall.api.bank.v1 import bank_pb2
from seawall.core.clock import Clock
from seawall.perceptual_hashing.bank_changes import MATCHED_STATES
from seawall.perceptual_hashing.hash_types import VPDQ, fault
from seawall.perceptual_hashing.measured import is_pdq
from seawall.perceptual_hashing.retroactive import pairs
from seawall.perceptual_hashing.retroactive.columns import Array, Columns
from seawall.perceptual_hashing.retroactive.window import WORDS

#: The kind of measured hash that a listed PDQ hash is compared with, by the bank's pipeline.
_PDQ: Final = {"full": "pdq", "512": "pdq_512"}


class Change(NamedTuple):
    """A record of bank_entries.v1."""

    change: bank_pb2.BankChange
    partition: int
    offset: int
    #: Log time, milliseconds.
    time: int


class Entries:
    """The entries of all banks that a picture may still have to be compared with. Positive and negative ones apart."""

    def __init__(self, max_entries: int, clock: Clock) -> None:
        self._max = max_entries
        self._clock = clock
        self.cards: dict[str, bank_pb2.Bank] = {}
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._positive = _tables()
        #: Known-benign near-collisions, of any age: they speak against a hit whenever it comes.
        self._negative = _tables()
        #: Entries whose bank's card has not come yet, by bank.
        self._waiting: dict[str, list[Change]] = {}
        #: (partition, offset) of changes that another change has replaced.
        self._replaced: OrderedDict[tuple[int, int], None] = OrderedDict()
        #: Rows that had to go before their time.
        self.dropped = 0

    def __len__(self) -> int:
        return sum(len(table) for table in self._positive.values())

    @property
    def waiting(self) -> int:
        """Entries whose bank nobody has described yet."""
        return sum(map(len, self._waiting.values()))

    def bank(self, number: int) -> str:
        """The name of a row's bank."""
        return self._names[number]

    def add(self, changes: Iterable[Change], horizon: int) -> Mapping[str, int]:
        """Take changes up, in the order of their partitions' logs.

        Args:
            horizon: entries of positive banks that were listed before this log time (milliseconds) are of no use.

        Returns:
            How many rows of each hash type are new, at the end of `positive`.
        """
        ready: list[Change] = []
        for one in changes:
            if one.change.HasField("bank"):
                card = one.change.bank
                self.cards[card.name] = card
                ready += self._waiting.pop(card.name, ())
            elif one.change.entry.bank in self.cards:
                ready.append(one)
            else:
                self._waiting.setdefault(one.change.entry.bank, []).append(one)
        while self.waiting > self._max:
            self.dropped += len(self._waiting.pop(max(self._waiting, key=lambda bank: len(self._waiting[bank]))))
        self._supersede(ready)
        # Of an entry that changed twice in one batch the last word counts.
        last = {(one.change.entry.bank, one.change.entry.entry_id): one for one in ready}
        before = {kind: len(table) for kind, table in self._positive.items()}
        for kind, tables, rows in self._rows(last.values(), horizon):
            tables[kind].add(**rows)
        return {kind: len(table) - before[kind] for kind, table in self._positive.items() if len(table) > before[kind]}

    def is_current(self, change: Change) -> bool:
        """Whether no later change of the same entry has come."""
        return (change.partition, change.offset) not in self._replaced

    def positive(self, hash_type: str) -> Columns:
        """Rows by measured hash type: value, time, partition, offset, bank, alive."""
        return self._positive[hash_type]

    def nearest_negative(self, kind: str, value: bytes) -> tuple[int, int, int] | None:
        """The nearest entry of a negative bank: its distance, and where its change stands. None: there is none."""
        table = self._negative.get(kind)
        if table is None or not len(table):
            return None
        words = np.frombuffer(value[: 8 * WORDS[kind]], np.uint64).reshape(1, -1)
        found = (pairs.near if is_pdq(kind) else pairs.equal)(table["value"], words)
        now = self._clock.now_nanos()
        best: tuple[int, int, int] | None = None
        for row, distance in zip(found.left.tolist(), found.distance.tolist(), strict=True):
            card = self.cards[self.bank(int(table["bank"][row]))]
            if table["alive"][row] and distance <= card.radius and holds(card, now):
                one = (distance, int(table["partition"][row]), int(table["offset"][row]))
                best = one if best is None else min(best, one)
        return best

    def forget_before(self, time: int) -> None:
        """Drop rows listed before a log time in milliseconds, and the oldest beyond the bound."""
        for table in self._positive.values():
            table.forget(int(np.searchsorted(np.maximum.accumulate(table["time"]), time)))
        excess = len(self) - self._max
        if excess > 0:
            for table in self._positive.values():
                share = min(len(table), -(-excess * len(table) // max(1, len(self))))
                table.forget(share)
                self.dropped += share

    def _supersede(self, changes: Sequence[Change]) -> None:
        """An entry's earlier rows mean nothing any more."""
        if not changes:
            return
        keys = np.array([_key(one.change.entry) for one in changes], np.uint64)
        for tables in (self._positive, self._negative):
            for table in tables.values():
                if not len(table):
                    continue
                rows = np.flatnonzero(np.isin(table["key"], keys) & table["alive"])
                table["alive"][rows] = False
                for row in rows.tolist():
                    self._replaced[int(table["partition"][row]), int(table["offset"][row])] = None
        while len(self._replaced) > self._max:
            self._replaced.popitem(last=False)

    def _rows(
        self, changes: Iterable[Change], horizon: int
    ) -> Iterator[tuple[str, dict[str, Columns], dict[str, Array]]]:
        found: dict[tuple[str, bool], tuple[bytearray, list[tuple[int, int, int, int, int]]]] = {}
        for one in changes:
            entry = one.change.entry
            card = self.cards[entry.bank]
            negative = card.kind == bank_pb2.BANK_KIND_NEGATIVE
            if entry.state not in MATCHED_STATES or (one.time <= horizon and not negative):
                continue
            row = (one.time, one.partition, one.offset, self._number(entry.bank), _key(entry))
            for listed in entry.hashes:
                perceptual = listed.hash_type in ("pdq", VPDQ)
                kind = _PDQ[card.pipeline] if perceptual else listed.hash_type
                if kind not in WORDS or fault(listed.hash_type, len(listed.value)):
                    continue
                values, rows = found.setdefault((kind, negative), (bytearray(), []))
                # Of a video a row a frame.
                values += listed.value if perceptual else listed.value[: 8 * WORDS[kind]]
                rows += [row] * (len(listed.value) // 32 if perceptual else 1)
        for (kind, negative), (values, rows) in found.items():
            times, partitions, offsets, banks, keys = zip(*rows, strict=True)
            yield (
                kind,
                self._negative if negative else self._positive,
                {
                    "value": np.frombuffer(bytes(values), np.uint64).reshape(-1, WORDS[kind]),
                    "time": np.array(times, np.int64),
                    "partition": np.array(partitions, np.int32),
                    "offset": np.array(offsets, np.int64),
                    "bank": np.array(banks, np.int32),
                    "key": np.array(keys, np.uint64),
                    "alive": np.ones(len(rows), np.bool_),
                },
            )

    def _number(self, bank: str) -> int:
        if bank not in self._numbers:
            self._numbers[bank] = len(self._names)
            self._names.append(bank)
        return self._numbers[bank]


def holds(card: bank_pb2.Bank, now: int) -> bool:
    """Whether a bank's entries mean anything at ``now``, Unix nanoseconds."""
    return card.state == bank_pb2.BANK_STATE_ACTIVE and not 0 < card.expires_unix_nano <= now


def _key(entry: bank_pb2.BankEntry) -> int:
    digest = hashlib.blake2b(f"{entry.bank}/{entry.entry_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _tables() -> dict[str, Columns]:
    return {
        kind: Columns(
            {
                "value": (np.uint64, words),
                "time": (np.int64, 0),
                "partition": (np.int32, 0),
                "offset": (np.int64, 0),
                "bank": (np.int32, 0),
                "key": (np.uint64, 0),
                "alive": (np.bool_, 0),
            }
        )
        for kind, words in WORDS.items()
    }
