"""One media item: read, digest, decode, hash every frame in every variant, match."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

import numpy as np

from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Retryable
from seawall.perceptual_hashing import hashing, pdq, signal_types
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.findings import Findings
from seawall.perceptual_hashing.hash_types import MIN_QUALITY
from seawall.perceptual_hashing.hashing import Hashed
from seawall.perceptual_hashing.live_banks import ListedBanks, LiveBanks
from seawall.perceptual_hashing.matcher import Matcher
from seawall.perceptual_hashing.measured import PDQ_TYPES, SENT_TURNS
from seawall.perceptual_hashing.reduction import REDUCED_SIDE
from seawall.perceptual_hashing.settings import PerceptualHashingSettings
from seawall.perceptual_hashing.signal_types import SignalType
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import Decoder, Unscannable
from seawall.runtime.decoding.isolated import make_decoder
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.topics import TopicNames
from seawall.runtime.workers import Begun

#: The pipeline whose hashes are reported when no bank asks for one: it costs the same however large the picture is.
DEFAULT_PIPELINE: Final[Pipeline] = "512"
#: The pipeline of a type of PDQ.
_PIPELINES: Final[dict[str, Pipeline]] = {name: pipeline for pipeline, name in PDQ_TYPES.items()}
#: Rows of `pdq.VARIANTS` that travel beside the upright one.
_SENT: Final = [pdq.VARIANTS.index(turn) for turn in SENT_TURNS[1:]]


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
        begun = self.begin(item)
        return begun if isinstance(begun, signal_pb2.ItemResult) else begun.finish()

    def begin(self, item: perceptual_hashing_pb2.HashItem) -> signal_pb2.ItemResult | Begun:
        """`score`, while decoding and hashing go on elsewhere."""
        if unready := self.unready():
            raise Retryable(unready.partition(":")[0], "nothing is scored without the banks that are required")
        content = item.content
        data = self._content.get(content)
        found, matcher = Findings(), self._listed.matcher
        pipelines = matcher.pipelines or (DEFAULT_PIPELINE,)
        # A JPEG is scaled while it is decoded, unless a bank or a plug-in needs every pixel.
        min_side = None if self._whole or "full" in pipelines else REDUCED_SIDE

        def result(status: signal_pb2.ItemStatus.ValueType, reason: str = "") -> signal_pb2.ItemResult:
            return found.result(status, reason, self._listed.observed, content.sha256)

        def finish() -> signal_pb2.ItemResult:
            try:
                with closing(decoding):
                    for measured in decoding:
                        for hashed in hashing.read(measured):
                            _add_hashed(found, matcher, hashed)
            except Unscannable as error:
                return result(signal_pb2.ITEM_STATUS_UNSCANNABLE, error.reason)
            return result(signal_pb2.ITEM_STATUS_OK)

        try:
            decoding = self._decoder.measured(data, "gray", min_side, content.media_type, ",".join(pipelines))
        except Unscannable as error:
            _add_digests(found, matcher, content.sha256, data)
            return result(signal_pb2.ITEM_STATUS_UNSCANNABLE, error.reason)
        # Meanwhile:
        _add_digests(found, matcher, content.sha256, data)
        return Begun(decoding, finish)

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
        matcher = self._listed.matcher
        for pipeline in matcher.pipelines or (DEFAULT_PIPELINE,):
            matcher.match(blank, pipeline)


def _add_digests(found: Findings, matcher: Matcher, sha256: bytes, data: bytes) -> None:
    # The store has just checked this digest against the bytes.
    _add_digest(found, matcher, "sha256", sha256)
    _add_digest(found, matcher, "md5", hashlib.md5(data, usedforsecurity=False).digest())
    _add_digest(found, matcher, "sha1", hashlib.sha1(data, usedforsecurity=False).digest())


def _add_digest(found: Findings, matcher: Matcher, hash_type: str, digest: bytes) -> None:
    found.add_hash(signal_pb2.ItemHash(hash_type=hash_type, value=digest, quality=100))
    for match in matcher.match_digest(hash_type, digest):
        found.add_match(match, "original")
    found.benign = found.benign or matcher.benign_digest(hash_type, digest)


def _add_hashed(found: Findings, matcher: Matcher, hashed: Hashed) -> None:
    hash_type, picture, quality, values = hashed
    upright = values[0].tobytes()
    turned = values[_SENT].tobytes() if len(values) == len(pdq.VARIANTS) else b""
    found.add_hash(
        signal_pb2.ItemHash(hash_type=hash_type, value=upright, quality=quality, picture=picture, turned=turned)
    )
    pipeline = _PIPELINES.get(hash_type)
    if pipeline is None:
        for match in matcher.match_plug_in(hash_type, upright, quality):
            found.add_match(match, "original", picture)
    elif quality >= MIN_QUALITY:
        found.add_frame(pipeline, picture)
        for match in matcher.match(values, pipeline):
            found.add_match(match, pdq.VARIANTS[match.query], picture)


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
                plug_ins=plug_ins,
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
