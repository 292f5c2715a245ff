"""Pulls an exchange into its bank.

    1. fetch       a page: what changed, and what of it could not be read
    2. set aside   what could not be read is noted, by digest
    3. compare     with what the store has; a person's word (disabled) and a quarantine stay
    4. apply       the changes and the checkpoint in one transaction
    5. sweep       a list that had to be read afresh: what was not in it any more goes, within a bound

A crash between any two steps repeats a page at most, and repeating it changes nothing.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal, Poison
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.exchanges.records import Exchange, ExchangeRecord, ListedHash, Page, Refused, Vote
from seawall.perceptual_hashing.exchanges.seen import Seen
from seawall.perceptual_hashing.exchanges.set_aside import SetAside
from seawall.perceptual_hashing.exchanges.settings import ExchangeSettings

_BATCH: Final = 2_000
#: States that a person or the matcher gave an entry; what an exchange says again does not undo them.
_KEPT_STATES: Final = frozenset({bank_pb2.ENTRY_STATE_DISABLED, bank_pb2.ENTRY_STATE_QUARANTINED})


@dataclass
class PullReport:
    """What a pull did."""

    exchange: str
    bank: str
    pages: int = 0
    #: Records that were read, by what became of them.
    listed: int = 0
    withdrawn: int = 0
    unchanged: int = 0
    #: Listed by the exchange with hashes alone that no bank can hold.
    unsupported: int = 0
    #: Taken out because a list that was read afresh has them no more.
    swept: int = 0
    #: By "what reason": {"record BAD_LENGTH": 2}.
    set_aside: dict[str, int] = field(default_factory=dict)
    #: Why what is missing from a fresh list was not taken out, if so.
    sweep_postponed: str = ""
    #: Records that the exchange seems still to have.
    remaining: int | None = None
    complete: bool = False

    @property
    def set_aside_count(self) -> int:
        """Pages, records and hashes set aside."""
        return sum(self.set_aside.values())


Progress = Callable[[PullReport], None]


class Pull:
    """One pull of one exchange.

    Args:
        folder: for notes of what was set aside, and of what was seen of a list that is read afresh.
        dry_run: fetch and compare, change nothing.
        from_start: forget how far the last pull came.
        allow_sweep: take out what a fresh list lacks, however much it is.
    """

    def __init__(
        self,
        name: str,
        settings: ExchangeSettings,
        exchange: Exchange,
        store: BankStore,
        folder: Path,
        *,
        dry_run: bool = False,
        from_start: bool = False,
        allow_sweep: bool = False,
        progress: Progress = lambda report: None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._bank = settings.bank.name
        self._exchange = exchange
        self._store = store
        self._folder = folder
        self._dry_run = dry_run
        self._from_start = from_start
        self._allow_sweep = allow_sweep
        self._progress = progress
        self._aside = SetAside(folder, name)
        self._checkpoint_name = f"exchange:{name}"
        self.report = PullReport(name, self._bank)

    def run(self) -> PullReport:
        """Pull until the exchange has no more.

        Raises Retryable and Fatal as `Exchange.pages` does; what was applied until then stays, and the next run goes on
        from there. ``report`` says how far it came.
        """
        with _alone(self._folder, self._name):
            before = None if self._from_start else self._checkpoint()
            if not self._dry_run:
                self._make_card()
            seen: Seen | None = None
            for page in self._exchange.pages(before):
                if page.afresh and not self._dry_run:
                    if seen is None:
                        seen = Seen(self._folder, self._name, begin=not (before or {}).get("afresh"))
                    seen.add(record.entry_id for record in page.records if not record.deleted)
                self._take(page)
                if page.last:
                    self.report.complete = True
                    if seen is not None:
                        self._sweep(seen)
                self._progress(self.report)
        return self.report

    # ---- pages -------------------------------------------------------------------------------------------------

    def _take(self, page: Page) -> None:
        report = self.report
        report.pages += 1
        report.remaining = page.remaining
        changes = []
        refused = list(page.refused)
        for record in page.records:
            try:
                change = self._change(record)
                if change is not None:
                    bank_changes.check(change)
                    changes.append(change)
            except Poison as error:
                refused.append(Refused("record", error.reason, "", record.entry_id))
        for one in refused:
            kind = f"{one.what} {one.reason}"
            report.set_aside[kind] = report.set_aside.get(kind, 0) + 1
        if not self._dry_run:
            self._aside.note(refused)
            position = json.dumps(page.checkpoint, sort_keys=True)
            self._store.apply(changes, checkpoint=(self._checkpoint_name, position))

    def _change(self, record: ExchangeRecord) -> bank_pb2.BankChange | None:
        """What the record changes, None if nothing."""
        known = self._store.entry(self._bank, record.entry_id)
        report = self.report
        if record.deleted or not record.hashes:
            if not record.deleted:
                report.unsupported += 1
            if known is None or known.state == bank_pb2.ENTRY_STATE_REMOVED:
                report.unchanged += record.deleted
                return None
            report.withdrawn += 1
            reason = "withdrawn by the exchange" if record.deleted else "the exchange lists no hash a bank can hold"
            return self._removal(record.entry_id, reason)
        state = known.state if known is not None and known.state in _KEPT_STATES else bank_pb2.ENTRY_STATE_LISTED
        change = bank_changes.listed(
            self._bank,
            record.entry_id,
            dict(record.hashes),
            origin=self._exchange.kind,
            checkpoint=self._name,
            version=record.note[:100],
            state=state,
            reason=known.provenance.reason if known is not None and state == known.state else "",
        )
        if known is not None and bank_changes.digest(bank_pb2.BankChange(entry=known)) == bank_changes.digest(change):
            report.unchanged += 1
            return None
        report.listed += 1
        return change

    def _removal(self, entry_id: str, reason: str) -> bank_pb2.BankChange:
        return bank_changes.listed(
            self._bank,
            entry_id,
            {},
            origin=self._exchange.kind,
            checkpoint=self._name,
            state=bank_pb2.ENTRY_STATE_REMOVED,
            reason=reason,
        )

    # ---- a list read afresh ------------------------------------------------------------------------------------

    def _sweep(self, seen: Seen) -> None:
        report = self.report
        if not seen.whole:
            report.sweep_postponed = "what was seen of the list before is not known"
            return
        if report.set_aside:
            # What could not be read may be just what seems to be missing.
            report.sweep_postponed = "something was set aside"
            return
        present = seen.load()
        missing, kept = [], 0
        for entry in self._store.entries(self._bank):
            if entry.state in bank_changes.MATCHED_STATES and entry.entry_id:
                if entry.entry_id in present:
                    kept += 1
                else:
                    missing.append(entry.entry_id)
        if not self._allow_sweep and len(missing) > self._settings.max_sweep_share * (len(missing) + kept):
            report.sweep_postponed = (
                f"{len(missing)} of {len(missing) + kept} entries are in the list no more, above max_sweep_share: look "
                "at the exchange, then pull with --from-start --allow-sweep"
            )
            return
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            self._store.apply(self._removal(entry_id, "in the list no more") for entry_id in batch)
        report.swept = len(missing)
        seen.forget()

    # ---- the store ---------------------------------------------------------------------------------------------

    def _checkpoint(self) -> dict[str, Any] | None:
        text = self._store.checkpoint(self._checkpoint_name)
        if text is None:
            return None
        document = json.loads(text)
        return document if isinstance(document, dict) else None

    def _make_card(self) -> None:
        card = self._settings.bank
        if self._store.card(card.name) is not None:
            return
        bank = bank_pb2.Bank(
            name=card.name,
            state=bank_pb2.BANK_STATE_ACTIVE,
            kind=bank_pb2.BANK_KIND_POSITIVE,
            source=card.source,
            version="pulled",
            category=card.category,
            action=card.action,
            pipeline=card.pipeline,
            radius=card.radius,
            licence=card.licence,
        )
        self._store.apply([bank_pb2.BankChange(bank=bank)])


def vote(exchange: Exchange, store: BankStore, bank: str, entry_id: str, *, up: bool, reason: str = "") -> None:
    """Tell the exchange what we think of one of its entries.

    Raises Poison("NO_ENTRY") for an entry that the bank has never had, else as `Exchange.vote`.
    """
    entry = store.entry(bank, entry_id)
    if entry is None:
        raise Poison("NO_ENTRY", f"bank {bank} has no entry {entry_id}: see `seawall banks export`")
    hashes = tuple(ListedHash(one.hash_type, one.value) for one in entry.hashes)
    exchange.vote(Vote(entry_id, hashes, up, reason))


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Two pulls of one exchange at once would overtake each other's checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / f"{name}.lock").open("a")
    except OSError as error:
        raise Fatal(
            "SET_ASIDE_UNWRITABLE", f"{folder} cannot be used ({error.strerror}): see the setting set_aside"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fatal(
                "ALREADY_PULLING", f"another process is pulling exchange {name}: let it end, or stop it"
            ) from None
        yield
