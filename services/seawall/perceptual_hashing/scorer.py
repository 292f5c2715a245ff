"""One media item: read, digest, decode, hash every frame in every variant, match."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Retryable
from seawall.perceptual_hashing import borders, pdq
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.live_banks import ListedBanks, LiveBanks
from seawall.perceptual_hashing.matcher import COUNTS, Match, Matcher, contested
from seawall.perceptual_hashing.reduction import REDUCED_SIDE, prepare
from seawall.perceptual_hashing.settings import PerceptualHashingSettings
from seawall.runtime import metrics
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import Decoder, Frame, Pixels, Unscannable
from seawall.runtime.decoding.isolated import make_decoder
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.topics import TopicNames

#: The label of an item that a bank lists: 1 or 0.
KNOWN_MATCH: Final = "known_match"
#: The pipeline whose hashes are reported when no bank asks for one: it costs the same however large the picture is.
DEFAULT_PIPELINE: Final[Pipeline] = "512"
#: ``ItemHash.hash_type`` by pipeline.
_HASH_TYPES: Final[dict[Pipeline, str]] = {"full": "pdq", "512": "pdq_512"}
#: Most matches and PDQ hashes of one item in its result: one picture listed a thousand times, or a long animation, must
#: not make a signal too large to send. The nearest matches and the first hashes are kept.
MAX_MATCHES: Final = 64
MAX_HASHES: Final = 16


class Options(NamedTuple):
    """How pictures are hashed; see `PerceptualHashingSettings`."""

    variants: bool = True
    strip_borders: bool = True


class _Found:
    """What is known of one item so far, by one matcher."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.pipelines = matcher.pipelines or (DEFAULT_PIPELINE,)
        #: An entry of a negative bank that lists the item's very bytes.
        self.benign: Match | None = None
        #: The nearest match by (bank, entry, hash type), and the name of the variant that gave it.
        self._matches: dict[tuple[str, str, str], tuple[Match, str]] = {}
        #: Quality by (hash type, value).
        self._hashes: dict[tuple[str, bytes], int] = {}

    def add_hash(self, hash_type: str, value: bytes, quality: int) -> None:
        if len(self._hashes) < MAX_HASHES + 2:
            self._hashes.setdefault((hash_type, value), quality)

    def add_match(self, match: Match, variant: str) -> None:
        key = (match.bank.name, match.entry_id, match.hash_type)
        if key not in self._matches or match.distance < self._matches[key][0].distance:
            self._matches[key] = (match, variant)

    def result(
        self, status: signal_pb2.ItemStatus.ValueType, reason: str, listed: ListedBanks, content: bytes
    ) -> signal_pb2.ItemResult:
        result = signal_pb2.ItemResult(status=status, reason=reason)
        counted = False
        for (hash_type, value), quality in self._hashes.items():
            result.hashes.add(hash_type=hash_type, value=value, quality=quality)
        nearest = sorted(self._matches.items(), key=lambda item: (item[1][0].distance, item[0]))
        for _, (match, variant) in nearest[:MAX_MATCHES]:
            if self.benign is not None and not match.contested_by:
                match = contested(match, self.benign)
            match = listed.observed(match, content)
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
            )
        if status == signal_pb2.ITEM_STATUS_OK or counted:
            # Of an item that could not be read whole only a match is known, never its absence.
            result.labels.add(label=KNOWN_MATCH, score=1.0 if counted else 0.0)
        return result


class HashingScorer:
    """Hashes and matches media items. Safe for threads; every call blocks."""

    def __init__(self, listed: ListedBanks, content: ContentStore, options: Options, decoder: Decoder) -> None:
        self._listed = listed
        self._content = content
        self._decoder = decoder
        self._options = options

    def score(self, item: perceptual_hashing_pb2.HashItem) -> signal_pb2.ItemResult:
        """Hashes, matches and the label, with status OK; or UNSCANNABLE with the decoder's reason, and whatever the
        digests and the frames before the fault matched.

        Raises:
            Poison, Retryable: the content cannot be had; see `ContentStore.get`. Retryable: a required bank is empty,
                so that "no match" would mean nothing.
        """
        if unready := self.unready():
            raise Retryable(unready.partition(":")[0], "nothing is scored without the banks that are required")
        data = self._content.get(item.content)
        found = _Found(self._listed.matcher)
        # A JPEG is scaled while it is decoded, unless a bank needs every pixel.
        min_side = None if "full" in found.pipelines else REDUCED_SIDE
        # The store has just checked this digest against the bytes.
        self._digest(found, "sha256", item.content.sha256)
        self._digest(found, "md5", hashlib.md5(data, usedforsecurity=False).digest())
        try:
            for frame in self._decoder.frames(data, "gray", min_side, item.content.media_type):
                for name, picture in self._pictures(frame):
                    self._picture(found, name, picture)
        except Unscannable as error:
            return found.result(signal_pb2.ITEM_STATUS_UNSCANNABLE, error.reason, self._listed, item.content.sha256)
        return found.result(signal_pb2.ITEM_STATUS_OK, "", self._listed, item.content.sha256)

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """The banks, by their digests."""
        return [
            signal_pb2.Artefact(
                kind=signal_pb2.ARTEFACT_KIND_BANK, name=bank.name, version=bank.version, sha256=bank.digest
            )
            for bank in self._listed.matcher.banks.values()
        ]

    def unready(self) -> str:
        """Why this service must not serve now; empty: it may."""
        return self._listed.unready()

    def warm(self) -> None:
        """Compile, or load from the cache, what the first item would otherwise wait for."""
        blank = np.zeros((64, 64), np.uint8)
        found = _Found(self._listed.matcher)
        for pipeline in found.pipelines:
            found.matcher.match(self._hashes(blank).values, pipeline)

    def _digest(self, found: _Found, hash_type: str, digest: bytes) -> None:
        found.add_hash(hash_type, digest, 100)
        for match in found.matcher.match_digest(hash_type, digest):
            found.add_match(match, "original")
        found.benign = found.benign or found.matcher.benign_digest(hash_type, digest)

    def _pictures(self, frame: Frame) -> Iterator[tuple[str, Pixels]]:
        """What is hashed of a frame, and how it is named in a match."""
        parts = []
        if frame.number:
            parts.append(f"frame-{frame.number}")
        if frame.view != "white":
            parts.append(f"alpha-{frame.view}")
        yield "/".join(parts), frame.pixels
        if self._options.strip_borders:
            inner = borders.strip(frame.pixels)
            if inner is not None:
                yield "/".join([*parts, "stripped"]), inner

    def _picture(self, found: _Found, name: str, gray: Pixels) -> None:
        before: Pixels | None = None
        hashes: pdq.PdqVariants | None = None
        for pipeline in found.pipelines:
            prepared = prepare(gray, pipeline)
            if hashes is None or prepared is not before:
                # Pictures up to 512 pixels are the same in both pipelines.
                before, hashes = prepared, self._hashes(prepared)
            if not name.endswith("stripped"):
                found.add_hash(_HASH_TYPES[pipeline], hashes.values[0].tobytes(), hashes.quality)
            if hashes.quality < pdq.MIN_QUALITY:
                continue
            for match in found.matcher.match(hashes.values, pipeline):
                variant = pdq.VARIANTS[match.query]
                found.add_match(match, f"{variant}/{name}" if name else variant)

    def _hashes(self, gray: Pixels) -> pdq.PdqVariants:
        return pdq.hash_variants(gray) if self._options.variants else pdq.hash_original(gray)


def load(settings: PerceptualHashingSettings) -> HashingScorer:
    """Load and verify every bank, and compile.

    Raises:
        Fatal: as `LiveBanks`.
    """
    listed = LiveBanks(
        settings.banks,
        broker=lambda: KafkaBroker(settings.kafka),
        topic=TopicNames(settings.kafka.topic_prefix).bank_entries,
    )
    listed.start()
    options = Options(settings.variants, settings.strip_borders)
    decoder = make_decoder(settings.decoding, settings.rpc_server.workers)
    scorer = HashingScorer(listed, ContentStore(settings.content), options, decoder)
    scorer.warm()
    return scorer
