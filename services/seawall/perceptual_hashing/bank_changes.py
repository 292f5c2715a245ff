"""Changes to banks as they travel: their keys, what is refused, and what of them counts.

A change is a whole entry (or a whole card), not a difference, so applying it twice is applying it once, and the last
one in the log is what holds: for a replica that read them all, and for one that comes after compaction.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from typing import Final

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Poison
from seawall.perceptual_hashing.bank_card import BankCard
from seawall.perceptual_hashing.bank_entries import Entry
from seawall.perceptual_hashing.hamming import MAX_RADIUS
from seawall.perceptual_hashing.hash_types import fault, is_plug_in

_BANK = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_ENTRY_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_PIPELINES: Final = ("full", "512")
#: Hashes of one entry, so that its record stays one that can be sent.
_MAX_TYPES: Final = 32
_STATES: Final = frozenset(bank_pb2.EntryState.values()) - {bank_pb2.ENTRY_STATE_UNSPECIFIED}
#: States of an entry that a match is looked for in.
MATCHED_STATES: Final = frozenset({bank_pb2.ENTRY_STATE_LISTED, bank_pb2.ENTRY_STATE_QUARANTINED})


def key(change: bank_pb2.BankChange) -> bytes:
    """The record's key in bank_entries.v1."""
    if change.HasField("bank"):
        return change.bank.name.encode()
    return f"{change.entry.bank}/{change.entry.entry_id}".encode()


def listed(
    bank: str,
    entry_id: str,
    hashes: Mapping[str, bytes],
    *,
    origin: str,
    state: bank_pb2.EntryState.ValueType = bank_pb2.ENTRY_STATE_LISTED,
    category: str = "",
    expires_unix_nano: int = 0,
    checkpoint: str = "",
    version: str = "",
    reason: str = "",
) -> bank_pb2.BankChange:
    """The change that lists one picture.

    Args:
        hashes: by type, see `hash_types`.
        origin, checkpoint, version, reason: see ``Provenance``.
    """
    entry = bank_pb2.BankEntry(
        bank=bank,
        entry_id=entry_id,
        state=state,
        hashes=[bank_pb2.ListedHash(hash_type=kind, value=value) for kind, value in sorted(hashes.items())],
        category=category,
        expires_unix_nano=expires_unix_nano,
        provenance=bank_pb2.Provenance(
            origin=origin, checkpoint=checkpoint, version=version, changed_unix_nano=time.time_ns(), reason=reason
        ),
    )
    return bank_pb2.BankChange(entry=entry)


def described(card: BankCard) -> bank_pb2.BankChange:
    """The change that makes a bank what ``card`` says."""
    negative = card.kind == "negative"
    bank = bank_pb2.Bank(
        name=card.name,
        state=bank_pb2.BANK_STATE_ACTIVE,
        kind=bank_pb2.BANK_KIND_NEGATIVE if negative else bank_pb2.BANK_KIND_POSITIVE,
        source=card.source,
        version=card.version,
        category=card.category,
        pipeline=card.pipeline,
        radius=card.radius,
        action=card.action,
        licence=card.licence,
        notes=card.notes,
        expires_unix_nano=card.expires_unix_nano,
        signal_types=sorted(card.signal_types),
        min_query_percent=card.min_query_percent,
        min_listed_percent=card.min_listed_percent,
    )
    return bank_pb2.BankChange(bank=bank)


def grouped(bank: str, entries: Iterable[Entry], *, origin: str) -> list[bank_pb2.BankChange]:
    """One change an entry, from rows that name one hash each."""
    hashes: dict[str, dict[str, bytes]] = {}
    for entry in entries:
        hashes.setdefault(entry.entry_id, {})[entry.hash_type] = entry.value
    return [listed(bank, entry_id, values, origin=origin) for entry_id, values in hashes.items()]


def check(change: bank_pb2.BankChange) -> None:
    """Raises Poison("BAD_BANK_CHANGE"), naming the field and the mend, for a change that no store may take."""
    if change.HasField("bank"):
        _check_bank(change.bank)
    elif change.HasField("entry"):
        _check_entry(change.entry)
    else:
        raise _bad("change", "is neither bank nor entry: a newer version wrote it, or nothing did")


def digest(change: bank_pb2.BankChange) -> bytes:
    """SHA-256 of what counts for matching: not of where it comes from."""
    if change.HasField("bank"):
        bank = bank_pb2.Bank()
        bank.CopyFrom(change.bank)
        bank.ClearField("notes")
        # No maps and nothing nested: the fields' order on the wire is their number's.
        return hashlib.sha256(b"bank\n" + bank.SerializeToString(deterministic=True)).digest()
    entry = change.entry
    lines = [entry.bank, entry.entry_id, str(entry.state), str(entry.expires_unix_nano), entry.category]
    lines += sorted(f"{hash_.hash_type} {hash_.value.hex()}" for hash_ in entry.hashes)
    return hashlib.sha256("\n".join(lines).encode()).digest()


def _check_bank(bank: bank_pb2.Bank) -> None:
    if not _BANK.match(bank.name):
        raise _bad("bank.name", "must match [a-z0-9][a-z0-9_-]{0,63}")
    if bank.state not in (bank_pb2.BANK_STATE_ACTIVE, bank_pb2.BANK_STATE_REMOVED):
        raise _bad("bank.state", "must be ACTIVE or REMOVED")
    if bank.kind not in (bank_pb2.BANK_KIND_POSITIVE, bank_pb2.BANK_KIND_NEGATIVE):
        raise _bad("bank.kind", "must be POSITIVE or NEGATIVE")
    if bank.pipeline not in _PIPELINES:
        raise _bad("bank.pipeline", f"must be one of {', '.join(_PIPELINES)}")
    if bank.radius > MAX_RADIUS:
        raise _bad(
            "bank.radius",
            f"must be at most {MAX_RADIUS}: further away the index would miss entries, and PDQ says little",
        )
    if not all(map(is_plug_in, bank.signal_types)):
        raise _bad("bank.signal_types", "must be names of plug-ins: [a-z][a-z0-9_]{0,31}, and none that is built in")
    if max(bank.min_query_percent, bank.min_listed_percent) > 100:
        raise _bad("bank.min_query_percent, bank.min_listed_percent", "must be at most 100")


def _check_entry(entry: bank_pb2.BankEntry) -> None:
    if not _BANK.match(entry.bank):
        raise _bad("entry.bank", "must match [a-z0-9][a-z0-9_-]{0,63}")
    if not _ENTRY_ID.match(entry.entry_id):
        raise _bad("entry.entry_id", "must match [A-Za-z0-9._:-]{1,128}")
    # A state that this version does not know is refused: unread, it might mean that a match counts.
    if entry.state not in _STATES:
        raise _bad("entry.state", "must be LISTED, DISABLED, QUARANTINED or REMOVED")
    seen = set()
    for hash_ in entry.hashes:
        if wrong := fault(hash_.hash_type, len(hash_.value)):
            raise _bad("entry.hashes", wrong)
        if hash_.hash_type in seen:
            raise _bad("entry.hashes", f"a second {hash_.hash_type}: give each picture an entry_id of its own")
        seen.add(hash_.hash_type)
    if len(seen) > _MAX_TYPES:
        raise _bad("entry.hashes", f"has more than {_MAX_TYPES}: a bank lists fewer types of hashes")
    if not entry.hashes and entry.state == bank_pb2.ENTRY_STATE_LISTED:
        raise _bad("entry.hashes", "is empty: a listed entry has at least one hash")


def _bad(field: str, what: str) -> Poison:
    return Poison("BAD_BANK_CHANGE", f"{field} {what}")
