"""The banks of a service while it runs: folders, the store, and the topic behind it.

A thread looks for changes and swaps the matcher: an item is judged by one matcher from beginning to end, and no request
waits or is dropped. A second thread writes the index's files when there is enough to write.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Final, Protocol

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal, Retryable, SeawallError
from seawall.perceptual_hashing import bank_changes, bank_store, banks
from seawall.perceptual_hashing.bank_index import BankIndex
from seawall.perceptual_hashing.bank_replication import BankReplication
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.flood import FloodWatch
from seawall.perceptual_hashing.matcher import COUNTS, QUARANTINED, BankInfo, Match, Matcher, index_of
from seawall.perceptual_hashing.plug_in_hashes import PlugInHashes
from seawall.perceptual_hashing.settings import BankSettings
from seawall.perceptual_hashing.signal_types import SignalType
from seawall.runtime import metrics
from seawall.runtime.broker import Broker
from seawall.runtime.logging import get_logger

_LOCK: Final = "follow.lock"
#: Between two attempts when the broker is away (seconds).
_AGAIN_SECONDS: Final = 2.0

_log = get_logger(__name__)


class ListedBanks(Protocol):
    """What the scorer asks of banks."""

    @property
    def matcher(self) -> Matcher:
        """Of this instant; it never changes."""
        ...

    def unready(self) -> str:
        """Why nothing may be scored now; empty: it may."""
        ...

    def observed(self, match: Match, content: bytes) -> Match:
        """A match of this content (its SHA-256) was found. Returns it, held if its entry is flooding."""
        ...


class LiveBanks:
    """See the module. `start` once; `stop` ends the threads."""

    def __init__(
        self,
        settings: BankSettings,
        *,
        plug_ins: Sequence[SignalType] = (),
        broker: Callable[[], Broker] | None = None,
        topic: str = "bank_entries.v1",
    ) -> None:
        """Load and verify every bank.

        Args:
            plug_ins: those whose hashes are made, and so can be matched.
            broker: makes the broker to follow; None: the store alone.

        Raises:
            Fatal: as `banks.load_all` and `BankStore`; ``BANK_TWICE``.
        """
        self._settings = settings
        self._broker = broker if settings.follow else None
        self._topic = topic
        self._folders = banks.load_all(settings.folder)
        self._fixed = index_of(self._folders)
        self._flood = FloodWatch(settings.flood)
        #: Entries whose quarantine is in the store from this change on, and may not be in the matcher yet.
        self._quarantined: dict[tuple[str, str], int] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._store: BankStore | None = None
        self._index: BankIndex | None = None
        self._compacting = threading.Lock()
        #: The digest that the gauges last told of, by bank.
        self._told: dict[str, bytes] = {}
        #: Set by the follower when it has read the topic to its end once.
        self._caught_up = threading.Event()
        self._failure: SeawallError | None = None
        self._plug_ins = PlugInHashes(plug_ins)
        self.matcher = Matcher(self._folders, fixed=self._fixed, plug_ins=self._plug_ins)
        self._tell(self.matcher.banks)
        _tell_not_matched(self.matcher)
        if self._broker is not None:
            self._open_store()
        self._refresh()

    def start(self) -> None:
        """Follow what changes. Where a topic is followed, returns when it has been read to its end.

        Raises:
            Fatal, Retryable: as `BankReplication`. Fatal: ``NO_BANKS``, nothing is listed, so nothing could ever match;
                ``EMPTY_BANK``, ``BANK_MISSING``, ``SIGNAL_TYPE_MISSING``, of one that is required. Not so where a topic
                is followed: the service waits, NOT_SERVING, for what comes.
        """
        work = [self._watch] if self._broker is None else [self._watch, self._replicate]
        for target in work:
            thread = threading.Thread(target=target, name=f"banks{target.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()
        if self._broker is not None:
            # The follower gives up by itself, with the reason.
            self._caught_up.wait(self._settings.catch_up_seconds + 60)
            if self._failure is not None:
                raise self._failure
            self._refresh()
        elif reason := self.unready():
            raise _refusal(reason, self._settings)

    def stop(self) -> None:
        """End the threads; bounded."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5)

    # ---- what the scorer asks ----------------------------------------------------------------------------------------

    def unready(self) -> str:
        """See `ListedBanks`."""
        listed = self.matcher.banks
        now = self.matcher.now()
        for name in self._settings.required:
            bank = listed.get(name)
            if bank is None:
                return f"BANK_MISSING: bank {name} is required and not there"
            if bank.matches_nothing(now):
                return f"EMPTY_BANK: bank {name} is required and has no entries: it would match nothing"
            if missing := self.matcher.not_matched(bank):
                return f"SIGNAL_TYPE_MISSING: bank {name} is required and lists {missing[0]} hashes, which nobody makes"
        if not self._settings.allow_none and all(bank.matches_nothing(now) for bank in listed.values()):
            return "NO_BANKS: no bank lists anything, so nothing would ever match"
        return ""

    def observed(self, match: Match, content: bytes) -> Match:
        """See `ListedBanks`."""
        if match.exact or match.bank.negative or match.disposition != COUNTS:
            return match
        place = (match.bank.name, match.entry_id)
        if self._flood.observe(*place, content):
            metrics.BANK_FLOODS.add(1, {metrics.BANK: match.bank.name})
            _log.error(
                "an entry suddenly matches far more than its history: its loose matches are held for review until "
                "`seawall banks enable` or `disable`",
                bank=match.bank.name,
                entry_id=match.entry_id,
            )
            threading.Thread(target=self._quarantine, args=place, name="banks-quarantine", daemon=True).start()
        return match._replace(disposition=QUARANTINED) if self._flood.flooding(*place) else match

    def _quarantine(self, bank: str, entry_id: str) -> None:
        """Let the other replicas know."""
        try:
            store = self._open_store()
            set_state(store, bank, entry_id, bank_pb2.ENTRY_STATE_QUARANTINED, origin="flood", reason="FLOOD")
            self._quarantined[bank, entry_id] = store.sequence
        except SeawallError as error:
            # It is held here all the same, as long as this process lives.
            _log.error("a quarantined entry cannot be kept", reason=error.reason, bank=bank, entry_id=entry_id)

    def _tell(self, listed: Mapping[str, BankInfo]) -> None:
        for bank in listed.values():
            name = {metrics.BANK: bank.name}
            metrics.BANK_ENTRIES.set(bank.listed, name)
            if self._told.get(bank.name) != bank.digest:
                self._told[bank.name] = bank.digest
                metrics.BANK_CHANGED_AT.set(time.time(), name)
            if bank.expires_unix_nano:
                metrics.BANK_EXPIRES_AT.set(bank.expires_unix_nano / 1e9, name)

    # ---- the threads -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.wait(self._settings.poll_seconds):
            try:
                self._refresh()
                index = self._index
                if index is not None and index.wants_compaction() and self._compacting.acquire(blocking=False):
                    threading.Thread(target=self._compact, args=(index,), name="banks-compact", daemon=True).start()
            except SeawallError as error:
                _log.error("banks cannot be refreshed: the last ones serve", reason=error.reason, detail=error.detail)

    def _compact(self, index: BankIndex) -> None:
        try:
            index.compact()
        except SeawallError as error:
            _log.error("the index of banks stays in memory", reason=error.reason, detail=error.detail)
        finally:
            self._compacting.release()

    def _refresh(self) -> None:
        if self._index is None:
            if self._store is None and not (self._settings.store / bank_store.FILE).exists():
                return
            self._index = BankIndex(self._open_store())
        else:
            self._index.refresh()
        if self._index.snapshot is not self.matcher.snapshot:
            self._swap(self._index)
        for place, sequence in list(self._quarantined.items()):
            if self._index.snapshot.sequence >= sequence:
                # From now on the store says it, until a person says otherwise.
                del self._quarantined[place]
                self._flood.release(*place)

    def _swap(self, index: BankIndex) -> None:
        before = self.matcher
        twice = sorted({bank.card.name for bank in self._folders} & _with_card(index))
        if twice:
            raise Fatal(
                "BANK_TWICE", f"bank {twice[0]} is a folder and is in the store: move the folder away, or rename it"
            )
        self.matcher = Matcher(self._folders, index.snapshot, fixed=self._fixed, plug_ins=self._plug_ins)
        if self.matcher.banks != before.banks:
            self._tell(self.matcher.banks)
        if [bank.signal_types for bank in self.matcher.banks.values()] != [
            bank.signal_types for bank in before.banks.values()
        ]:
            _tell_not_matched(self.matcher)

    def _open_store(self) -> BankStore:
        if self._store is None:
            self._store = BankStore(self._settings.store)
        return self._store

    def _replicate(self) -> None:
        try:
            with (self._settings.store / _LOCK).open("wb") as lock:
                while not self._stop.is_set():
                    if _locked(lock):
                        asyncio.run(self._follow())
                        return
                    # Another process on this folder follows, and this one reads what it wrote.
                    self._caught_up.set()
                    self._stop.wait(_AGAIN_SECONDS)
        except SeawallError as error:
            self._failure = error
            self._caught_up.set()
            _log.error("bank entries are not followed any more", reason=error.reason, detail=error.detail)

    async def _follow(self) -> None:
        if self._broker is None:
            return
        broker, store = self._broker(), self._open_store()
        while not self._stop.is_set():
            replication = BankReplication(broker, self._topic, store)
            try:
                await replication.start()
                if not self._caught_up.is_set():
                    await replication.catch_up(self._settings.catch_up_seconds)
                    self._caught_up.set()
                while not self._stop.is_set():
                    await replication.publish()
                    await replication.step(self._settings.poll_seconds)
            except Retryable as error:
                if not self._caught_up.is_set() and error.reason == "BANK_TOPIC_BEHIND":
                    raise Fatal(error.reason, error.detail) from error
                _log.warning("bank entries wait for the broker", reason=error.reason, detail=error.detail)
                await asyncio.sleep(_AGAIN_SECONDS)
            finally:
                with contextlib.suppress(SeawallError):
                    await replication.stop()


def set_state(
    store: BankStore,
    bank: str,
    entry_id: str,
    state: bank_pb2.EntryState.ValueType,
    *,
    origin: str = "person",
    reason: str = "",
) -> None:
    """Change an entry's state; of an entry that a folder's bank lists, only the state is kept.

    To list such an entry again is to forget its state.
    """
    entry = store.entry(bank, entry_id)
    hashes = {one.hash_type: one.value for one in entry.hashes} if entry is not None else {}
    if state == bank_pb2.ENTRY_STATE_LISTED and not hashes:
        state = bank_pb2.ENTRY_STATE_REMOVED
    change = bank_changes.listed(
        bank,
        entry_id,
        hashes,
        origin=origin,
        state=state,
        category=entry.category if entry is not None else "",
        expires_unix_nano=entry.expires_unix_nano if entry is not None else 0,
        version=entry.provenance.version if entry is not None else "",
        reason=reason,
    )
    store.apply([change])


def _with_card(index: BankIndex) -> set[str]:
    return {name for name, held in (index.snapshot.banks or {}).items() if held.card is not None}


def _tell_not_matched(matcher: Matcher) -> None:
    for bank in matcher.banks.values():
        for name in matcher.not_matched(bank):
            _log.error(
                "a bank lists hashes of a plug-in that this service does not have: they match nothing here; name it in "
                "signal_types",
                bank=bank.name,
                hash_type=name,
            )


def _locked(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refusal(reason: str, settings: BankSettings) -> Fatal:
    code, _, what = reason.partition(": ")
    mend = {
        "NO_BANKS": "put a bank into banks.folder or import one, or say that this is meant with banks.allow_none",
        "SIGNAL_TYPE_MISSING": "install its plug-in and name it in signal_types",
    }.get(code, f"put it into banks.folder ({settings.folder.name}), or import it: `seawall banks import`")
    return Fatal(code, f"{what}: {mend}")
