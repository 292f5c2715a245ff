"""Listed hashes of plug-ins, searched as each plug-in does it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from seawall.perceptual_hashing import signal_types
from seawall.perceptual_hashing.bank_segments import Segment
from seawall.perceptual_hashing.signal_types import SignalIndex, SignalType
from seawall.runtime.logging import get_logger

_log = get_logger(__name__)


class NearSignal(NamedTuple):
    """A listed hash within the plug-in's distance."""

    #: Number of the entry in the segment.
    entry: int
    distance: int


class PlugInHashes:
    """Indexes of a service's plug-ins over its segments; each is made once and forgotten with its segment.

    Safe for threads.
    """

    def __init__(self, plug_ins: Sequence[SignalType] = ()) -> None:
        self._plug_ins = {plug_in.name: plug_in for plug_in in plug_ins}
        self._indexes: WeakKeyDictionary[Segment, dict[str, SignalIndex]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @property
    def names(self) -> frozenset[str]:
        """The plug-ins that are loaded."""
        return frozenset(self._plug_ins)

    def says_enough(self, name: str, quality: int) -> bool:
        """Whether a hash of this quality is matched."""
        return name in self._plug_ins and quality >= self._plug_ins[name].min_quality

    def prepare(self, segment: Segment) -> None:
        """Make the segment's indexes, before anything is asked of it."""
        if not self._plug_ins:
            return
        with self._lock:
            if segment not in self._indexes:
                self._indexes[segment] = {
                    name: signal_types.index_of(plug_in, segment.columns.hashes[kind].values)
                    for name, plug_in in self._plug_ins.items()
                    if (kind := _kind(plug_in)) in segment.columns.hashes
                }
                self._tell_wrong(segment)

    def search(self, segment: Segment, name: str, value: bytes) -> list[NearSignal]:
        """Every entry of a prepared segment within the plug-in's distance of a hash."""
        index = self._indexes.get(segment, {}).get(name)
        if index is None:
            return []
        entry = segment.columns.hashes[_kind(self._plug_ins[name])].entry
        return [NearSignal(int(entry[row]), distance) for row, distance in index.search(value)]

    def _tell_wrong(self, segment: Segment) -> None:
        for kind, hashes in segment.columns.hashes.items():
            name, _, length = kind.partition(".")
            if name in self._plug_ins and kind != _kind(self._plug_ins[name]):
                _log.error(
                    "listed hashes of a plug-in have another length than it makes, and match nothing: list them again",
                    hash_type=name,
                    bytes=length,
                    entries=len(hashes.entry),
                )


def _kind(plug_in: SignalType) -> str:
    return f"{plug_in.name}.{plug_in.hash_bytes}"
