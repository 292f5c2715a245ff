"""Perceptual hashes that others bring: a plug-in is a `SignalType` under the entry point ``seawall.signal_types``.

PDQ, MD5, SHA-1 and SHA-256 are built in. A hash that is licensed (PhotoDNA is the usual one) is added by whoever holds
the licence, in a package of their own:

    [project.entry-points."seawall.signal_types"]
    photodna = "their_package:PhotoDNA"

and ``signal_types: [photodna]`` in the service's settings. A plug-in proves itself by its own examples whenever it is
loaded; one that does not reproduce them is never ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Final, NamedTuple, Protocol

import numpy as np

from seawall.core.errors import Fatal
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.hash_types import MAX_PLUG_IN_BYTES, is_plug_in
from seawall.runtime.decoding import Pixels

ENTRY_POINTS: Final = "seawall.signal_types"


class SignalHash(NamedTuple):
    """The hash of one picture."""

    value: bytes
    #: 0 to 100: how much the hash says; one below `SignalType.min_quality` is reported and not matched.
    quality: int


class SignalExample(NamedTuple):
    """A picture and what its hash must be. Benign pictures only: examples travel with the plug-in."""

    #: uint8 (h, w), BT.601 luma.
    gray: Pixels
    expected: SignalHash
    #: Bits, or whatever `distance` counts, by which the hash may differ from machine to machine.
    tolerance: int = 0


class SignalIndex(Protocol):
    """Listed hashes of one type, as they are searched. Immutable; called by several threads."""

    def search(self, value: bytes) -> Sequence[tuple[int, int]]:
        """(row, distance) of every listed hash at most `SignalType.max_distance` away; none may be missed."""
        ...


class SignalType(Protocol):
    """One kind of perceptual hash. Made once, without arguments; its methods are called by several processes.

    It may bring a method of its own to search long lists; without one, `distance` is asked of every listed hash:

        def index(self, values: Pixels) -> SignalIndex     # uint8 (n, hash_bytes), not to be written to
    """

    #: ``hash_type`` of its hashes in signals and banks.
    name: str
    #: Bytes of a hash.
    hash_bytes: int
    #: Hashes at most so far apart are of the same picture.
    max_distance: int
    #: Below it a hash says too little to be matched.
    min_quality: int
    #: The size at which it wants pictures; see `bank_card.Pipeline`.
    pipeline: Pipeline

    def hash(self, gray: Pixels) -> SignalHash:
        """The hash of a picture, uint8 (h, w), contiguous and not to be written to."""
        ...

    def distance(self, one: bytes, other: bytes) -> int:
        """How far two hashes are apart; 0 for equal ones, and the same both ways."""
        ...

    def examples(self) -> Sequence[SignalExample]:
        """At least one picture that has a hash, and one that is far from it."""
        ...


def load(names: Sequence[str]) -> list[SignalType]:
    """The plug-ins of these names, each proven by its examples.

    Raises:
        Fatal: ``NO_SIGNAL_TYPE`` (not installed), ``BAD_SIGNAL_TYPE`` (cannot be loaded, or fails `prove`).
    """
    installed = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    found: list[SignalType] = []
    for name in names:
        point = installed.get(name)
        if point is None:
            raise Fatal(
                "NO_SIGNAL_TYPE",
                f"signal_types: {name} is not installed: install its package, or remove it",
            )
        try:
            plug_in: SignalType = point.load()()
        except Exception as error:
            raise Fatal(
                "BAD_SIGNAL_TYPE", f"{name} cannot be loaded ({type(error).__name__}): ask its makers"
            ) from error
        if plug_in.name != name:
            raise _bad(name, f"it calls itself {plug_in.name}: its entry point and its name must agree")
        prove(plug_in)
        found.append(plug_in)
    return found


def prove(plug_in: SignalType) -> None:
    """Hold a plug-in to its own examples and to what every signal type must do. For its makers' tests too.

    Raises Fatal("BAD_SIGNAL_TYPE"), naming what it does wrong.
    """
    name = plug_in.name
    if not is_plug_in(name):
        raise _bad(name, "its name must be one of its own: lower-case letters, digits and _")
    if not 1 <= plug_in.hash_bytes <= MAX_PLUG_IN_BYTES:
        raise _bad(name, f"hash_bytes must be 1 to {MAX_PLUG_IN_BYTES}")
    if plug_in.pipeline not in ("full", "512"):
        raise _bad(name, 'pipeline must be "full" or "512"')
    try:
        _prove(plug_in, plug_in.examples())
    except Fatal:
        raise
    except Exception as error:
        raise _bad(name, f"it fails on its own examples ({type(error).__name__})") from error


def _prove(plug_in: SignalType, examples: Sequence[SignalExample]) -> None:
    name = plug_in.name
    if not any(example.expected.quality >= plug_in.min_quality for example in examples):
        raise _bad(name, "it brings no example whose hash would be matched")
    for number, example in enumerate(examples):
        gray = example.gray.copy()
        gray.flags.writeable = False
        found = plug_in.hash(gray)
        if len(bytes(found.value)) != plug_in.hash_bytes:
            raise _bad(name, f"example {number}: its hash does not have hash_bytes ({plug_in.hash_bytes}) bytes")
        if not 0 <= found.quality <= 100:
            raise _bad(name, f"example {number}: its quality is not 0 to 100")
        if plug_in.hash(gray) != found:
            raise _bad(name, f"example {number}: the same picture has two hashes")
        apart = plug_in.distance(found.value, example.expected.value)
        if apart > example.tolerance or found.quality != example.expected.quality:
            raise _bad(name, f"example {number}: its hash is {apart} from the one expected, or of another quality")
    values = [example.expected.value for example in examples]
    for one in values:
        if plug_in.distance(one, one) != 0:
            raise _bad(name, "a hash is not at distance 0 from itself")
        if any(plug_in.distance(one, other) != plug_in.distance(other, one) for other in values):
            raise _bad(name, "its distance is not the same both ways")
    if not any(plug_in.distance(one, other) > plug_in.max_distance for one in values for other in values):
        raise _bad(name, "it brings no two examples that are different pictures: everything would match")
    listed = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    own, every = index_of(plug_in, listed), _EveryDistance(plug_in, listed)
    if any(sorted(own.search(value)) != sorted(every.search(value)) for value in values):
        raise _bad(name, "its index does not find what its distance says is near")


def index_of(plug_in: SignalType, values: Pixels) -> SignalIndex:
    """The plug-in's own index over listed hashes, uint8 (n, hash_bytes), or one that asks its distance of each."""
    values = np.ascontiguousarray(values).view()
    values.flags.writeable = False
    make = getattr(plug_in, "index", None)
    found: SignalIndex = _EveryDistance(plug_in, values) if make is None else make(values)
    return found


class _EveryDistance:
    def __init__(self, plug_in: SignalType, values: Pixels) -> None:
        self._plug_in = plug_in
        self._values = [row.tobytes() for row in values]

    def search(self, value: bytes) -> list[tuple[int, int]]:
        most, distance = self._plug_in.max_distance, self._plug_in.distance
        return [(row, far) for row, one in enumerate(self._values) if (far := distance(value, one)) <= most]


def _bad(name: str, what: str) -> Fatal:
    return Fatal("BAD_SIGNAL_TYPE", f"signal type {name}: {what}")
