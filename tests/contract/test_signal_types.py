"""The contract of `SignalType`: a plug-in that keeps it is loaded, and its hashes reach the signal; no other serves.

Makers of a plug-in run the same: ``seawall.perceptual_hashing.signal_types.prove(TheirType())``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from seawall.api.bank.v1 import bank_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import banks, hashing, pdq, scorer, signal_types
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.bank_changes import listed
from seawall.perceptual_hashing.bank_entries import Entry
from seawall.perceptual_hashing.bank_index import BankIndex, Snapshot
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.hashing import Hasher
from seawall.perceptual_hashing.matcher import Matcher
from seawall.perceptual_hashing.plug_in_hashes import PlugInHashes
from seawall.perceptual_hashing.signal_types import SignalExample, SignalHash
from seawall.runtime.decoding import Frame, Pixels
from tests.support import images
from tests.support.bank_entries import card
from tests.support.hashing_room import Room
from tests.support.hashing_room import card as room_card
from tests.support.waiting import wait_for


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
    min_quality = 50
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


class Missing:
    def search(self, value: bytes) -> list[tuple[int, int]]:
        return []


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
    "an index that misses": (broken(index=lambda self, values: Missing()), "index"),
    "an index that fails": (broken(index=lambda self, values: 7), "AttributeError"),
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


# ---- banks of its hashes -------------------------------------------------------------------------------------------


class Indexed(BlockMean):
    """With an index of its own, which finds what `distance` says in one pass over all hashes."""

    searched = 0

    def index(self, values: Pixels) -> Indexed:
        found = Indexed()
        found.values = values
        return found

    values: Pixels

    def search(self, value: bytes) -> Sequence[tuple[int, int]]:
        Indexed.searched += 1
        far = np.bitwise_count(self.values ^ np.frombuffer(value, np.uint8)).sum(axis=1)
        return [(row, int(far[row])) for row in np.flatnonzero(far <= self.max_distance).tolist()]


def near(value: bytes, bits: int) -> bytes:
    return (int.from_bytes(value) ^ ((1 << bits) - 1)).to_bytes(len(value))


@pytest.fixture
def picture() -> bytes:
    return images.encode(Image.fromarray(blocks(1, 256)), "PNG")


@pytest.fixture(params=[BlockMean, Indexed])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Room:
    """A scorer whose settings name the plug-in."""
    installed(monkeypatch, block_mean="toy:BlockMean")
    monkeypatch.setitem(sys.modules, "toy", SimpleNamespace(BlockMean=request.param))
    return Room(tmp_path, signal_types=["block_mean"])


def matched(result: signal_pb2.ItemResult) -> list[tuple[str, str, int]]:
    return [(one.bank, one.entry_id, one.distance) for one in result.matches if one.hash_type == "block_mean"]


def test_its_hashes_are_listed_matched_and_reported_under_its_name(room: Room, picture: bytes) -> None:
    value = BlockMean().hash(blocks(1, 256)).value
    entries = [Entry(f"e{bits}", "block_mean", near(value, bits)) for bits in (0, 3, 6, 7)]
    room.list_bank("licensed", entries, signal_types=["block_mean"])
    result = room.score(picture)
    assert matched(result) == [("licensed", "e0", 0), ("licensed", "e3", 3), ("licensed", "e6", 6)]
    (match,) = [one for one in result.matches if one.distance == 3]
    assert (match.category, match.variant, match.action) == ("stand-in of licensed", "original", "")
    assert {one.hash_type: one.value for one in result.hashes}["block_mean"] == value
    assert {label.label: label.score for label in result.labels} == {"known_match": 1.0}
    artefacts = {one.name for one in room.scorer.artefacts()}
    assert "licensed" in artefacts
    assert matched(room.score(images.encode(Image.fromarray(blocks(2, 256)), "PNG"))) == []
    # A negative bank speaks against what is further away, and against no equal hash.
    room.list_bank("benign", [Entry("b", "block_mean", near(value, 2))], kind="negative", signal_types=["block_mean"])
    result = room.score(picture)
    assert matched(result) == [("licensed", "e0", 0)]
    assert {(one.entry_id, one.contested_by) for one in result.held_matches} == {
        ("e3", "benign/b"),
        ("e6", "benign/b"),
    }


def test_an_index_of_its_own_is_what_is_searched(tmp_path: Path) -> None:
    store = BankStore(tmp_path)
    value = BlockMean().hash(blocks(1, 256)).value
    changes = [listed("licensed", f"e{k}", {"block_mean": near(value, k)}, origin="test") for k in range(8)]
    store.apply([card("licensed", signal_types=["block_mean"]), *changes])
    index = BankIndex(store)
    hashes = PlugInHashes([Indexed()])
    for snapshot in (index.snapshot, _kept(index, store)):
        before = Indexed.searched
        matcher = Matcher(snapshot=snapshot, plug_ins=hashes)
        assert sorted(m.distance for m in matcher.match_plug_in("block_mean", value, 72)) == list(range(7))
        assert matcher.match_plug_in("block_mean", value, 19) == [], "below its own quality it says nothing"
        assert Indexed.searched == before + len(snapshot.parts)


def _kept(index: BankIndex, store: BankStore) -> Snapshot:
    """The same from the file that the index is kept in."""
    assert index.compact(everything=True)
    return BankIndex(store).snapshot


def test_changes_are_matched_while_it_runs_and_a_wrong_length_costs_itself_alone(room: Room, picture: bytes) -> None:
    value = BlockMean().hash(blocks(1, 256)).value
    store = BankStore(room.settings.banks.store)
    try:
        store.apply(
            [
                card("licensed", signal_types=["block_mean"]),
                listed("licensed", "long", {"block_mean": value + b"1"}, origin="test"),
                listed("licensed", "right", {"block_mean": near(value, 1), "md5": bytes(16)}, origin="test"),
            ]
        )
        wait_for(lambda: matched(room.score(picture)) == [("licensed", "right", 1)])
        store.apply([listed("licensed", "right", {}, origin="test", state=bank_pb2.ENTRY_STATE_REMOVED)])
        wait_for(lambda: matched(room.score(picture)) == [])
    finally:
        store.close()


def test_a_bank_whose_plug_in_nobody_loads_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    room = Room(tmp_path)
    entries = [Entry("e", "block_mean", bytes(8)), Entry("e", "md5", bytes(16))]
    required = room.settings.banks.model_copy(update={"required": ["demo", "licensed"]})
    with pytest.raises(Fatal, match="signal_types"):
        banks.write(tmp_path / "banks" / "licensed", room_card("licensed", "512"), entries)
    with capture_logs() as logs:
        room.list_bank("licensed", entries, signal_types=["block_mean"])
    (told,) = [one for one in logs if one.get("hash_type") == "block_mean"]
    assert (told["bank"], told["log_level"]) == ("licensed", "error")
    with pytest.raises(Fatal, match="block_mean") as caught:
        scorer.load(room.settings.model_copy(update={"banks": required}))
    assert caught.value.reason == "SIGNAL_TYPE_MISSING"
