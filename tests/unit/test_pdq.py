from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pdqhash
import pytest
from PIL import Image

from seawall.perceptual_hashing import borders, pdq, pdq_reference
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.hash_types import MIN_QUALITY
from seawall.perceptual_hashing.reduction import prepare
from seawall.runtime import decoding
from tests.support import images
from tests.support.images import Gray


def distance(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()


def by_pip(gray: Gray) -> tuple[bytes, int]:
    """The reference implementation, on the same gray input."""
    bits, quality = pdqhash.compute(np.repeat(gray[:, :, None], 3, axis=2))
    return np.packbits(np.asarray(bits, np.uint8)).tobytes(), int(quality)


def varied(count: int, seed: int, low: int = 64, high: int = 1400) -> list[Gray]:
    """Photographs in random sizes and proportions."""
    rng = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in rng.integers(low, high, (count, 2))]
    return [images.gray(images.PHOTOGRAPHS[k % len(images.PHOTOGRAPHS)], size) for k, size in enumerate(sizes)]


def test_hashes_equal_the_reference_implementation() -> None:
    pictures = varied(120, 1)
    far = 0
    for gray in pictures:
        ours, theirs = pdq.hash_gray(gray), by_pip(gray)
        apart = distance(ours.value, theirs[0])
        far += apart > 0
        if ours.quality >= MIN_QUALITY:
            assert apart <= 2, gray.shape
        assert abs(ours.quality - theirs[1]) <= 1
    assert far <= len(pictures) // 100


@pytest.mark.parametrize("side", [64, 65, 127, 128, 129, 255, 256, 257, 512, 1023])
def test_sizes_at_which_the_filter_changes_equal_the_reference_too(side: int) -> None:
    gray = images.gray("astronaut", (side, side + 1))
    assert pdq.hash_gray(gray).value == by_pip(gray)[0]


def test_numpy_gives_the_same_bits_as_the_kernels() -> None:
    for gray in varied(30, 2, low=8):
        compiled = pdq.hash_gray(gray)
        value, quality = pdq_reference.hash_gray(gray)
        assert distance(compiled.value, value) <= (2 if compiled.quality >= MIN_QUALITY else 256)
        assert abs(compiled.quality - quality) <= 1


TURNS: Mapping[str, Callable[[Gray], Gray]] = {
    "original": lambda gray: gray,
    "mirror": np.fliplr,
    "flip": np.flipud,
    "rot90": lambda gray: np.rot90(gray, 1),
    "rot180": lambda gray: np.rot90(gray, 2),
    "rot270": lambda gray: np.rot90(gray, 3),
    "transpose": lambda gray: gray.T,
    "transverse": lambda gray: np.rot90(gray, 2).T,
}


def test_the_eight_variants_are_those_of_the_turned_pictures() -> None:
    assert set(TURNS) == set(pdq.VARIANTS)
    wrong = []
    for gray in varied(40, 3):
        hashes = pdq.hash_variants(gray)
        for row, name in enumerate(pdq.VARIANTS):
            turned = pdq.hash_gray(np.ascontiguousarray(TURNS[name](gray)))
            if hashes.values[row].tobytes() != turned.value:
                wrong.append((name, gray.shape, distance(hashes.values[row].tobytes(), turned.value)))
    # Sums in another order may turn a bit that lies on the median.
    assert len(wrong) <= 3, wrong
    assert all(apart <= 2 for *_, apart in wrong), wrong


def test_plain_pictures_have_no_quality_and_photographs_have() -> None:
    assert pdq.hash_gray(np.full((200, 300), 77, np.uint8)).quality == 0
    assert all(pdq.hash_gray(images.gray(name)).quality >= MIN_QUALITY for name in images.PHOTOGRAPHS)


def test_pictures_too_small_to_hash_say_so() -> None:
    for shape in ((1, 1), (7, 500), (500, 7)):
        gray = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        assert pdq.hash_gray(gray) == (bytes(32), 0)
        assert pdq.hash_variants(gray).quality == 0
    assert pdq.hash_gray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).quality == 100


@pytest.mark.parametrize("wrong", [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.float32)])
def test_other_arrays_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        pdq.hash_gray(wrong)


def test_layout_does_not_matter() -> None:
    gray = images.gray("coffee", (300, 200))
    frozen = gray.copy()
    frozen.flags.writeable = False
    sliced = np.zeros((400, 600), np.uint8)
    sliced[::2, ::2] = gray
    expected = pdq.hash_gray(gray.copy())
    assert (
        pdq.hash_gray(frozen) == pdq.hash_gray(np.asfortranarray(gray)) == pdq.hash_gray(sliced[::2, ::2]) == expected
    )


def test_scaling_while_decoding_hardly_moves_the_512_hash() -> None:
    for name in images.PHOTOGRAPHS:
        data = images.encode(images.photograph(name, (1600, 1300)))
        whole = pdq.hash_gray(prepare(decoding.decode_gray(data, min_side=None), "512"))
        scaled = pdq.hash_gray(prepare(decoding.decode_gray(data, min_side=512), "512"))
        assert distance(whole.value, scaled.value) <= 4


@pytest.mark.parametrize("pipeline", ["full", "512"])
def test_edited_copies_stay_near(pipeline: Pipeline) -> None:
    for name in images.PHOTOGRAPHS:
        picture = images.photograph(name, (700, 560))
        listed = pdq.hash_gray(prepare(decoding.decode_gray(images.encode(picture, "PNG"), None), pipeline)).value
        brighter = picture.point(lambda level: min(255, int(level * 1.15)))
        for copy in (images.encode(picture, quality=40), images.encode(brighter), images.encode(picture, "WEBP")):
            found = pdq.hash_gray(prepare(decoding.decode_gray(copy, None), pipeline)).value
            assert distance(listed, found) <= 31


def test_uniform_borders_are_stripped_and_pictures_without_are_left() -> None:
    gray = images.gray("chelsea", (300, 200))
    assert borders.strip(gray) is None
    framed = np.full((320, 420), 250, np.uint8)
    framed[40:240, 70:370] = gray
    found = borders.strip(framed)
    assert found is not None
    assert pdq.hash_gray(np.ascontiguousarray(found)) == pdq.hash_gray(gray)
    assert distance(pdq.hash_gray(framed).value, pdq.hash_gray(gray).value) > 31
    # Coding noise in the border, and a border on one side only.
    rng = np.random.default_rng(0)
    noisy = np.vstack([rng.integers(0, 9, (60, 300), np.uint8), gray])
    found = borders.strip(noisy)
    assert found is not None
    assert abs(found.shape[0] - 200) <= 2
    # Nothing but border.
    assert borders.strip(np.full((200, 200), 9, np.uint8)) is None
    assert borders.strip(np.zeros((1, 1), np.uint8)) is None


def test_a_home_that_cannot_be_written_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_bytes(b"")
    code = (
        "import numpy as np; from seawall.perceptual_hashing import kernels, pdq_bands, pdq_kernels;"
        "B = np.zeros((16, 16), np.float32); B[0, 0] = 1; out = np.zeros(32, np.uint8);"
        "pdq_kernels.threshold(B, out); print(kernels.CACHED, out[31])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    for home, cached in ((blocked / "home", "False"), (tmp_path / "home", "True")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "SEAWALL_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [cached, "1"]
    assert any((tmp_path / "home" / "cache" / "numba").iterdir())


def test_pictures_are_not_reduced_unless_they_are_larger() -> None:
    small = np.asarray(Image.new("L", (512, 400)))
    assert prepare(small, "512") is small
    assert prepare(small, "full") is small
    assert prepare(np.zeros((513, 10), np.uint8), "512").shape == (512, 512)
