"""The store of banks that change: every entry with its state and provenance, in one SQLite file.

It is the truth; indexes (`bank_segments`) are made from it and can be made again. A transaction holds the changes, the
checkpoint they reach and the position in the topic they came from: after kill -9 all three are there, or none.

Readers in any process see what is committed and never wait for a writer. Every change gets the store's next sequence
number, so `since` tells what is new.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal, Retryable
from seawall.perceptual_hashing import bank_changes

FILE: Final = "banks.sqlite3"
#: Of the tables below; a store of another version is refused.
VERSION: Final = 1
#: How long a writer waits for another (seconds).
_WAIT: Final = 30.0
_PAGE: Final = 10_000
_MODULUS: Final = 2**256

_TABLES = """
CREATE TABLE entries(
  bank TEXT NOT NULL, entry_id TEXT NOT NULL,
  -- The last change, as it was written: a seawall.api.bank.v1.BankChange.
  change BLOB NOT NULL,
  state INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  -- 1: made here and not yet written to the topic.
  unpublished INTEGER NOT NULL,
  PRIMARY KEY(bank, entry_id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX entries_by_seq ON entries(seq);
CREATE INDEX entries_unpublished ON entries(seq) WHERE unpublished = 1;
-- Sums over a bank's entries, kept up by every change, so that a digest costs nothing.
CREATE TABLE sums(bank TEXT PRIMARY KEY, listed INTEGER NOT NULL, total BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE checkpoints(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE positions(
  topic TEXT, partition INTEGER, next INTEGER NOT NULL, PRIMARY KEY(topic, partition)
) WITHOUT ROWID;
CREATE TABLE numbers(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO numbers VALUES ('seq', 0), ('identity', abs(random()));
"""
#: entry_id of a bank's own card.
_CARD: Final = ""


class Applied(NamedTuple):
    """What `BankStore.apply` did."""

    #: Changes that altered something, and those that were there already.
    changed: int
    unchanged: int


class BankSummary(NamedTuple):
    """A bank of the store."""

    #: None: entries came, and the card has not yet; nothing of it matches.
    card: bank_pb2.Bank | None
    #: Entries by state.
    states: Mapping[bank_pb2.EntryState.ValueType, int]
    digest: bytes


class Held(NamedTuple):
    """A bank as the index needs to know it."""

    card: bank_pb2.Bank | None
    #: Entries that are matched.
    listed: int
    digest: bytes


class StoreState(NamedTuple):
    """The store at one instant."""

    #: Of this file: another store has another.
    identity: int
    sequence: int
    banks: Mapping[str, Held]


class BankStore:
    """One process's view of a folder's store. Safe for threads, and for other processes on the same folder."""

    def __init__(self, folder: Path) -> None:
        """Open the store, or make an empty one.

        Raises:
            Fatal: ``BANK_STORE_CORRUPT``, ``BANK_STORE_VERSION`` or ``BANK_STORE_UNREADABLE``, with the mend.
        """
        self.path = folder / FILE
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions are begun where they are meant.
            self._connection = sqlite3.connect(
                self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            # What apply acknowledges outlives the machine, not only the process.
            self._connection.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _TABLES.split(";"):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {VERSION}")
                elif version != VERSION:
                    raise Fatal(
                        "BANK_STORE_VERSION",
                        f"{FILE} has version {version}, this program knows {VERSION}: run the version that wrote it, "
                        "or export its banks with that version and import them here",
                    )
        except OSError as error:
            raise Fatal("BANK_STORE_UNREADABLE", f"the folder of {FILE}: {error.strerror}: see banks.store") from None
        except sqlite3.Error as error:
            raise _fault(error) from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # ---- writing -----------------------------------------------------------------------------------------------------

    def apply(
        self,
        changes: Iterable[bank_pb2.BankChange],
        *,
        checkpoint: tuple[str, str] | None = None,
        positions: Mapping[tuple[str, int], int] | None = None,
    ) -> Applied:
        """Apply changes in the order given, the last one of a key holding; all of them or, on any error, none.

        Applying the same changes again changes nothing. Give a few thousand at a time: each call waits for the disk.

        Args:
            checkpoint: (name, value) to remember with them, for `checkpoint`: how far a source has been read.
            positions: next offset by (topic, partition), where the changes were read from the topic; without it they
                are this replica's own, and `unpublished` lists them.

        Raises:
            Poison: ``BAD_BANK_CHANGE``, see `bank_changes.check`.
            Retryable: ``BANK_STORE_BUSY``, another process wrote for too long. Fatal: the disk is full or broken.
        """
        ready = []
        for change in changes:
            bank_changes.check(change)
            ready.append(change)
        own = positions is None
        altered = 0
        with self._writing() as write:
            for change in ready:
                altered += write.one(change, own)
            write.end()
            if checkpoint is not None:
                self._connection.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", checkpoint)
            for (topic, partition), following in (positions or {}).items():
                self._connection.execute(
                    "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", (topic, partition, following)
                )
        return Applied(altered, len(ready) - altered)

    def published(self, up_to: int) -> None:
        """What `unpublished` gave up to this sequence number is in the topic."""
        with self._writing():
            self._connection.execute("UPDATE entries SET unpublished = 0 WHERE unpublished = 1 AND seq <= ?", (up_to,))

    def forget_position(self, topic: str) -> None:
        """The topic was made anew: read it from its beginning."""
        with self._writing():
            self._connection.execute("DELETE FROM positions WHERE topic = ?", (topic,))

    # ---- reading -----------------------------------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """The number of the last change."""
        return int(self._rows("SELECT value FROM numbers WHERE name = 'seq'")[0][0])

    def checkpoint(self, name: str) -> str | None:
        """How far the source ``name`` has been read, as it was given to `apply`."""
        rows = self._rows("SELECT value FROM checkpoints WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def positions(self, topic: str) -> dict[int, int]:
        """Next offset to read by partition of the topic."""
        return dict(self._rows("SELECT partition, next FROM positions WHERE topic = ?", (topic,)))

    def since(self, sequence: int, limit: int = _PAGE) -> list[tuple[int, bank_pb2.BankChange]]:
        """The newest change of each key after ``sequence``, with its number; oldest first, at most ``limit``."""
        rows = self._rows("SELECT seq, change FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", (sequence, limit))
        return [(seq, bank_pb2.BankChange.FromString(raw)) for seq, raw in rows]

    def unpublished(self, limit: int = _PAGE) -> list[tuple[int, bytes, bytes]]:
        """(number, key, value) of changes that were made here and are not in the topic yet, oldest first."""
        rows = self._rows(
            "SELECT seq, bank, entry_id, change FROM entries WHERE unpublished = 1 ORDER BY seq LIMIT ?", (limit,)
        )
        return [(seq, (f"{bank}/{entry}" if entry else bank).encode(), raw) for seq, bank, entry, raw in rows]

    def state(self) -> StoreState:
        """What holds now."""
        with self._lock, self._reading():
            (sequence,) = self._connection.execute("SELECT value FROM numbers WHERE name = 'seq'").fetchone()
            (identity,) = self._connection.execute("SELECT value FROM numbers WHERE name = 'identity'").fetchone()
            rows = self._connection.execute(
                "SELECT sums.bank, listed, total, change FROM sums "
                "LEFT JOIN entries ON entries.bank = sums.bank AND entry_id = ''"
            ).fetchall()
        held = {
            bank: Held(bank_pb2.BankChange.FromString(raw).bank if raw else None, listed, total)
            for bank, listed, total, raw in rows
        }
        return StoreState(identity, sequence, held)

    def card(self, bank: str) -> bank_pb2.Bank | None:
        """A bank's card; None: there is none."""
        rows = self._rows("SELECT change FROM entries WHERE bank = ? AND entry_id = ?", (bank, _CARD))
        return bank_pb2.BankChange.FromString(rows[0][0]).bank if rows else None

    def entry(self, bank: str, entry_id: str) -> bank_pb2.BankEntry | None:
        """One entry in whatever state; None: never heard of."""
        if not entry_id:
            return None
        rows = self._rows("SELECT change FROM entries WHERE bank = ? AND entry_id = ?", (bank, entry_id))
        return bank_pb2.BankChange.FromString(rows[0][0]).entry if rows else None

    def entries(self, bank: str) -> Iterator[bank_pb2.BankEntry]:
        """Every entry of a bank in whatever state, by entry_id. Read in pages: changes made meanwhile may show."""
        last = _CARD
        while True:
            rows = self._rows(
                "SELECT entry_id, change FROM entries WHERE bank = ? AND entry_id > ? ORDER BY entry_id LIMIT ?",
                (bank, last, _PAGE),
            )
            for _, raw in rows:
                yield bank_pb2.BankChange.FromString(raw).entry
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def banks(self) -> dict[str, BankSummary]:
        """Every bank that has a card or entries, by name."""
        with self._lock, self._reading():
            cards = self._connection.execute(
                "SELECT sums.bank, change FROM sums JOIN entries ON entries.bank = sums.bank AND entry_id = ''"
            ).fetchall()
            counts = self._connection.execute(
                "SELECT bank, state, count(*) FROM entries WHERE entry_id != '' GROUP BY bank, state"
            ).fetchall()
            sums = self._connection.execute("SELECT bank, total FROM sums").fetchall()
        by_name = {bank: bank_pb2.BankChange.FromString(raw).bank for bank, raw in cards}
        states: dict[str, dict[bank_pb2.EntryState.ValueType, int]] = {}
        for bank, state, count in counts:
            states.setdefault(bank, {})[state] = count
        return {bank: BankSummary(by_name.get(bank), states.get(bank, {}), total) for bank, total in sorted(sums)}

    def digests(self) -> dict[str, bytes]:
        """Digest of every bank: equal where card and entries are, in whatever order they came.

        The sum, modulo 2**256, of `bank_changes.digest` of the card and of every entry that is not removed. It tells
        replicas apart; it is no proof against whoever writes the list.
        """
        return dict(self._rows("SELECT bank, total FROM sums ORDER BY bank"))

    def verify(self) -> None:
        """Check the file's structure and every sum against its entries. Raises Fatal("BANK_STORE_CORRUPT")."""
        problems = [row[0] for row in self._rows("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            raise _corrupt("its structure is damaged")
        with self._lock, self._reading():
            totals: dict[str, int] = {}
            for bank, raw in self._connection.execute("SELECT bank, change FROM entries"):
                try:
                    change = bank_pb2.BankChange.FromString(raw)
                except ValueError:
                    raise _corrupt(f"an entry of bank {bank} cannot be read") from None
                totals[bank] = (totals.get(bank, 0) + _weight(change)) % _MODULUS
            kept = dict(self._connection.execute("SELECT bank, total FROM sums"))
        if kept != {bank: total.to_bytes(32, "big") for bank, total in totals.items()}:
            raise _corrupt("the digests are not those of the entries")

    # ---- SQLite ------------------------------------------------------------------------------------------------------

    def _rows(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _fault(error) from None

    @contextmanager
    def _writing(self) -> Iterator[_Write]:
        try:
            with self._lock, self._transaction():
                yield _Write(self._connection)
        except sqlite3.Error as error:
            raise _fault(error) from None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Several statements over one state."""
        try:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _fault(error) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


class _Write:
    """The changes of one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        (self._seq,) = connection.execute("SELECT value FROM numbers WHERE name = 'seq'").fetchone()
        #: bank -> [entries, sum], as far as they were touched.
        self._sums: dict[str, list[int]] = {}

    def one(self, change: bank_pb2.BankChange, own: bool) -> bool:
        """Whether it altered anything."""
        bank, entry_id, state = _place(change)
        raw = change.SerializeToString()
        row = self._connection.execute(
            "SELECT change FROM entries WHERE bank = ? AND entry_id = ?", (bank, entry_id)
        ).fetchone()
        if row is not None and row[0] == raw:
            return False
        sums = self._sums.get(bank) or self._load(bank)
        if row is not None:
            before = bank_pb2.BankChange.FromString(row[0])
            sums[0] -= _counts(before)
            sums[1] -= _weight(before)
        sums[0] += _counts(change)
        sums[1] += _weight(change)
        self._seq += 1
        self._connection.execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?)", (bank, entry_id, raw, state, self._seq, own)
        )
        return True

    def end(self) -> None:
        for bank, (listed, total) in self._sums.items():
            self._connection.execute(
                "INSERT OR REPLACE INTO sums VALUES (?, ?, ?)", (bank, listed, (total % _MODULUS).to_bytes(32, "big"))
            )
        self._connection.execute("UPDATE numbers SET value = ? WHERE name = 'seq'", (self._seq,))

    def _load(self, bank: str) -> list[int]:
        row = self._connection.execute("SELECT listed, total FROM sums WHERE bank = ?", (bank,)).fetchone()
        self._sums[bank] = [row[0], int.from_bytes(row[1], "big")] if row else [0, 0]
        return self._sums[bank]


def _place(change: bank_pb2.BankChange) -> tuple[str, str, int]:
    if change.HasField("bank"):
        return change.bank.name, _CARD, change.bank.state
    return change.entry.bank, change.entry.entry_id, change.entry.state


def _counts(change: bank_pb2.BankChange) -> int:
    return int(change.HasField("entry") and change.entry.state in bank_changes.MATCHED_STATES)


def _weight(change: bank_pb2.BankChange) -> int:
    if change.HasField("entry") and change.entry.state == bank_pb2.ENTRY_STATE_REMOVED:
        return 0
    return int.from_bytes(bank_changes.digest(change), "big")


def _fault(error: sqlite3.Error) -> Fatal | Retryable:
    code = getattr(error, "sqlite_errorname", "")
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Retryable("BANK_STORE_BUSY", f"{FILE}: another process has been writing for {_WAIT:.0f} s: try again")
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return _corrupt("it is no sound database")
    return Fatal("BANK_STORE_UNREADABLE", f"{FILE}: {code or type(error).__name__}: check its disk, mode and folder")


def _corrupt(what: str) -> Fatal:
    return Fatal(
        "BANK_STORE_CORRUPT",
        f"{FILE}: {what}: move the store's folder away and start again; it is filled from the topic bank_entries.v1, "
        "or from the imported files",
    )
