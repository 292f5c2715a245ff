"""From a hit to the late signal that says so.

Made of the two records alone, the signal that measured and the change that listed: whoever makes it again makes the
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from seawall.api.bank.v1 import bank_pb2
from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.findings import KNOWN_MATCH, percent
from seawall.perceptual_hashing.hash_types import DIGEST_BYTES, NEAR_EXACT, VPDQ, fault
from seawall.perceptual_hashing.measured import PDQ_TYPES, all_turns, frame_of, name
from seawall.perceptual_hashing.retroactive.entries import Change
from seawall.perceptual_hashing.retroactive.window import comparable

#: The room's name, and the stage of its signals.
ROOM: Final = "perceptual_hashing.retroactive"
_NANOS_PER_MILLI: Final = 1_000_000


class Benign(NamedTuple):
    """What a negative bank says of a hash that was measured."""

    #: "<bank>/<entry_id>"
    entry: str
    distance: int


#: The nearest negative entry by measured hash: (hash type, value).
AllBenign = Mapping[tuple[str, bytes], Benign]


def late_signal(
    measured: signal_pb2.Signal, listed: Change, topic: str, card: bank_pb2.Bank, benign: AllBenign
) -> signal_pb2.Signal | None:
    """What the entry says of a picture that was measured before; None if nothing, or nothing new.

    Args:
        measured: the signal of the hashing stage.
        listed: the entry's change, LISTED.
        topic: bank_entries.v1 of this lane.
        card: of the entry's bank.
        benign: what speaks against a match. As in the matcher: it suppresses a loose one, and contests a near-exact
            one, which counts.
    """
    entry = listed.change.entry
    record = measured.generation_record
    signal = signal_pb2.Signal(
        signal_id=identity.retroactive_signal_id(
            measured.generation_id, measured.attempt, record.partition, record.offset, entry.bank, entry.entry_id
        ),
        generation_id=measured.generation_id,
        attempt=measured.attempt,
        tenant_id=measured.tenant_id,
        stage=ROOM,
        generation_record=record,
        caused_by=generation_pb2.RecordCoordinates(topic=topic, partition=listed.partition, offset=listed.offset),
    )
    signal.timings.received_unix_nano = listed.time * _NANOS_PER_MILLI
    signal.artefacts.add(
        kind=signal_pb2.ARTEFACT_KIND_BANK,
        name=card.name,
        version=card.version,
        sha256=bank_changes.digest(listed.change),
    )
    for item in measured.items:
        if any(match.bank == entry.bank and match.entry_id == entry.entry_id for match in _known(item)):
            continue
        matches = _matches(item, entry, card, benign)
        if matches:
            result = signal.items.add(
                item_id=item.item_id, nexus=item.nexus, status=item.status, reason=item.reason, matches=matches
            )
            result.labels.add(label=KNOWN_MATCH, score=1.0)
    return signal if signal.items else None


def to_record(signal: signal_pb2.Signal) -> bytes:
    """The value of its record in signals.v1; the same for the same signal."""
    return control_pb2.JoinRecord(signal=signal).SerializeToString(deterministic=True)


def _known(item: signal_pb2.ItemResult) -> list[signal_pb2.BankMatch]:
    return [*item.matches, *item.held_matches]


class _Turn(NamedTuple):
    """A measured hash in one of its turns."""

    measured: signal_pb2.ItemHash
    #: As it is named in the match: "mirror/frame-5".
    variant: str
    value: bytes


def _matches(
    item: signal_pb2.ItemResult, entry: bank_pb2.BankEntry, card: bank_pb2.Bank, benign: AllBenign
) -> list[signal_pb2.BankMatch]:
    """The nearest match of each hash type that counts, checked over the whole hashes."""
    wanted = PDQ_TYPES["full" if card.pipeline == "full" else "512"]
    turned = [
        _Turn(one, name(variant, one.picture), value)
        for one in item.hashes
        if one.hash_type == wanted and comparable(one)
        for variant, value in all_turns(one)
    ]
    digests = {(one.hash_type, one.value) for one in item.hashes if one.hash_type in DIGEST_BYTES}
    # A negative bank that lists these very bytes speaks against whatever they look like.
    known = next((benign[key].entry for key in sorted(digests) if key in benign), "")
    found = []
    for listed in entry.hashes:
        if fault(listed.hash_type, len(listed.value)):
            continue  # no store takes it
        match = signal_pb2.BankMatch(
            bank=entry.bank,
            entry_id=entry.entry_id,
            hash_type=listed.hash_type,
            category=entry.category or card.category,
            action=card.action,
        )
        if (listed.hash_type, listed.value) in digests:
            match.variant, match.contested_by = "original", known
            found.append(match)
        elif listed.hash_type in ("pdq", VPDQ) and turned:
            quarantined = entry.state == bank_pb2.ENTRY_STATE_QUARANTINED
            if _nearest(match, listed, turned, card, benign, known, quarantined):
                found.append(match)
    return found


def _nearest(
    match: signal_pb2.BankMatch,
    listed: bank_pb2.ListedHash,
    turned: Sequence[_Turn],
    card: bank_pb2.Bank,
    benign: AllBenign,
    known: str,
    quarantined: bool,
) -> bool:
    """Fill in the nearest of a listed picture or video that counts. False: none does."""
    frames = np.frombuffer(listed.value, np.uint8).reshape(-1, 32)
    values = np.frombuffer(b"".join(turn.value for turn in turned), np.uint8).reshape(-1, 32)
    distances = np.bitwise_count(values[:, None] ^ frames[None]).sum(2, dtype=np.int64)
    seen: set[str] = set()
    seen_listed: set[int] = set()
    rows, columns = np.nonzero(distances <= card.radius)
    for row, column in sorted(zip(rows.tolist(), columns.tolist(), strict=True), key=lambda at: (distances[at], at)):
        turn, distance = turned[row], int(distances[row, column])
        against = benign.get((turn.measured.hash_type, turn.value))
        contested_by = against.entry if against is not None and against.distance < distance else known
        if distance > NEAR_EXACT and (contested_by or quarantined):
            continue
        if not seen:
            match.distance, match.variant, match.contested_by = distance, turn.variant, contested_by
        seen.add(frame_of(turn.measured.picture))
        seen_listed.add(column)
    if listed.hash_type == VPDQ:
        match.query_percent = percent(len(seen), len({frame_of(turn.measured.picture) for turn in turned}))
        match.listed_percent = percent(len(seen_listed), len(frames))
        if match.query_percent < card.min_query_percent or match.listed_percent < card.min_listed_percent:
            return False
    return bool(seen)
