"""Lists in files into the store's banks, and out again.

An import goes in batches, each with the place it reached in the same transaction: killed at any instant and started
again with the same file, it goes on there, and what it makes is what one undisturbed import makes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from seawall.api.bank.v1 import bank_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import bank_card, bank_changes, bank_entries
from seawall.perceptual_hashing.bank_changes import MATCHED_STATES
from seawall.perceptual_hashing.bank_entries import Entry
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.hash_types import DIGEST_BYTES, MIN_QUALITY, VPDQ
from seawall.perceptual_hashing.measured import PDQ_TYPES, frame_of

_BATCH: Final = 2_000


class Imported(NamedTuple):
    """What an import did."""

    changed: int
    unchanged: int
    #: Entries that an earlier, interrupted import of the same file had done.
    resumed: int
    #: Entries taken out, because the file replaces the bank and does not list them.
    removed: int


class Difference(NamedTuple):
    """Entry ids by what an import with ``replace`` would do to them."""

    added: Sequence[str]
    changed: Sequence[str]
    removed: Sequence[str]


def card_of(path: Path, content: bytes) -> bank_pb2.BankChange:
    """The card for an import: a bank.yaml, in which ``files`` may be left out.

    Args:
        content: the file that is imported.

    Raises Fatal("BAD_BANK") with the line, the key and the mend.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Fatal("BAD_BANK", f"{path.name} cannot be read ({error.strerror})") from None
    if b"\nfiles:" not in b"\n" + text:
        text = text.rstrip(b"\n") + f"\nfiles: {{entries.csv: {hashlib.sha256(content).hexdigest()}}}\n".encode()
    return bank_changes.described(bank_card.parse(text, path.name))


def rows_of(path: Path, content: bytes, plug_ins: Collection[str] = ()) -> list[Entry]:
    """The rows of a CSV file of entries. Raises Fatal("BAD_BANK") with the line and the mend."""
    return list(bank_entries.rows(path.name, content, plug_ins))


def import_entries(
    store: BankStore,
    bank: str,
    changes: Sequence[bank_pb2.BankChange],
    *,
    digest: str,
    card: bank_pb2.BankChange | None = None,
    replace: bool = False,
) -> Imported:
    """List entries in a bank.

    Args:
        changes: whole entries of this bank, in the file's order.
        digest: SHA-256 of the file, hex: an interrupted import of the same one is gone on with.
        card: what the bank is from now on; None: it must be there.
        replace: what the bank lists and the file does not is taken out.

    Raises:
        Fatal: ``BANK_MISSING``: there is no card. Poison, Retryable, Fatal: as `BankStore.apply`.
    """
    name = f"import/{bank}"
    if card is not None:
        store.apply([card])
    elif store.card(bank) is None:
        raise Fatal("BANK_MISSING", f"bank {bank} is not in the store: say what it is with --card bank.yaml")
    at_digest, _, place = (store.checkpoint(name) or "").partition(" ")
    done = int(place) if at_digest == digest and place.isdigit() else 0
    changed = unchanged = 0
    for begin in range(done, len(changes), _BATCH):
        batch = [change for change in changes[begin : begin + _BATCH] if not _same(store, change)]
        size = min(_BATCH, len(changes) - begin)
        applied = store.apply(batch, checkpoint=(name, f"{digest} {begin + size}"))
        changed += applied.changed
        unchanged += size - applied.changed
    removed = 0
    if replace:
        named = {change.entry.entry_id for change in changes}
        gone = [entry.entry_id for entry in _matched(store, bank) if entry.entry_id not in named]
        for begin in range(0, len(gone), _BATCH):
            removed += store.apply([_removal(bank, entry_id) for entry_id in gone[begin : begin + _BATCH]]).changed
    # Done: the same file given again is compared from its beginning.
    store.apply([], checkpoint=(name, ""))
    return Imported(changed, unchanged, done, removed)


def difference(store: BankStore, bank: str, changes: Sequence[bank_pb2.BankChange]) -> Difference:
    """What an import of these entries with ``replace`` would do."""
    added, changed = [], []
    for change in changes:
        entry = store.entry(bank, change.entry.entry_id)
        if entry is None or entry.state == bank_pb2.ENTRY_STATE_REMOVED:
            added.append(change.entry.entry_id)
        elif not _same(store, change):
            changed.append(change.entry.entry_id)
    named = {change.entry.entry_id for change in changes}
    removed = [entry.entry_id for entry in _matched(store, bank) if entry.entry_id not in named]
    return Difference(added, changed, removed)


def export(store: BankStore, bank: str) -> Iterator[Entry]:
    """Every entry that can match, one row a hash. Raises Fatal("BANK_MISSING")."""
    if store.card(bank) is None:
        raise Fatal("BANK_MISSING", f"bank {bank} is not in the store: `seawall banks stat` lists those that are")
    for entry in _matched(store, bank):
        for hash_ in entry.hashes:
            yield Entry(entry.entry_id, hash_.hash_type, hash_.value)


def confirmed(
    decision: decision_pb2.Decision, bank: bank_pb2.Bank, *, item_ids: Sequence[str] = ()
) -> list[bank_pb2.BankChange]:
    """The changes by which a confirmed decision lists its media in the operator's own bank.

    Args:
        bank: the own bank's card; its pipeline says which PDQ hashes are taken. Of a still that is its own hash; of
            an animation or a video those of all frames that the signal carries, as a video.
        item_ids: of the decision's media; empty: all that were hashed.

    Raises:
        Fatal: ``NOTHING_TO_LIST``: no such item was hashed, or not by the bank's pipeline.
    """
    changes = []
    for joined in decision.signals:
        for item in joined.signal.items:
            if item_ids and item.item_id not in item_ids:
                continue
            hashes = _to_list(item, bank)
            if hashes:
                # Derived, so that confirming twice lists once.
                name = hashlib.sha256(f"{decision.generation_id} {item.item_id}".encode()).hexdigest()[:32]
                changes.append(
                    bank_changes.listed(
                        bank.name, name, hashes, origin="decision", checkpoint=f"{decision.decision_id} {item.item_id}"
                    )
                )
    if not changes:
        raise Fatal(
            "NOTHING_TO_LIST",
            f"no item of this decision has hashes that bank {bank.name} could list: name an item that "
            "perceptual_hashing has measured (`seawall why`)",
        )
    return changes


def _to_list(item: signal_pb2.ItemResult, bank: bank_pb2.Bank) -> dict[str, bytes]:
    measured = PDQ_TYPES["full" if bank.pipeline == "full" else "512"]
    frames: dict[str, bytes] = {}
    for found in item.hashes:
        # A frame's first hash is of it as it is; one of poor quality says nothing.
        if found.hash_type == measured and found.quality >= MIN_QUALITY:
            frames.setdefault(frame_of(found.picture), found.value)
    wanted = {*DIGEST_BYTES, *bank.signal_types}
    hashes = {found.hash_type: found.value for found in reversed(item.hashes) if found.hash_type in wanted}
    if frames:
        hashes["pdq" if len(frames) == 1 else VPDQ] = b"".join(frames.values())
    return hashes


def _matched(store: BankStore, bank: str) -> Iterator[bank_pb2.BankEntry]:
    return (entry for entry in store.entries(bank) if entry.state in MATCHED_STATES)


def _same(store: BankStore, change: bank_pb2.BankChange) -> bool:
    """Whether an entry is listed so already. A disabled or quarantined one stays so: that outlasts a file."""
    known = store.entry(change.entry.bank, change.entry.entry_id)
    if known is None or known.state == bank_pb2.ENTRY_STATE_REMOVED:
        return False
    before = bank_pb2.BankEntry()
    before.CopyFrom(known)
    before.state = change.entry.state
    return bank_changes.digest(bank_pb2.BankChange(entry=before)) == bank_changes.digest(change)


def _removal(bank: str, entry_id: str) -> bank_pb2.BankChange:
    return bank_changes.listed(
        bank, entry_id, {}, origin="file", state=bank_pb2.ENTRY_STATE_REMOVED, reason="NOT_IN_FILE"
    )
