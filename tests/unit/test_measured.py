"""What travels of a measured hash stands for all of its turns."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from seawall.api.signal.v1 import signal_pb2
from seawall.perceptual_hashing import measured, pdq
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.reduction import prepare
from tests.support import images


@pytest.mark.parametrize("pipeline", ["full", "512"])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket", "noise"])
def test_exchanging_the_bits_of_four_hashes_gives_the_other_four_exactly(name: str, pipeline: Pipeline) -> None:
    for width, height in ((640, 480), (311, 777), (97, 64)):
        gray = np.asarray(images.noise(width, height).convert("L")) if name == "noise" else images.gray(name)
        values = pdq.hash_variants(prepare(gray[:height, :width], pipeline)).values
        sent = values[[pdq.VARIANTS.index(turn) for turn in measured.SENT_TURNS]]
        hash_ = signal_pb2.ItemHash(value=sent[0].tobytes(), turned=sent[1:].tobytes())
        assert dict(measured.all_turns(hash_)) == {turn: values[k].tobytes() for k, turn in enumerate(pdq.VARIANTS)}


def test_hashes_are_kept_from_the_whole_length() -> None:
    hashes = [signal_pb2.ItemHash(picture=f"frame-{k}") for k in range(100)]
    kept = measured.spread(hashes, 16)
    assert (len(kept), kept[0], kept[-1]) == (16, hashes[0], hashes[-1])
    places = [hashes.index(one) for one in kept]
    assert max(b - a for a, b in pairwise(places)) <= 7
    assert measured.spread(hashes[:16], 16) == hashes[:16]


def test_pictures_of_a_frame_are_known_as_its() -> None:
    assert measured.frame_of("frame-5/alpha-black/stripped") == "frame-5"
    assert measured.frame_of("alpha-black") == measured.frame_of("stripped") == measured.frame_of("") == ""
    assert measured.name("mirror", "frame-5") == "mirror/frame-5"
    assert measured.name("original", "") == "original"
