"""PDQ in plain NumPy: what `pdq_kernels` computes, to read, to test against, and where Numba cannot compile."""

from __future__ import annotations

import numpy as np

from seawall.perceptual_hashing.pdq_bands import SAMPLES, Bands, Floats, bands, dct
from seawall.runtime.decoding import Pixels


def hash_gray(gray: Pixels) -> tuple[bytes, int]:
    """The hash (32 bytes, in the order of its hex) and the quality (0 to 100) of an (h, w) luma, sides at least 8."""
    grid = _matrix(bands(gray.shape[0]), gray.shape[0]) @ gray.astype(np.float32)
    grid = grid @ _matrix(bands(gray.shape[1]), gray.shape[1]).T
    frequencies = (dct() @ grid @ dct().T).reshape(-1)
    # The lower median: the 128th smallest of 256.
    median = np.partition(frequencies, 127)[127]
    packed = np.packbits(frequencies > median, bitorder="little")
    return packed[::-1].tobytes(), _quality(grid)


def _matrix(axis: Bands, length: int) -> Floats:
    full = np.zeros((SAMPLES, length), np.float32)
    for sample in range(SAMPLES):
        full[sample, axis.start[sample] : axis.start[sample] + axis.weights.shape[1]] = axis.weights[sample]
    return full


def _quality(grid: Floats) -> int:
    scale = np.float32(100) / np.float32(255)
    total = 0
    for axis in (0, 1):
        total += int(np.abs((np.diff(grid, axis=axis) * scale).astype(np.int32)).sum())
    return min(100, total // 90)
