"""Hashes against all banks at once: exact, each bank within its own radius; and what becomes of each match.

* A **negative** bank lists known-benign pictures. Where one of them is nearer to what was asked for than a listed one
  is, or lists these very bytes, the match is *suppressed*: still reported, with the entry that speaks against it, and
  it does not count. Never so for a match by a cryptographic digest, or within `NEAR_EXACT` bits: that counts, and says
  that it is contested, because then two lists contradict each other and a person must settle it.
* An entry in **quarantine** matched far more than it ever did. Its loose matches are *quarantined*: reported, and
  always reviewed. Its exact and near-exact ones count as before, so that nobody gets an entry out of the way by
  flooding it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.api.bank.v1 import bank_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.perceptual_hashing import bank_columns
from seawall.perceptual_hashing.bank_card import BankCard, Pipeline
from seawall.perceptual_hashing.bank_columns import PIPELINES, Row
from seawall.perceptual_hashing.bank_index import Part, Snapshot
from seawall.perceptual_hashing.bank_segments import Segment, build_threads
from seawall.perceptual_hashing.banks import Bank
from seawall.perceptual_hashing.hamming import Words, to_words
from seawall.perceptual_hashing.hash_types import DIGEST_BYTES, NEAR_EXACT, VPDQ, indexed
from seawall.perceptual_hashing.multi_index import permuted
from seawall.perceptual_hashing.plug_in_hashes import PlugInHashes

COUNTS: Final = signal_pb2.MATCH_DISPOSITION_UNSPECIFIED
SUPPRESSED: Final = signal_pb2.MATCH_DISPOSITION_SUPPRESSED
QUARANTINED: Final = signal_pb2.MATCH_DISPOSITION_QUARANTINED
PARTIAL: Final = signal_pb2.MATCH_DISPOSITION_PARTIAL


class BankInfo(NamedTuple):
    """A bank as matching needs to know it."""

    name: str
    version: str
    category: str
    action: str
    pipeline: Pipeline
    radius: int
    negative: bool
    #: Unix nanoseconds; 0: never.
    expires_unix_nano: int
    #: 32 bytes: of the card and every entry.
    digest: bytes
    #: Entries, or of a folder's bank hashes, that can match.
    listed: int
    #: Plug-ins whose hashes it lists.
    signal_types: tuple[str, ...] = ()
    #: Shares of frames, in percent, from which on a listed video counts as found.
    min_query_percent: int = 0
    min_listed_percent: int = 0

    def matches_nothing(self, now: int) -> bool:
        """Whether no picture could match it at ``now``, Unix nanoseconds."""
        return not self.listed or 0 < self.expires_unix_nano <= now


class Match(NamedTuple):
    """A listed entry within its bank's radius."""

    bank: BankInfo
    entry_id: str
    #: Bits that differ, or what a plug-in counts; 0 for digests.
    distance: int
    #: "pdq", "vpdq" for a frame of a listed video, "sha256", "sha1", "md5", or a plug-in's name.
    hash_type: str
    #: Row of the hash that was asked for; 0 for digests and plug-ins.
    query: int
    category: str
    disposition: signal_pb2.MatchDisposition.ValueType = COUNTS
    #: "bank/entry" of the negative entry that speaks against it.
    contested_by: str = ""
    #: Which of a listed video's frames, and how many it has.
    listed_frame: int = 0
    listed_frames: int = 0

    @property
    def exact(self) -> bool:
        """Whether nothing may explain it away."""
        if self.hash_type in ("pdq", VPDQ):
            return self.distance <= NEAR_EXACT
        # How near a plug-in's hashes of one picture are, only its makers know.
        return self.hash_type in DIGEST_BYTES or self.distance == 0


class Matcher:
    """All banks of a service at one instant. Immutable; safe for threads."""

    def __init__(
        self,
        banks: Sequence[Bank] = (),
        snapshot: Snapshot | None = None,
        *,
        fixed: Segment | None = None,
        plug_ins: PlugInHashes | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Args:
        banks: those that are folders.
        snapshot: those of the store.
        fixed: what `index_of` made of ``banks``; None: it is made now.
        plug_ins: those that hash; None: none does.
        now: Unix nanoseconds.
        """
        #: What it was made of.
        self.snapshot = Snapshot() if snapshot is None else snapshot
        snapshot = self.snapshot
        #: Unix nanoseconds.
        self.now = now
        fixed = index_of(banks) if fixed is None else fixed
        self._parts = (*((Part(fixed, None),) if len(fixed) else ()), *snapshot.parts)
        self.plug_ins = PlugInHashes() if plug_ins is None else plug_ins
        for part in self._parts:
            self.plug_ins.prepare(part.segment)
        self._overrides = snapshot.overrides
        #: By name, in order of name.
        self.banks: Mapping[str, BankInfo] = dict(
            sorted({**_of_folders(banks), **_of_store(snapshot)}.items(), key=lambda item: item[0])
        )
        self._radius = {
            pipeline: max((b.radius for b in self.banks.values() if b.pipeline == pipeline and b.listed), default=-1)
            for pipeline in PIPELINES
        }

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """Pipelines by which any bank lists hashes."""
        kinds = {kind for part in self._parts for kind in part.segment.columns.hashes}
        both: tuple[Pipeline, ...] = ("full", "512")
        return tuple(p for p in both if f"pdq.{p}" in kinds or f"{VPDQ}.{p}" in kinds)

    def __len__(self) -> int:
        """Entries that can match, of all banks; of a folder's bank, hashes."""
        return sum(bank.listed for bank in self.banks.values())

    def match(self, hashes: npt.NDArray[np.uint8], pipeline: Pipeline) -> list[Match]:
        """Every entry within its bank's radius of one of the hashes, uint8 (n, 32), that the pipeline made; of a listed
        video every frame.
        """
        radius = self._radius[pipeline]
        if radius < 0 or not len(hashes):
            return []
        wanted: Words = permuted(to_words(hashes))
        positive: list[Match] = []
        #: The nearest negative entry by query.
        benign: dict[int, Match] = {}
        for part in self._parts:
            for hash_type in ("pdq", VPDQ):
                kind = f"{hash_type}.{pipeline}"
                for query, entry, distance, row in part.segment.search(kind, wanted, radius):
                    match = self._match(part, entry, distance, hash_type, query)
                    if match is None or distance > match.bank.radius:
                        continue
                    if match.bank.negative:
                        if query not in benign or distance < benign[query].distance:
                            benign[query] = match
                        continue
                    if hash_type == VPDQ:
                        match = match._replace(listed_frame=row, listed_frames=part.segment.listed(kind, entry))
                    positive.append(match)
        return [self._judged(match, benign.get(match.query)) for match in positive]

    def match_plug_in(self, name: str, value: bytes, quality: int) -> list[Match]:
        """Every entry that a plug-in finds within its distance of a hash it made; none below its quality."""
        if not self.plug_ins.says_enough(name, quality):
            return []
        found = (
            self._match(part, near.entry, near.distance, name, 0)
            for part in self._parts
            for near in self.plug_ins.search(part.segment, name, value)
        )
        matches = [match for match in found if match is not None]
        benign = min((match for match in matches if match.bank.negative), key=lambda m: m.distance, default=None)
        return [self._judged(match, benign) for match in matches if not match.bank.negative]

    def not_matched(self, bank: BankInfo) -> tuple[str, ...]:
        """Plug-ins whose hashes the bank lists and nobody here makes."""
        return tuple(name for name in bank.signal_types if name not in self.plug_ins.names)

    def match_digest(self, hash_type: str, digest: bytes) -> list[Match]:
        """Every entry of a positive bank that lists exactly these bytes. They always count.

        Args:
            hash_type: "sha256", "sha1" or "md5".
        """
        return [match for match in self._digests(hash_type, digest) if not match.bank.negative]

    def benign_digest(self, hash_type: str, digest: bytes) -> Match | None:
        """An entry of a negative bank that lists exactly these bytes."""
        return next((match for match in self._digests(hash_type, digest) if match.bank.negative), None)

    def _digests(self, hash_type: str, digest: bytes) -> list[Match]:
        found = (
            self._match(part, entry, 0, hash_type, 0)
            for part in self._parts
            for entry in part.segment.find_digest(hash_type, digest)
        )
        return [match for match in found if match is not None]

    def _match(self, part: Part, entry: int, distance: int, hash_type: str, query: int) -> Match | None:
        """The match with an entry; None where the entry does not hold any more."""
        if part.alive is not None and not part.alive[entry]:
            return None
        columns = part.segment.columns
        bank = self.banks.get(columns.banks[int(columns.bank[entry])])
        if bank is None or bank.listed == 0:
            return None
        expires = int(columns.expires[entry]) if len(columns.expires) else 0
        now = self.now() if expires or bank.expires_unix_nano else 0
        if 0 < expires <= now or 0 < bank.expires_unix_nano <= now:
            return None
        entry_id = columns.name(entry)
        state = self._overrides.get((bank.name, entry_id)) if self._overrides else None
        if state == bank_pb2.ENTRY_STATE_DISABLED:
            return None
        held = state == bank_pb2.ENTRY_STATE_QUARANTINED or (
            len(columns.quarantined) > 0 and bool(columns.quarantined[entry])
        )
        category = columns.categories[int(columns.category[entry])] if len(columns.category) else ""
        match = Match(bank, entry_id, distance, hash_type, query, category or bank.category)
        return match._replace(disposition=QUARANTINED) if held and not match.exact else match

    def _judged(self, match: Match, benign: Match | None) -> Match:
        if benign is None or benign.distance >= match.distance:
            return match
        return contested(match, benign)


def contested(match: Match, benign: Match) -> Match:
    """What becomes of a match that a negative entry speaks against."""
    by = f"{benign.bank.name}/{benign.entry_id}"
    return match._replace(contested_by=by, disposition=match.disposition if match.exact else SUPPRESSED)


def index_of(banks: Sequence[Bank]) -> Segment:
    """One segment over banks that are folders."""
    parts = []
    for bank in banks:
        hashes: dict[str, list[tuple[str, bytes]]] = {}
        kind = f"pdq.{bank.card.pipeline}"
        for number in range(len(bank.entries.pdq_ids)):
            hashes.setdefault(bank.entries.pdq_ids[number], []).append((kind, bank.entries.pdq[number].tobytes()))
        for digest_type, table in bank.entries.digests.items():
            for value, entry_ids in table.items():
                for entry_id in entry_ids:
                    hashes.setdefault(entry_id, []).append((digest_type, value))
        for entry in bank.entries.others:
            found = indexed(entry.hash_type, entry.value, bank.card.pipeline)
            hashes.setdefault(entry.entry_id, []).extend(found)
        rows = [Row(bank.card.name, entry_id, 0, False, "", listed) for entry_id, listed in hashes.items()]
        parts.append((bank_columns.from_rows(rows), None))
    return Segment.build(bank_columns.merge(parts), build_threads())


def _of_folders(banks: Sequence[Bank]) -> dict[str, BankInfo]:
    return {bank.card.name: _info(bank.card, bank.digest, len(bank.entries)) for bank in banks}


def _info(card: BankCard, digest: bytes, listed: int) -> BankInfo:
    return BankInfo(
        card.name,
        card.version,
        card.category,
        card.action,
        card.pipeline,
        card.radius,
        card.kind == "negative",
        card.expires_unix_nano,
        digest,
        listed,
        tuple(sorted(card.signal_types)),
        card.min_query_percent,
        card.min_listed_percent,
    )


def _of_store(snapshot: Snapshot) -> dict[str, BankInfo]:
    found: dict[str, BankInfo] = {}
    for name, held in (snapshot.banks or {}).items():
        card = held.card
        # Entries without a card match nothing: nobody has said within which radius, or what a match means.
        if card is None:
            continue
        removed = card.state == bank_pb2.BANK_STATE_REMOVED
        found[name] = BankInfo(
            name,
            card.version,
            card.category,
            card.action,
            "full" if card.pipeline == "full" else "512",
            card.radius,
            card.kind == bank_pb2.BANK_KIND_NEGATIVE,
            card.expires_unix_nano,
            held.digest,
            0 if removed else held.listed,
            tuple(card.signal_types),
            card.min_query_percent,
            card.min_listed_percent,
        )
    return found
