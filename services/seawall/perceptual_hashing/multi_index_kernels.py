"""Compiled work of `multi_index`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing.hamming_kernels import popcount
from seawall.perceptual_hashing.kernels import intrinsic, kernel, llvm, types

BANDS: Final = 16
BUCKETS: Final = 1 << 16
#: Words behind the last entry of a band, so that the last vector load stays inside.
PADDING: Final = 8

Words = npt.NDArray[np.uint64]

_I8, _I32, _I64 = llvm.IntType(8), llvm.IntType(32), llvm.IntType(64)
_V8 = llvm.VectorType(_I64, 8)
_LOW_HALF: Final = 0xFFFFFFFF
_HALF: Final = np.uint64(32)


@intrinsic
def near_sketches(typing_context: Any, entries: Any, at: Any, first: Any, second: Any, limit: Any) -> Any:
    """Which of the four entries at word ``at`` have a sketch within ``limit`` bits of (first, low half of second): bits
    0, 2, 4, 6 of the result.

    One vector of eight words, written as LLVM's own, which becomes what the processor has: one instruction a step with
    AVX-512, table look-ups with AVX2, ``cnt`` on Arm. Numba's own vectoriser does not see through the pairs.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset, word0, word1, most = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        pointer = builder.bitcast(builder.gep(data, [offset]), _V8.as_pointer())
        pattern = llvm.Constant(_V8, llvm.Undefined)
        limits = llvm.Constant(_V8, llvm.Undefined)
        for lane in range(8):
            pattern = builder.insert_element(pattern, word1 if lane & 1 else word0, llvm.Constant(_I32, lane))
            limits = builder.insert_element(limits, most, llvm.Constant(_I32, lane))
        # The upper half of every second word is the row, not the hash.
        mask = llvm.Constant(_V8, [llvm.Constant(_I64, _LOW_HALF if lane & 1 else 2**64 - 1) for lane in range(8)])
        differing = builder.and_(builder.xor(builder.load(pointer, align=8), pattern), mask)
        name = "llvm.ctpop.v8i64"
        ctpop = builder.module.globals.get(name) or llvm.Function(builder.module, llvm.FunctionType(_V8, [_V8]), name)
        counts = builder.call(ctpop, [differing])
        swap = llvm.Constant(llvm.VectorType(_I32, 8), [llvm.Constant(_I32, lane ^ 1) for lane in range(8)])
        sums = builder.add(counts, builder.shuffle_vector(counts, llvm.Constant(_V8, llvm.Undefined), swap))
        near = builder.bitcast(builder.icmp_unsigned("<=", sums, limits), _I8)
        return builder.and_(builder.zext(near, _I64), llvm.Constant(_I64, 0x55))

    return types.uint64(entries, types.int64, types.uint64, types.uint64, types.uint64), generate


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index] before it is needed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), _I8.as_pointer())
        name = "llvm.prefetch.p0"
        shape = llvm.FunctionType(llvm.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        fetch = builder.module.globals.get(name) or llvm.Function(builder.module, shape, name)
        # For reading, keep in every cache, data.
        builder.call(fetch, [pointer, *(llvm.Constant(_I32, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Place of the lowest bit set in a uint64 that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], llvm.Constant(llvm.IntType(1), 0))

    return types.uint64(types.uint64), generate


@kernel()
def band_key(words: Words, band: int) -> int:
    """The 16 bits of ``band`` of one hash, (4,)."""
    return int((words[band >> 2] >> np.uint64(16 * (band & 3))) & np.uint64(0xFFFF))


@kernel()
def build_band(words: Words, band: int, starts: npt.NDArray[np.uint32], entries: Words) -> None:
    """Sort every hash into the buckets of one band.

    A counting sort in two passes, by the key's upper and then its lower byte: each pass writes to 256 places at a time,
    which the cache holds, where one pass would write to 65,536.

    Args:
        starts: out, (65537,); entries: out, (2 n + padding,).
    """
    count = words.shape[0]
    # The words the band is not in: what its sketch is taken from.
    first, second = (band // 4 + 2) & 3, (band // 4 + 3) & 3
    upper = np.zeros(257, np.int64)
    for row in range(count):
        upper[(band_key(words[row], band) >> 8) + 1] += 1
    for k in range(256):
        upper[k + 1] += upper[k]
    place = upper[:256].copy()
    rough = np.empty(2 * count, np.uint64)
    lower_key = np.empty(count, np.uint8)
    for row in range(count):
        key = band_key(words[row], band)
        at = place[key >> 8]
        place[key >> 8] = at + 1
        lower_key[at] = np.uint8(key & 255)
        rough[2 * at] = words[row, first]
        rough[2 * at + 1] = (words[row, second] & np.uint64(_LOW_HALF)) | (np.uint64(row) << _HALF)
    lower = np.zeros(256, np.int64)
    for part in range(256):
        begin, end = upper[part], upper[part + 1]
        lower[:] = 0
        for at in range(begin, end):
            lower[lower_key[at]] += 1
        total = begin
        for k in range(256):
            size = lower[k]
            lower[k] = total
            starts[256 * part + k] = np.uint32(total)
            total += size
        for at in range(begin, end):
            to = lower[lower_key[at]]
            lower[lower_key[at]] = to + 1
            entries[2 * to] = rough[2 * at]
            entries[2 * to + 1] = rough[2 * at + 1]
    starts[BUCKETS] = np.uint32(count)


@kernel()
def search(
    words: Words,
    starts: npt.NDArray[np.uint32],
    entries: Words,
    queries: Words,
    radius: int,
    hits: npt.NDArray[np.int64],
) -> int:
    """Every pair within the radius (at most 31), once.

    Args:
        words: (n, 4); starts: (16, 65537); entries: (16, 2 n + padding), as `build_band` makes them.
        queries: (m, 4).
        hits: out, (room, 3): query, row, distance; what does not fit is counted only, and may be counted twice.
    """
    found = 0
    limit = np.uint64(radius)
    begins = np.empty(17, np.int64)
    ends = np.empty(17, np.int64)
    for q in range(queries.shape[0]):
        query = queries[q]
        q0, q1, q2, q3 = query[0], query[1], query[2], query[3]
        found_before = found
        for band in range(BANDS):
            key = band_key(query, band)
            start, entry = starts[band], entries[band]
            # Three steps apart, so that memory is asked for before it is looked at: where the buckets lie, then what is
            # in them. Probe 16 is the key itself, the others differ from it in one bit.
            for probe in range(17):
                prefetch(start, key ^ ((1 << probe) & 0xFFFF))
            for probe in range(17):
                bucket = key ^ ((1 << probe) & 0xFFFF)
                begins[probe] = 2 * np.int64(start[bucket])
                ends[probe] = 2 * np.int64(start[bucket + 1])
                for ahead in range(begins[probe], min(ends[probe], begins[probe] + 32), 8):
                    prefetch(entry, ahead)
            first = query[(band // 4 + 2) & 3]
            second = query[(band // 4 + 3) & 3] & np.uint64(_LOW_HALF)
            for probe in range(17):
                end = ends[probe]
                for at in range(begins[probe], end, 8):
                    near = near_sketches(entry, at, first, second, limit)
                    while near:
                        lane = np.int64(trailing_zeros(near))
                        near &= near - np.uint64(1)
                        if at + lane >= end:
                            break
                        row = np.int64(entry[at + lane + 1] >> _HALF)
                        distance = (
                            popcount(words[row, 0] ^ q0)
                            + popcount(words[row, 1] ^ q1)
                            + popcount(words[row, 2] ^ q2)
                            + popcount(words[row, 3] ^ q3)
                        )
                        if distance > limit:
                            continue
                        # A close pair meets in several bands.
                        again = False
                        for k in range(found_before, min(found, hits.shape[0])):
                            if hits[k, 1] == row:
                                again = True
                                break
                        if again:
                            continue
                        if found < hits.shape[0]:
                            hits[found, 0] = q
                            hits[found, 1] = row
                            hits[found, 2] = np.int64(distance)
                        found += 1
    return found
