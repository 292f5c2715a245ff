"""The index over a store's banks, kept up while it is searched.

Searchers take a `Snapshot`, which never changes: a few segments, the largest mapped from files, and for each the
entries that still hold. A change kills its entry's old row and adds a segment of the new ones; small segments are
merged with their equals, so there are never many. Now and then all that is in memory, and what of the files it outgrew,
is written to a new file, beside searches and changes.

What is kept in the folder: ``segment-*.bank``, ``alive-*.bank`` and ``index.json``, which names them and says up to
which change of the store they go. They can be made again from the store, and are, when one of them is damaged.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import array_file, bank_columns
from seawall.perceptual_hashing.array_file import Damaged
from seawall.perceptual_hashing.bank_changes import MATCHED_STATES
from seawall.perceptual_hashing.bank_columns import Columns, Row
from seawall.perceptual_hashing.bank_segments import Segment, build_threads
from seawall.perceptual_hashing.bank_store import BankStore, Held, StoreState
from seawall.runtime.logging import get_logger

MANIFEST: Final = "index.json"
_LOCK: Final = "index.lock"
#: Changes taken at a time. Between two pages other threads get the interpreter.
_PAGE: Final = 512
#: A segment in memory is merged with the one before it unless that is so much larger.
_MEMORY_FACTOR: Final = 8
#: The same for segments in files, which are written anew for it.
_FILE_FACTOR: Final = 4
#: Entries in memory from which on they are written to a file.
COMPACT_FROM: Final = 65_536
#: Rows of a build from the store that are in memory as Python objects at a time.
_BUILD_PAGE: Final = 200_000
#: How often the kept files may change under a load.
_LOADS: Final = 5

_log = get_logger(__name__)

Alive = npt.NDArray[np.bool_]
#: States of entries that are listed elsewhere, or whose bank has no card yet, by (bank, entry_id).
Overrides = dict[tuple[str, str], bank_pb2.EntryState.ValueType]


class Part(NamedTuple):
    """A segment and which of its entries hold; None: all."""

    segment: Segment
    alive: Alive | None
    #: The file it is mapped from; "": in memory.
    file: str = ""

    @property
    def living(self) -> int:
        return len(self.segment) if self.alive is None else int(np.count_nonzero(self.alive))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is searched. Immutable."""

    parts: tuple[Part, ...] = ()
    #: The banks of the store as they are at ``sequence``.
    banks: Mapping[str, Held] | None = None
    #: The store's number of the last change that is in it.
    sequence: int = 0
    #: Entries of banks that are not in the store, with a state that is: (bank, entry_id) -> state.
    overrides: Mapping[tuple[str, str], bank_pb2.EntryState.ValueType] = field(default_factory=dict)
    #: How each bank's PDQ hashes were taken in.
    pipelines: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(part.living for part in self.parts)


class BankIndex:
    """The index of one store for one process. `snapshot` may be read by any thread at any time."""

    def __init__(self, store: BankStore) -> None:
        """Open what is kept, or build it from the store, and take in the changes since. Takes seconds for millions.

        Raises:
            Fatal: as `BankStore`; ``BANK_INDEX_UNWRITABLE``.
        """
        self._store = store
        self._folder = store.path.parent
        #: One at a time changes the snapshot; readers never take it.
        self._changing = threading.Lock()
        #: The manifest that the snapshot began with.
        self._base: tuple[int, int] | None = None
        self.snapshot = Snapshot()
        _warm()
        with self._changing:
            self._catch_up(self._load())

    def refresh(self) -> bool:
        """Take in what the store has got since. Returns whether there was anything.

        Raises Fatal, Retryable as `BankStore`.
        """
        with self._changing:
            return self._refresh()

    def wants_compaction(self) -> bool:
        """Whether there is so much in memory that `compact` would write it."""
        return sum(len(part.segment) for part in self.snapshot.parts if not part.file) >= COMPACT_FROM

    def compact(self, *, everything: bool = False) -> bool:
        """Write what is in memory to a file, if it is much or ``everything`` is meant. Returns whether it did.

        Searches and refreshes go on meanwhile. After a crash there is the old set of files or the new one. Of several
        processes on one folder one does it, and the others take over what it wrote.

        Raises Fatal("BANK_INDEX_UNWRITABLE").
        """
        before = self.snapshot
        if not everything and not self.wants_compaction():
            return False
        try:
            with _exclusive(self._folder / _LOCK) as mine:
                if not mine:
                    return False
                if self._rewritten():
                    # Another process has just done it.
                    self._adopt()
                    return True
                self._write(before, everything)
        except OSError as error:
            raise Fatal(
                "BANK_INDEX_UNWRITABLE", f"the index of banks cannot be written ({error.strerror}): see banks.store"
            ) from None
        self._adopt()
        return True

    # ---- changes -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> bool:
        began = self.snapshot
        self._catch_up(self._load() if self._rewritten() else began)
        return self.snapshot is not began

    def _catch_up(self, current: Snapshot) -> None:
        """Go on from ``current`` to what the store holds; what was visible already stays so meanwhile."""
        while True:
            state = self._store.state()
            if current.sequence >= state.sequence:
                if current.banks is None:
                    current = replace(current, banks=state.banks)
                self.snapshot = current
                return
            while current.sequence < state.sequence:
                current = self._with_changes(current, self._store.since(current.sequence, _PAGE), state)
                if current.sequence >= self.snapshot.sequence:
                    self.snapshot = current
                # Whoever waits for the interpreter gets it now, not after its switch interval.
                time.sleep(0)

    def _with_changes(
        self, snapshot: Snapshot, changes: Sequence[tuple[int, bank_pb2.BankChange]], state: StoreState
    ) -> Snapshot:
        sequence = changes[-1][0]
        entries: list[bank_pb2.BankEntry] = []
        work = _Work(list(snapshot.parts), dict(snapshot.overrides), dict(snapshot.pipelines))
        for _, change in changes:
            if change.HasField("entry"):
                entries.append(change.entry)
            elif work.pipelines.get(change.bank.name) != change.bank.pipeline:
                # The card came after entries, or they are to be matched otherwise from now on: all of them anew.
                work.pipelines[change.bank.name] = change.bank.pipeline
                for page in _pages(self._store.entries(change.bank.name), _PAGE):
                    work.take(page)
        work.take(entries)
        # Digests and counts are of the state's last change: they are told once that is in.
        banks = state.banks if sequence >= state.sequence or snapshot.banks is None else snapshot.banks
        return Snapshot(tuple(work.parts), banks, sequence, work.overrides, work.pipelines)

    # ---- files -------------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        with self._changing:
            self._catch_up(self._load())

    def _rewritten(self) -> bool:
        """Whether the folder has another manifest than the one that was loaded."""
        found = _stamp(self._folder)
        return found is not None and found != self._base

    def _load(self) -> Snapshot:
        """What is kept; or where that is absent, damaged or of another store, the same from the store."""
        state = self._store.state()
        for _ in range(_LOADS):
            self._base = _stamp(self._folder)
            try:
                return _read(self._folder, state)
            except FileNotFoundError:
                break
            except (Damaged, OSError) as error:
                if _stamp(self._folder) != self._base:
                    # Another process has just written it anew, and removed the files this one was about to open.
                    continue
                _log.error(
                    "the index of banks is damaged and is built again from the store: check the disk if it recurs",
                    what=str(error) if isinstance(error, Damaged) else error.strerror,
                )
                break
        return self._from_store(state)

    def _from_store(self, state: StoreState) -> Snapshot:
        pipelines = {bank: held.card.pipeline for bank, held in state.banks.items() if held.card is not None}
        parts: list[tuple[Columns, None]] = []
        overrides: Overrides = {}
        for bank in state.banks:
            for page in _pages(self._store.entries(bank), _BUILD_PAGE):
                rows = _rows(page, pipelines, overrides)
                if rows:
                    parts.append((bank_columns.from_rows(rows.values()), None))
        # Changes that came while this was read are in it, and are taken in again later: they are whole entries.
        made: tuple[Part, ...] = ()
        if parts:
            columns = bank_columns.merge(parts) if len(parts) > 1 else parts[0][0]
            made = (Part(Segment.build(columns, build_threads()), None),)
        return Snapshot(made, state.banks, state.sequence, overrides, pipelines)

    def _write(self, snapshot: Snapshot, everything: bool) -> None:
        parts = list(snapshot.parts)
        merged: list[Part] = []
        total = 0
        while parts and (
            everything
            or not parts[-1].file
            or parts[-1].living <= _FILE_FACTOR * total
            # Half of it is dead: it costs its room and its searches.
            or parts[-1].living * 2 < len(parts[-1].segment)
        ):
            merged.insert(0, parts.pop())
            total += merged[0].living
        stamp = f"{snapshot.sequence}-{time.time_ns()}"
        kept = [(part.file, part.alive) for part in parts]
        if total:
            columns = bank_columns.merge([(part.segment.columns, part.alive) for part in merged])
            file = f"segment-{stamp}.bank"
            Segment.build(columns, build_threads()).write(self._folder / file)
            kept.append((file, None))
        names = keep(self._folder, self._store.state().identity, snapshot, kept, stamp)
        # Whoever still maps an old file keeps it until it lets go.
        for path in (*self._folder.glob("segment-*.bank"), *self._folder.glob("alive-*.bank")):
            if path.name not in names:
                path.unlink(missing_ok=True)
        for path in self._folder.glob(".*.bank.part"):
            path.unlink(missing_ok=True)


def _warm() -> None:
    """Compile, or load from the cache, what the first change would otherwise wait for, and searches with it."""
    rows = [Row("", name, 0, False, "", [("pdq.512", bytes(32))]) for name in "ab"]
    parts = [Part(Segment.build(bank_columns.from_rows([row])), None) for row in rows]
    _settle(parts)
    parts[0].segment.search("pdq.512", np.zeros((1, 4), np.uint64), 0)


def keep(
    folder: Path, identity: int, snapshot: Snapshot, kept: Sequence[tuple[str, Alive | None]], stamp: str
) -> frozenset[str]:
    """Make segment files, which are there already, the index of a store at ``snapshot``. Returns the names in it.

    Args:
        identity: the store's.
        kept: each file, and which of its entries hold.
        stamp: of this index among all that the folder has had.

    Raises OSError.
    """
    alive = {file: np.packbits(mask) for file, mask in kept if mask is not None}
    alive_file = f"alive-{stamp}.bank" if alive else ""
    if alive:
        array_file.write(folder / alive_file, alive, None)
    manifest = {
        "store": identity,
        "sequence": snapshot.sequence,
        "segments": [file for file, _ in kept],
        "alive": alive_file,
        "pipelines": dict(snapshot.pipelines),
        "overrides": [[*place, int(state)] for place, state in snapshot.overrides.items()],
    }
    _replace(folder / MANIFEST, json.dumps(manifest).encode())
    return frozenset((alive_file, *(file for file, _ in kept)))


def verify(folder: Path, store: BankStore) -> int:
    """Check the kept index against its checksums. Returns how many segments there are.

    Raises Fatal("BANK_INDEX_DAMAGED") with the mend.
    """
    try:
        snapshot = _read(folder, store.state())
    except FileNotFoundError:
        return 0
    except (Damaged, OSError) as error:
        what = str(error) if isinstance(error, Damaged) else error.strerror
        raise Fatal(
            "BANK_INDEX_DAMAGED",
            f"{what}: `seawall banks verify --repair` builds it again from the store, as a service does that starts",
        ) from None
    return len(snapshot.parts)


def discard(folder: Path) -> None:
    """Forget the kept index: it is built again from the store."""
    for path in (folder / MANIFEST, *folder.glob("segment-*.bank"), *folder.glob("alive-*.bank")):
        path.unlink(missing_ok=True)


def _read(folder: Path, state: StoreState) -> Snapshot:
    """The kept index. Raises FileNotFoundError where there is none, Damaged, OSError."""
    content = (folder / MANIFEST).read_bytes()
    try:
        manifest: dict[str, Any] = json.loads(content)
        files, sequence = manifest["segments"], manifest["sequence"]
        pipelines: dict[str, str] = dict(manifest["pipelines"])
        overrides = {(bank, entry_id): held for bank, entry_id, held in manifest["overrides"]}
        alive_file = manifest["alive"]
        if manifest["store"] != state.identity or sequence > state.sequence:
            raise Damaged(f"{MANIFEST} is of another store")
    except (KeyError, TypeError, ValueError):
        raise Damaged(f"{MANIFEST} cannot be read") from None
    try:
        masks = array_file.open_(folder / alive_file).arrays if alive_file else {}
        parts = []
        for file in files:
            segment = Segment.open(folder / file)
            mask = masks.get(file)
            alive = None if mask is None else np.unpackbits(mask, count=len(segment)).astype(np.bool_)
            parts.append(Part(segment, alive, file))
    except FileNotFoundError as error:
        raise Damaged(f"{Path(str(error.filename)).name} is missing") from None
    except Damaged as error:
        raise Damaged(f"a file that {MANIFEST} names: {error}") from None
    return Snapshot(tuple(parts), None, sequence, overrides, pipelines)


class _Work:
    """What a page of changes is done to."""

    def __init__(self, parts: list[Part], overrides: Overrides, pipelines: dict[str, str]) -> None:
        self.parts = parts
        self.overrides = overrides
        self.pipelines = pipelines

    def take(self, entries: Sequence[bank_pb2.BankEntry]) -> None:
        """Let these entries be what they are now."""
        if not entries:
            return
        keys = np.array([bank_columns.entry_key(entry.bank, entry.entry_id) for entry in entries], np.uint32)
        self.parts = [_without(part, entries, keys) for part in self.parts]
        rows = _rows(entries, self.pipelines, self.overrides)
        if rows:
            self.parts.append(Part(Segment.build(bank_columns.from_rows(rows.values())), None))
            _settle(self.parts)


def _rows(
    entries: Iterable[bank_pb2.BankEntry], pipelines: Mapping[str, str], overrides: Overrides
) -> dict[tuple[str, str], Row]:
    """Those of the entries that are matched, the last one of a name; states of what is listed elsewhere go apart."""
    rows: dict[tuple[str, str], Row] = {}
    for entry in entries:
        place = (entry.bank, entry.entry_id)
        rows.pop(place, None)
        overrides.pop(place, None)
        pipeline = pipelines.get(entry.bank)
        if not entry.hashes or pipeline is None:
            if entry.state in (bank_pb2.ENTRY_STATE_DISABLED, bank_pb2.ENTRY_STATE_QUARANTINED):
                overrides[place] = entry.state
        elif entry.state in MATCHED_STATES:
            rows[place] = bank_columns.row_of(entry, pipeline)
    return rows


def _without(part: Part, entries: Sequence[bank_pb2.BankEntry], keys: npt.NDArray[np.uint32]) -> Part:
    """The part without these entries, whose keys are given."""
    columns = part.segment.columns
    places = np.searchsorted(columns.key, keys)
    inside = places < len(columns)
    there = np.zeros(len(keys), np.bool_)
    there[inside] = columns.key[places[inside]] == keys[inside]
    dead = [
        at
        for number in np.flatnonzero(there).tolist()
        if (at := columns.find(entries[number].bank, entries[number].entry_id)) >= 0
    ]
    if not dead:
        return part
    alive = np.ones(len(columns), np.bool_) if part.alive is None else part.alive.copy()
    alive[dead] = False
    return part._replace(alive=alive)


def _settle(parts: list[Part]) -> None:
    """Merge the last parts where they are of a size."""
    while len(parts) > 1 and not parts[-2].file and len(parts[-2].segment) <= _MEMORY_FACTOR * len(parts[-1].segment):
        last, before = parts.pop(), parts.pop()
        columns = bank_columns.merge([(part.segment.columns, part.alive) for part in (before, last)])
        parts.append(Part(Segment.build(columns), None))


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Tells one manifest from another; None: there is none."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns)


def _pages(entries: Iterable[bank_pb2.BankEntry], size: int) -> Iterator[list[bank_pb2.BankEntry]]:
    page: list[bank_pb2.BankEntry] = []
    for entry in entries:
        page.append(entry)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


@contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Whether this process may write; False at once if another one does."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    array_file.sync_folder(path.parent)
