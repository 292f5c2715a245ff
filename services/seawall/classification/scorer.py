"""One media item through every classifier: read, decoded once, prepared, scored beside others, kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from seawall.api.classification.v1 import classification_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification import lineup as lineups
from seawall.classification import pictures
from seawall.classification import rollout as rollouts
from seawall.classification.head import Head
from seawall.classification.lineup import Lineup, LoadOptions, Plan
from seawall.classification.pictures import Picture, prepare
from seawall.classification.provenance import Provenance
from seawall.classification.reload import Reloader
from seawall.classification.rollout import Rollout
from seawall.classification.settings import ClassificationSettings
from seawall.classification.trials import Trials
from seawall.runtime import huge_pages, metrics, model_pack
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import Decoder, Decoding, Frame, Unscannable
from seawall.runtime.decoding.isolated import make_decoder
from seawall.runtime.result_cache import ResultCache
from seawall.runtime.workers import Begun, Held, finished

OK = signal_pb2.ITEM_STATUS_OK
_HIT, _MISS = {metrics.CACHE_RESULT: "hit"}, {metrics.CACHE_RESULT: "miss"}


class Decode(Protocol):
    """The one seam where a picture is decoded."""

    def __call__(self, data: bytes, *, min_side: int, declared: str) -> Decoding[Frame]:
        """The frames to score, as RGB, at least one. A frame's pixels are valid until the next is asked for.

        Args:
            min_side: scale while decoding as far as both sides keep at least so many pixels.
            declared: the media type that the sender gave.

        Raises:
            Unscannable: with the reason; also after some frames.
        """
        ...


class Scorer:
    """Scores media items. Safe for threads; every call blocks.

    Args:
        lineup: the models, proven already.
        trials: runs models on trial; None where there never are any.
        provenance: reads further labels from a file that could be decoded.
    """

    def __init__(
        self,
        lineup: Lineup,
        content: ContentStore,
        decode: Decode,
        *,
        cache_size: int = 0,
        trials: Trials | None = None,
        provenance: Callable[[bytes], Sequence[signal_pb2.LabelScore]] | None = None,
    ) -> None:
        self._lineup = lineup
        self._content = content
        self._decode = decode
        self._cache: ResultCache[signal_pb2.ItemResult] = ResultCache(cache_size)
        self._trials = trials
        self._provenance = provenance

    def score(self, item: classification_pb2.ClassifyItem) -> signal_pb2.ItemResult:
        """Labels with status OK, or UNSCANNABLE with the decoder's reason. Not to be changed: it may be given again.

        Raises:
            Poison, Retryable: the content cannot be had, or a classifier gave no usable answer. Never a default score.
        """
        result: signal_pb2.ItemResult = finished(self.begin(item))
        return result

    def begin(self, item: classification_pb2.ClassifyItem) -> signal_pb2.ItemResult | Begun:
        """`score`, while decoding goes on elsewhere, and the models work on several at once."""
        # Always read, whatever is cached: the reference must be allowed, and the bytes be those it names.
        data = self._content.get(item.content)
        lineup = self._lineup
        plan = lineup.plan(item.generation_id)
        declared = item.content.media_type
        key = (item.content.sha256, declared, plan.digest, lineup.min_side)
        if found := self._known(plan, key):
            return found
        try:
            decoding = self._decode(data, min_side=lineup.min_side, declared=declared)
        except Unscannable as error:
            return _unscannable(error)

        def decoded() -> signal_pb2.ItemResult | Held:
            # Closed also when a frame fails: the decoder's slot must not wait for the garbage collector.
            with closing(decoding):
                if found := self._known(plan, key):
                    return found
                try:
                    picture = Picture(plan, key, [prepare(frame, plan) for frame in decoding])
                except Unscannable as error:
                    return _unscannable(error)
            # Now: the file's bytes are not to be held.
            origin = self._provenance(data) if self._provenance is not None else ()
            return Held(picture, self._together, lambda _: self._result(picture, origin))

        return Begun(decoding, decoded)

    def swap(self, lineup: Lineup) -> None:
        """From now on, items meet these models; those on their way end with the ones they began with."""
        self._lineup = lineup

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """The classifiers, those on trial included, by their packs' digests."""
        return self._lineup.artefacts

    def _known(self, plan: Plan, key: Hashable) -> signal_pb2.ItemResult | None:
        found = self._cache.find(key)
        if found is not None:
            metrics.RESULT_CACHE.add(1, _HIT)
            _watch(plan, found)
        return found

    def _together(self, held: Sequence[Picture]) -> None:
        """Score those that need it: the same picture may be here twice, or be scored by another thread since."""
        unlike: dict[Hashable, Picture] = {}
        for picture in held:
            if self._cache.find(picture.key) is None:
                unlike.setdefault(picture.key if self._cache.size else picture, picture)
        pictures.score([*unlike.values()])

    def _result(self, picture: Picture, origin: Sequence[signal_pb2.LabelScore]) -> signal_pb2.ItemResult:
        plan = picture.plan
        if found := self._known(plan, picture.key):
            return found
        if not picture.seen:
            # What stood for it could not be kept.
            pictures.score([picture])
        result = signal_pb2.ItemResult(status=OK)
        picture.add_to(result.labels)
        result.labels.extend(origin)
        if plan.shadows and self._trials is not None:
            result.shadows.extend(self._trials(plan.shadows, picture.frames))
        if _to_keep(result):
            self._cache.keep(picture.key, result)
        metrics.RESULT_CACHE.add(1, _MISS)
        _watch(plan, result)
        return result


def load(settings: ClassificationSettings) -> Scorer:
    """Load every pack, have it prove itself, and keep watch for changes.

    Raises:
        Fatal: as ``rollout.read`` and ``lineup.load``; the service is then never ready.
    """
    workers = settings.rpc_server.workers
    options = LoadOptions(settings.execution, workers, settings.max_model_bytes, settings.drift_window)

    def read() -> Rollout:
        return rollouts.read(settings.rollout) if settings.rollout else Rollout(active=tuple(settings.classifiers))

    def load_lineup(changed: Rollout, serving: Lineup | None = None) -> Lineup:
        loaded = lineups.load(changed, options, serving)
        # Proven: the models' memory is there, and all of it is used for every picture from now on.
        huge_pages.use()
        return loaded

    rollout = read()
    lineup = load_lineup(rollout)
    scorer = Scorer(
        lineup,
        ContentStore(settings.content),
        decoded_by(make_decoder(settings.decoding, workers), settings.sampled_frames),
        cache_size=settings.cached_results,
        trials=Trials(workers, settings.trial_seconds),
        provenance=Provenance(settings.provenance_anchors) if settings.provenance else None,
    )
    if settings.reload_seconds:
        reloader = Reloader(
            read,
            load_lineup,
            scorer.swap,
            (rollout, lineup),
            settings.rollout,
        )
        reloader.start(settings.reload_seconds)
    return scorer


def decoded_by(decoder: Decoder, sampled_frames: int) -> Decode:
    """Decode by ``decoder``; of an animation the frames that differ most."""

    def decode(data: bytes, *, min_side: int, declared: str) -> Decoding[Frame]:
        return decoder.frames(data, "rgb", min_side, declared, most=sampled_frames)

    return decode


def load_heads(folders: Sequence[Path], max_bytes: int = model_pack.MAX_PACK_BYTES) -> list[Head]:
    """The packs in these folders, each proven at the decoding that all of them share."""
    loaded = lineups.load(Rollout(active=tuple(folders)), LoadOptions(max_bytes=max_bytes))
    return [loaded.heads[folder] for folder in folders]


def _unscannable(error: Unscannable) -> signal_pb2.ItemResult:
    return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_UNSCANNABLE, reason=error.reason)


def _to_keep(result: signal_pb2.ItemResult) -> bool:
    # A trial that found no thread free may well succeed next time.
    return not any(shadow.reason for shadow in result.shadows)


def _watch(plan: Plan, result: signal_pb2.ItemResult) -> None:
    """Tell each model's watches what it said."""
    heads = {head.model_name: head for head in plan.heads}
    for scores in (result.labels, *(shadow.labels for shadow in result.shadows)):
        for score in scores:
            if head := heads.get(score.model):
                head.watches[score.label](score.score)
