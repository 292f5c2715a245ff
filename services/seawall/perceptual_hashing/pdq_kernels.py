"""PDQ's arithmetic, compiled. `pdq_reference` is the same in NumPy, to read and to test against."""

from __future__ import annotations

import numpy as np

from seawall.perceptual_hashing.kernels import kernel
from seawall.perceptual_hashing.pdq_bands import Floats, Integers
from seawall.runtime.decoding import Pixels


@kernel(fastmath=True)
def sample(
    gray: Pixels,
    row_start: Integers,
    row_weights: Floats,
    column_start: Integers,
    column_weights: Floats,
    grids: Floats,
) -> None:
    """Samples of one picture with one set of row bands and m sets of column bands.

    Args:
        gray: (h, w), rows contiguous.
        row_start, row_weights: `Bands` of h: (64,), (64, height).
        column_start, column_weights: m `Bands` of w: (m, 64), (m, 64, width).
        grids: out, (m, 64, 64).
    """
    columns = gray.shape[1]
    height, width = row_weights.shape[1], column_weights.shape[2]
    line = np.empty(columns, np.float32)
    eighths, quarters, halves = np.empty(512, np.float32), np.empty(256, np.float32), np.empty(128, np.float32)
    for row in range(64):
        line[:] = np.float32(0)
        for k in range(0, height, 8):
            # Eight rows at a time: the sum stays in registers, and the line is read and written once for all eight.
            first = row_start[row] + k
            p0, p1, p2, p3 = gray[first], gray[first + 1], gray[first + 2], gray[first + 3]
            p4, p5, p6, p7 = gray[first + 4], gray[first + 5], gray[first + 6], gray[first + 7]
            w0, w1, w2, w3 = (
                row_weights[row, k],
                row_weights[row, k + 1],
                row_weights[row, k + 2],
                row_weights[row, k + 3],
            )
            w4, w5, w6, w7 = (
                row_weights[row, k + 4],
                row_weights[row, k + 5],
                row_weights[row, k + 6],
                row_weights[row, k + 7],
            )
            for x in range(columns):
                line[x] += (
                    w0 * np.float32(p0[x]) + w1 * np.float32(p1[x]) + w2 * np.float32(p2[x]) + w3 * np.float32(p3[x])
                ) + (w4 * np.float32(p4[x]) + w5 * np.float32(p5[x]) + w6 * np.float32(p6[x]) + w7 * np.float32(p7[x]))
        for m in range(column_weights.shape[0]):
            out, start, weights = grids[m, row], column_start[m], column_weights[m]
            # Eight sums a band, side by side, then all bands' sums halved three times: everything read lies together,
            # where one sum for each band would have to fetch pixels from all over the line.
            for band in range(64):
                at, first = 8 * band, start[band]
                for lane in range(8):
                    eighths[at + lane] = weights[band, lane] * line[first + lane]
                for k in range(8, width, 8):
                    for lane in range(8):
                        eighths[at + lane] += weights[band, k + lane] * line[first + k + lane]
            for k in range(256):
                quarters[k] = eighths[2 * k] + eighths[2 * k + 1]
            for k in range(128):
                halves[k] = quarters[2 * k] + quarters[2 * k + 1]
            for k in range(64):
                out[k] = halves[2 * k] + halves[2 * k + 1]


@kernel(fastmath=True)
def quality(grid: Floats) -> int:
    """0 to 100: how much the samples differ from their neighbours, as the reference counts it."""
    scale = np.float32(100) / np.float32(255)
    total = np.int32(0)
    for y in range(63):
        for x in range(64):
            total += abs(np.int32((grid[y, x] - grid[y + 1, x]) * scale))
    for y in range(64):
        for x in range(63):
            total += abs(np.int32((grid[y, x] - grid[y, x + 1]) * scale))
    return 100 if total > 9_000 else int(total // 90)


@kernel(fastmath=True)
def transform(grid: Floats, dct: Floats, frequencies: Floats) -> None:
    """frequencies (16, 16) = dct (16, 64) @ grid (64, 64) @ dct.T (64, 16)."""
    lines = np.empty((4, 64), np.float32)
    for first in range(0, 16, 4):
        # Four rows of the product at a time, of four rows of the grid: sixteen products for each number that is read.
        lines[:] = np.float32(0)
        l0, l1, l2, l3 = lines[0], lines[1], lines[2], lines[3]
        d0, d1, d2, d3 = dct[first], dct[first + 1], dct[first + 2], dct[first + 3]
        for k in range(0, 64, 4):
            g0, g1, g2, g3 = grid[k], grid[k + 1], grid[k + 2], grid[k + 3]
            for x in range(64):
                l0[x] += (d0[k] * g0[x] + d0[k + 1] * g1[x]) + (d0[k + 2] * g2[x] + d0[k + 3] * g3[x])
                l1[x] += (d1[k] * g0[x] + d1[k + 1] * g1[x]) + (d1[k + 2] * g2[x] + d1[k + 3] * g3[x])
                l2[x] += (d2[k] * g0[x] + d2[k + 1] * g1[x]) + (d2[k + 2] * g2[x] + d2[k + 3] * g3[x])
                l3[x] += (d3[k] * g0[x] + d3[k + 1] * g1[x]) + (d3[k + 2] * g2[x] + d3[k + 3] * g3[x])
        for row in range(4):
            for column in range(16):
                total = np.float32(0)
                for k in range(64):
                    total += lines[row, k] * dct[column, k]
                frequencies[first + row, column] = total


@kernel()
def threshold(frequencies: Floats, out: Pixels) -> None:
    """The hash: bit k (0 is the last byte's lowest) tells whether frequency k lies above the median.

    Args:
        frequencies: (16, 16), contiguous.
        out: 32 bytes in the order in which hashes are written as hex.
    """
    # A float's bits, with the negative half turned round, sort as integers do: the 128th smallest is found by bisection
    # over its 32 bits, each step one vectorised count. The values need not be sorted or moved.
    keys = np.empty(256, np.int32)
    raw = frequencies.reshape(256).view(np.int32)
    for k in range(256):
        keys[k] = raw[k] ^ ((raw[k] >> np.int32(31)) & np.int32(0x7FFFFFFF))
    low, high = np.int64(-(2**31)), np.int64(2**31 - 1)
    while low < high:
        middle = (low + high) >> 1
        pivot = np.int32(middle)
        count = np.int32(0)
        for k in range(256):
            count += np.int32(keys[k] <= pivot)
        if count >= 128:
            high = middle
        else:
            low = middle + 1
    median = np.int32(low)
    for byte in range(32):
        value = np.uint8(0)
        for bit in range(8):
            value |= np.uint8(np.uint8(keys[8 * byte + bit] > median) << bit)
        out[31 - byte] = value


@kernel()
def hash_original(
    gray: Pixels,
    row_start: Integers,
    row_weights: Floats,
    column_start: Integers,
    column_weights: Floats,
    dct: Floats,
    out: Pixels,
) -> int:
    """One hash into ``out`` (32,); returns the quality. Arguments as in `sample`, m = 1."""
    grids = np.empty((1, 64, 64), np.float32)
    frequencies = np.empty((16, 16), np.float32)
    sample(gray, row_start, row_weights, column_start, column_weights, grids)
    transform(grids[0], dct, frequencies)
    threshold(frequencies, out)
    return quality(grids[0])


@kernel()
def hash_dihedral(
    gray: Pixels,
    row_start: Integers,
    row_weights: Floats,
    column_start: Integers,
    column_weights: Floats,
    dct: Floats,
    out: Pixels,
) -> int:
    """All eight hashes into ``out`` (8, 32), at [4 * rows mirrored + 2 * columns mirrored + transposed].

    A mirrored picture is sampled through mirrored bands, a transposed one has the transposed DCT: exact, where the
    usual change of the DCT's signs is not, as PDQ's samples do not lie symmetrically.

    Args:
        row_start: (2, 64); row_weights: (2, 64, height): plain and mirrored.
        column_start: (2, 64); column_weights: (2, 64, width): plain and mirrored.

    Returns the quality of the picture as it is.
    """
    grids = np.empty((2, 64, 64), np.float32)
    frequencies = np.empty((16, 16), np.float32)
    transposed = np.empty((16, 16), np.float32)
    found = 0
    for rows in range(2):
        sample(gray, row_start[rows], row_weights[rows], column_start, column_weights, grids)
        if rows == 0:
            found = quality(grids[0])
        for columns in range(2):
            transform(grids[columns], dct, frequencies)
            threshold(frequencies, out[4 * rows + 2 * columns])
            transposed[:] = frequencies.T
            threshold(transposed, out[4 * rows + 2 * columns + 1])
    return found
