"""What is found of one item: its hashes, its matches, and what of a listed video is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from seawall.api.signal.v1 import signal_pb2
from seawall.perceptual_hashing import measured
from seawall.perceptual_hashing.hash_types import VPDQ
from seawall.perceptual_hashing.matcher import COUNTS, PARTIAL, SUPPRESSED, Match, contested
from seawall.runtime import metrics

#: The label of an item that a bank lists: 1 or 0.
KNOWN_MATCH: Final = "known_match"
#: Most matches of one item in its result, and hashes of each perceptual type: one picture listed a thousand times, or a
#: long video, must not make a signal too large to send. The nearest matches are kept, and hashes from the whole length.
MAX_MATCHES: Final = 64
MAX_HASHES: Final = 16


class Observe(Protocol):
    """See `ListedBanks.observed`."""

    def __call__(self, match: Match, content: bytes, /) -> Match: ...


@dataclass
class _Video:
    """What of a listed video was seen in an item."""

    nearest: Match
    variant: str
    #: The item's frames that are near one of its.
    frames: set[str] = field(default_factory=set)
    #: Its frames that are near one of the item's.
    listed: set[int] = field(default_factory=set)

    def add(self, match: Match, variant: str, frame: str) -> None:
        if _rank(match) < _rank(self.nearest):
            self.nearest, self.variant = match, variant
        # A frame that a negative bank explains is no part of the video.
        if match.disposition != SUPPRESSED:
            self.frames.add(frame)
            self.listed.add(match.listed_frame)


class _Found(NamedTuple):
    """A match as it is told."""

    match: Match
    variant: str
    query_percent: int = 0
    listed_percent: int = 0


class Findings:
    """What is known of one item so far."""

    def __init__(self) -> None:
        #: An entry of a negative bank that lists the item's very bytes.
        self.benign: Match | None = None
        #: The nearest match by (bank, entry, hash type), and the name of what matched.
        self._matches: dict[tuple[str, str, str], tuple[Match, str]] = {}
        self._videos: dict[tuple[str, str], _Video] = {}
        #: Frames whose PDQ says enough, by pipeline.
        self._frames: dict[str, set[str]] = {}
        #: By type, each value once.
        self._hashes: dict[str, dict[bytes, signal_pb2.ItemHash]] = {}

    def add_hash(self, hash_: signal_pb2.ItemHash) -> None:
        """A hash that was measured."""
        self._hashes.setdefault(hash_.hash_type, {}).setdefault(hash_.value, hash_)

    def add_frame(self, pipeline: str, picture: str) -> None:
        """A picture of a frame whose PDQ hash says enough."""
        self._frames.setdefault(pipeline, set()).add(measured.frame_of(picture))

    def add_match(self, match: Match, variant: str, picture: str = "") -> None:
        """A match of a picture, in one of its turns; or of the bytes, "original"."""
        named = measured.name(variant, picture)
        if match.hash_type == VPDQ:
            place = (match.bank.name, match.entry_id)
            video = self._videos.setdefault(place, _Video(match, named))
            video.add(match, named, measured.frame_of(picture))
            return
        key = (match.bank.name, match.entry_id, match.hash_type)
        if key not in self._matches or match.distance < self._matches[key][0].distance:
            self._matches[key] = (match, named)

    def result(
        self, status: signal_pb2.ItemStatus.ValueType, reason: str, observe: Observe, content: bytes
    ) -> signal_pb2.ItemResult:
        """The item's result; ``content``: the SHA-256 of its bytes."""
        result = signal_pb2.ItemResult(status=status, reason=reason)
        for of_type in self._hashes.values():
            result.hashes.extend(measured.spread(list(of_type.values()), MAX_HASHES))
        counted = False
        found = [_Found(self._held_against(match), variant) for match, variant in self._matches.values()]
        found += [self._shares(video) for video in self._videos.values()]
        # What counts comes first: a crowd of matches that do not must not hide it.
        found.sort(key=_order)
        for match, variant, query_percent, listed_percent in found[:MAX_MATCHES]:
            match = observe(match, content)
            counts = match.disposition == COUNTS
            counted |= counts
            if not counts:
                metrics.BANK_MATCHES_HELD.add(1, {metrics.BANK: match.bank.name})
            (result.matches if counts else result.held_matches).add(
                bank=match.bank.name,
                entry_id=match.entry_id,
                distance=match.distance,
                hash_type=match.hash_type,
                category=match.category,
                variant=variant,
                action=match.bank.action,
                disposition=match.disposition,
                contested_by=match.contested_by,
                query_percent=query_percent,
                listed_percent=listed_percent,
            )
        if status == signal_pb2.ITEM_STATUS_OK or counted:
            # Of an item that could not be read whole only a match is known, never its absence.
            result.labels.add(label=KNOWN_MATCH, score=1.0 if counted else 0.0)
        return result

    def _held_against(self, match: Match) -> Match:
        if self.benign is None or match.contested_by:
            return match
        return contested(match, self.benign)

    def _shares(self, video: _Video) -> _Found:
        match, bank = self._held_against(video.nearest), video.nearest.bank
        query = percent(len(video.frames), len(self._frames.get(bank.pipeline, ())))
        listed = percent(len(video.listed), match.listed_frames)
        if match.disposition == COUNTS and (query < bank.min_query_percent or listed < bank.min_listed_percent):
            match = match._replace(disposition=PARTIAL)
        return _Found(match, video.variant, query, listed)


def percent(part: int, whole: int) -> int:
    """Rounded up: a part is never none."""
    return -(-100 * part // whole) if whole else 0


def _order(found: _Found) -> tuple[bool, int, str, str, str]:
    match = found.match
    return match.disposition != COUNTS, match.distance, match.bank.name, match.entry_id, match.hash_type


def _rank(match: Match) -> tuple[bool, int]:
    return match.disposition == SUPPRESSED, match.distance
