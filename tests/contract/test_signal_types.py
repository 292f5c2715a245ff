"""The contract of `SignalType`: a plug-in that keeps it is loaded, and its hashes reach the signal; no other serves.

Makers of a plug-in run the same: ``seawall.perceptual_hashing.signal_types.prove(TheirType())``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import pytest

from seawall.core.errors import Fatal
from seawall.perceptual_hashing import hashing, pdq, signal_types
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.hashing import Hasher
from seawall.perceptual_hashing.signal_types import SignalExample, SignalHash
from seawall.runtime.decoding import Frame, Pixels


def blocks(seed: int, side: int = 64) -> Pixels:
    """A picture of 8 x 8 random blocks."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    return np.kron(small, np.ones((side // 8, side // 8), np.uint8))


class BlockMean:
    """The least hash that keeps the contract: which of 8 x 8 blocks are brighter than the mean."""

    name = "block_mean"
    hash_bytes = 8
    max_distance = 6
    min_quality = 20
    pipeline: Pipeline = "512"

    def hash(self, gray: Pixels) -> SignalHash:
        rows, columns = (np.linspace(0, side - 1, 8).astype(int) for side in gray.shape)
        means = gray[np.ix_(rows, columns)].astype(float)
        quality = min(100, int(means.std()))
        return SignalHash(np.packbits(means > means.mean()).tobytes(), quality)

    def distance(self, one: bytes, other: bytes) -> int:
        return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()

    def examples(self) -> Sequence[SignalExample]:
        return [
            SignalExample(blocks(1), SignalHash(bytes.fromhex("cc5daebfaa1023a2"), 72)),
            SignalExample(blocks(2), self.hash(blocks(2))),
        ]


class Pdq:
    """PDQ as a plug-in would bring it: the contract fits the hash that is built in."""

    name = "other_pdq"
    hash_bytes = pdq.HASH_BYTES
    max_distance = 31
    min_quality = pdq.MIN_QUALITY
    pipeline: Pipeline = "full"

    def hash(self, gray: Pixels) -> SignalHash:
        return SignalHash(*pdq.hash_gray(gray))

    def distance(self, one: bytes, other: bytes) -> int:
        return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()

    def examples(self) -> Sequence[SignalExample]:
        pictures = [blocks(seed, 256) for seed in (1, 2)]
        return [SignalExample(gray, self.hash(gray)) for gray in pictures]


@pytest.mark.parametrize("plug_in", [BlockMean, Pdq])
def test_a_signal_type_that_keeps_the_contract_proves_itself(plug_in: Callable[[], Any]) -> None:
    signal_types.prove(plug_in())


def broken(**members: Any) -> BlockMean:
    found: BlockMean = type("Broken", (BlockMean,), members)()
    return found


def alternating() -> Callable[..., SignalHash]:
    counter = iter(range(100))
    return lambda self, gray: SignalHash(bytes([next(counter)] * 8), 50)


BROKEN: dict[str, tuple[BlockMean, str]] = {
    "a name that is taken": (broken(name="pdq"), "name"),
    "a name that is none": (broken(name="Block Mean"), "name"),
    "no length": (broken(hash_bytes=0), "hash_bytes"),
    "another length": (broken(hash_bytes=16), "hash_bytes"),
    "no such pipeline": (broken(pipeline="256"), "pipeline"),
    "no examples": (broken(examples=lambda self: []), "no example"),
    "another hash": (
        broken(examples=lambda self: [SignalExample(blocks(1), SignalHash(bytes(8), 72))]),
        "from the one expected",
    ),
    "another quality": (broken(hash=lambda self, gray: BlockMean().hash(gray)._replace(quality=73)), "quality"),
    "a quality that is none": (broken(hash=lambda self, gray: BlockMean().hash(gray)._replace(quality=101)), "quality"),
    "two hashes of one picture": (broken(hash=alternating()), "two hashes"),
    "a distance to itself": (broken(distance=lambda self, one, other: 1), "from the one expected"),
    "a distance one way": (
        broken(distance=lambda self, one, other: 0 if one == other else 9 + int(one > other)),
        "both ways",
    ),
    "all pictures alike": (broken(distance=lambda self, one, other: 0), "everything would match"),
    "a picture it writes to": (broken(hash=lambda self, gray: gray.fill(0)), "ValueError"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_one_that_breaks_it_is_refused_and_told_why(fault: str) -> None:
    plug_in, wanted = BROKEN[fault]
    with pytest.raises(Fatal, match=wanted) as caught:
        signal_types.prove(plug_in)
    assert caught.value.reason == "BAD_SIGNAL_TYPE"


def installed(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Let packages with these entry points be installed."""
    found = [metadata.EntryPoint(name, value, signal_types.ENTRY_POINTS) for name, value in points.items()]
    monkeypatch.setattr(metadata, "entry_points", lambda group: found if group == signal_types.ENTRY_POINTS else [])


def test_plug_ins_are_loaded_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, block_mean=f"{__name__}:BlockMean", never_asked_for="no.such.module:Type")
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(BlockMean=BlockMean))
    (plug_in,) = signal_types.load(["block_mean"])
    assert plug_in.name == "block_mean"
    with pytest.raises(Fatal, match="not installed"):
        signal_types.load(["photodna"])
    with pytest.raises(Fatal, match="cannot be loaded"):
        signal_types.load(["never_asked_for"])


def test_its_hashes_stand_beside_pdq(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = Hasher(variants=True, strip_borders=True, plug_ins=[BlockMean(), Pdq()])
    gray = np.pad(blocks(1, 256), 40)
    found = list(hashing.read(hasher(Frame(3, "black", gray), "full,512")))
    whole, inside = "frame-3/alpha-black", "frame-3/alpha-black/stripped"
    kinds = ("pdq", "pdq_512", "block_mean", "other_pdq")
    assert [(one.hash_type, one.picture) for one in found] == [
        (kind, name) for name in (whole, inside) for kind in kinds
    ]
    hashes = {(one.hash_type, one.picture): one for one in found}
    assert hashes["pdq", inside].values.shape == (8, 32)
    assert hashes["other_pdq", inside].values.tobytes() == hashes["pdq", inside].values[0].tobytes()
    assert hashes["block_mean", inside].quality == BlockMean().hash(blocks(1, 256)).quality


@pytest.mark.parametrize(
    "said", [b"\x01", b"\x03\x00\x64\x01\x00\x20pdq", b"\x03\x00\x65\x01\x01\x00pdq\x00"], ids=repr
)
def test_what_no_hasher_said_is_refused(said: bytes) -> None:
    with pytest.raises(ValueError, match="no hashes"):
        list(hashing.read(said))
