"""One media item: read, digest, decode, hash every frame in every variant, match."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Retryable
from seawall.perceptual_hashing import hashing, pdq, signal_types
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.hashing import PDQ_TYPES, STRIPPED, Hashed
from seawall.perceptual_hashing.live_banks import ListedBanks, LiveBanks
from seawall.perceptual_hashing.matcher import COUNTS, Match, Matcher, contested
from seawall.perceptual_hashing.reduction import REDUCED_SIDE
from seawall.perceptual_hashing.settings import PerceptualHashingSettings
from seawall.perceptual_hashing.signal_types import SignalType
from seawall.runtime import metrics
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import Decoder, Unscannable
from seawall.runtime.decoding.isolated import make_decoder
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.topics import TopicNames

#: The label of an item that a bank lists: 1 or 0.
KNOWN_MATCH: Final = "known_match"
#: The pipeline whose hashes are reported when no bank asks for one: it costs the same however large the picture is.
DEFAULT_PIPELINE: Final[Pipeline] = "512"
#: The pipeline of a type of PDQ.
_PIPELINES: Final[dict[str, Pipeline]] = {name: pipeline for pipeline, name in PDQ_TYPES.items()}
#: Most matches and PDQ hashes of one item in its result: one picture listed a thousand times, or a long animation, must
#: not make a signal too large to send. The nearest matches and the first hashes are kept.
MAX_MATCHES: Final = 64
MAX_HASHES: Final = 16
#: Digests of the file's bytes that are made beside its SHA-256.
_DIGESTS: Final = ("sha256", "md5", "sha1")


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
        if len(self._hashes) < MAX_HASHES + len(_DIGESTS):
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

    def __init__(
        self, listed: ListedBanks, content: ContentStore, decoder: Decoder, plug_ins: Sequence[SignalType] = ()
    ) -> None:
        """Args:
        decoder: with the measure `hashing.make`.
        plug_ins: those that the measure has.
        """
        self._listed = listed
        self._content = content
        self._decoder = decoder
        self._whole = any(plug_in.pipeline == "full" for plug_in in plug_ins)

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
        pipelines = ",".join(found.pipelines)
        # A JPEG is scaled while it is decoded, unless a bank or a plug-in needs every pixel.
        min_side = None if self._whole or "full" in found.pipelines else REDUCED_SIDE
        # The store has just checked this digest against the bytes.
        self._digest(found, "sha256", item.content.sha256)
        self._digest(found, "md5", hashlib.md5(data, usedforsecurity=False).digest())
        self._digest(found, "sha1", hashlib.sha1(data, usedforsecurity=False).digest())
        try:
            for measured in self._decoder.measured(data, "gray", min_side, item.content.media_type, pipelines):
                for hashed in hashing.read(measured):
                    self._match(found, hashed)
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
        blank = np.zeros((1, pdq.HASH_BYTES), np.uint8)
        found = _Found(self._listed.matcher)
        for pipeline in found.pipelines:
            found.matcher.match(blank, pipeline)

    def _digest(self, found: _Found, hash_type: str, digest: bytes) -> None:
        found.add_hash(hash_type, digest, 100)
        for match in found.matcher.match_digest(hash_type, digest):
            found.add_match(match, "original")
        found.benign = found.benign or found.matcher.benign_digest(hash_type, digest)

    def _match(self, found: _Found, hashed: Hashed) -> None:
        if not hashed.picture.endswith(STRIPPED):
            found.add_hash(hashed.hash_type, hashed.values[0].tobytes(), hashed.quality)
        pipeline = _PIPELINES.get(hashed.hash_type)
        if pipeline is None or hashed.quality < pdq.MIN_QUALITY:
            return
        for match in found.matcher.match(hashed.values, pipeline):
            variant = pdq.VARIANTS[match.query]
            found.add_match(match, f"{variant}/{hashed.picture}" if hashed.picture else variant)


def load(settings: PerceptualHashingSettings) -> HashingScorer:
    """Load and verify every bank, and compile.

    Raises:
        Fatal: as `LiveBanks`.
    """
    # The workers' helper imports and compiles what this process does, too: side by side, a restart takes half as long.
    with ThreadPoolExecutor(1, "start-decoder") as starting:
        started = starting.submit(
            make_decoder,
            settings.decoding,
            settings.rpc_server.workers,
            hashing.MEASURE,
            variants=settings.variants,
            strip_borders=settings.strip_borders,
            signal_types=settings.signal_types,
        )
        try:
            # Here too, where what is wrong with a plug-in can be told.
            plug_ins = signal_types.load(settings.signal_types)
            listed = LiveBanks(
                settings.banks,
                broker=lambda: KafkaBroker(settings.kafka),
                topic=TopicNames(settings.kafka.topic_prefix).bank_entries,
            )
            listed.start()
        except BaseException:
            started.result().close()
            raise
    decoder = started.result()
    scorer = HashingScorer(listed, ContentStore(settings.content), decoder, plug_ins)
    scorer.warm()
    return scorer
