"""From a hit to the late signal that says so.

Made of the two records alone, the signal that measured and the change that listed: whoever makes it again makes the
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from seawall.api.bank.v1 import bank_pb2
from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.matcher import NEAR_EXACT
from seawall.perceptual_hashing.retroactive.entries import Change
from seawall.perceptual_hashing.retroactive.window import comparable

#: The room's name, and the stage of its signals.
ROOM: Final = "perceptual_hashing.retroactive"
KNOWN_MATCH: Final = "known_match"
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


def _matches(
    item: signal_pb2.ItemResult, entry: bank_pb2.BankEntry, card: bank_pb2.Bank, benign: AllBenign
) -> list[signal_pb2.BankMatch]:
    """The nearest match of each hash type that counts, checked over the whole hashes."""
    measured_pdq = "pdq" if card.pipeline == "full" else "pdq_512"
    # A negative bank that lists these very bytes speaks against whatever they look like.
    known = [found for one in item.hashes if (found := benign.get((one.hash_type, one.value))) and not _is_pdq(one)]
    nearest: dict[str, tuple[int, str]] = {}
    for listed in entry.hashes:
        wanted = measured_pdq if listed.hash_type == "pdq" else listed.hash_type
        limit = card.radius if listed.hash_type == "pdq" else 0
        for measured in item.hashes:
            if measured.hash_type != wanted or not comparable(measured) or len(measured.value) != len(listed.value):
                continue
            distance = (int.from_bytes(measured.value) ^ int.from_bytes(listed.value)).bit_count()
            if distance > limit:
                continue
            against = benign.get((measured.hash_type, measured.value)) if _is_pdq(measured) else None
            if against is None or against.distance >= distance:
                against = known[0] if known else None
            exact = listed.hash_type != "pdq" or distance <= NEAR_EXACT
            if not exact and (against is not None or entry.state == bank_pb2.ENTRY_STATE_QUARANTINED):
                continue
            limit = distance
            nearest[listed.hash_type] = (distance, against.entry if against else "")
    return [
        signal_pb2.BankMatch(
            bank=entry.bank,
            entry_id=entry.entry_id,
            distance=distance,
            hash_type=hash_type,
            category=entry.category or card.category,
            variant="original",
            action=card.action,
            contested_by=against,
        )
        for hash_type, (distance, against) in sorted(nearest.items())
    ]


def _is_pdq(measured: signal_pb2.ItemHash) -> bool:
    return measured.hash_type.startswith("pdq")
