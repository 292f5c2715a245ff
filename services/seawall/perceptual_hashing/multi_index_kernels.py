"""Compiled work of `multi_index`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing.hamming_kernels import V8, lanes, load8, popcount, popcount8, splat, trailing_zeros
from seawall.perceptual_hashing.kernels import intrinsic, kernel, llvm, types

BANDS: Final = 16
BUCKETS: Final = 1 << 16
#: Words behind the last entry of a band, so that the last vector load stays inside.
PADDING: Final = 8
#: Buckets looked into a band: the hash's own, and those one bit away.
PROBES: Final = 17
EXACT_PROBE: Final = 16

Words = npt.NDArray[np.uint64]

_I8, _I32, _I64 = llvm.IntType(8), llvm.IntType(32), llvm.IntType(64)
_LOW_HALF: Final = 0xFFFFFFFF
_HALF: Final = np.uint64(32)


@intrinsic
def near_entries(typing_context: Any, entries: Any, at: Any, pattern: Any, pair: Any, group: Any) -> Any:
    """Which of the eight entries from ``at`` on differ from ``pattern`` in at most ``pair`` of their lowest 16 bits and
    in at most ``group`` of their lowest 32: one bit of the result each.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset, wanted, most_of_pair, most_of_group = arguments
        differing = builder.xor(load8(context, builder, signature.args[0], array, offset), splat(builder, wanted))

        def within(mask: int, most: Any) -> Any:
            masked = builder.and_(differing, llvm.Constant(V8, [llvm.Constant(_I64, mask)] * 8))
            return builder.icmp_unsigned("<=", popcount8(builder, masked), splat(builder, most))

        return lanes(builder, builder.and_(within(0xFFFF, most_of_pair), within(_LOW_HALF, most_of_group)))

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


@kernel()
def band_key(words: Words, band: int) -> int:
    """The 16 bits of ``band`` of one hash, (4,)."""
    return int((words[band >> 2] >> np.uint64(16 * (band & 3))) & np.uint64(0xFFFF))


@kernel()
def companions(words: Words, band: int) -> np.uint64:
    """What an entry of ``band`` says of its hash, (4,): the pair's other band, and above it one of the other pair."""
    return np.uint64(band_key(words, band ^ 1) | band_key(words, band ^ 2) << 16)


@kernel()
def build_band(words: Words, band: int, starts: npt.NDArray[np.uint32], entries: Words) -> None:
    """Sort every hash into the buckets of one band.

    A counting sort in two passes, by the key's upper and then its lower byte: each pass writes to 256 places at a time,
    which the cache holds, where one pass would write to 65,536.

    Args:
        starts: out, (65537,); entries: out, (n + padding,).
    """
    count = words.shape[0]
    upper = np.zeros(257, np.int64)
    for row in range(count):
        upper[(band_key(words[row], band) >> 8) + 1] += 1
    for k in range(256):
        upper[k + 1] += upper[k]
    place = upper[:256].copy()
    rough = np.empty(count, np.uint64)
    lower_key = np.empty(count, np.uint8)
    for row in range(count):
        key = band_key(words[row], band)
        at = place[key >> 8]
        place[key >> 8] = at + 1
        lower_key[at] = np.uint8(key & 255)
        rough[at] = companions(words[row], band) | np.uint64(row) << _HALF
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
            entries[to] = rough[at]
    starts[BUCKETS] = np.uint32(count)
    # What a vector reads behind the last entry.
    entries[count:] = np.uint64(0)


@kernel()
def permute(words: Words, table: Words, out: Words) -> None:
    """Reorder the bits of every hash.

    Args:
        words, out: (n, 4).
        table: (32, 256, 4): where the bits of each value of each byte go.
    """
    for row in range(words.shape[0]):
        o0, o1, o2, o3 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
        for byte in range(32):
            value = np.int64((words[row, byte >> 3] >> np.uint64(8 * (byte & 7))) & np.uint64(0xFF))
            o0 |= table[byte, value, 0]
            o1 |= table[byte, value, 1]
            o2 |= table[byte, value, 2]
            o3 |= table[byte, value, 3]
        out[row, 0], out[row, 1], out[row, 2], out[row, 3] = o0, o1, o2, o3


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

    Memory is what it waits for: 272 buckets a query, anywhere. So the work goes through three stations, and each step
    asks for the bucket bounds of the band after next, for the buckets of the next band, and looks at those of this one.

    Args:
        words: (n, 4).
        starts: flat (16 * 65537): first entry of every bucket, and the end of the last, band after band.
        entries: flat (16 * (n + PADDING)), as `build_band` makes them, band after band.
        queries: (m, 4).
        hits: out, (room, 3): query, row, distance; what does not fit is counted only, and may be counted twice.
    """
    found = 0
    found_before = 0
    limit = np.uint64(radius)
    # What the pigeonhole leaves to a group of four bands, a pair and a band: 7, 3 and 1 for a radius of 31.
    of_group, of_pair, of_band = radius // 4, radius // 8, radius // 16
    # Probe 16 is the key itself, the others differ from it in one bit.
    first_probe = 0 if of_band else EXACT_PROBE
    stride = entries.shape[0] // BANDS
    steps = queries.shape[0] * BANDS
    # Of two bands at a time: where each bucket's entries begin and end.
    begins = np.empty(2 * PROBES, np.int64)
    ends = np.empty(2 * PROBES, np.int64)
    for step in range(-2, steps):
        if step + 2 < steps:
            band = (step + 2) & (BANDS - 1)
            key = band_key(queries[(step + 2) >> 4], band)
            for probe in range(first_probe, PROBES):
                prefetch(starts, band * (BUCKETS + 1) + (key ^ ((1 << probe) & 0xFFFF)))
        if -1 <= step < steps - 1:
            band = (step + 1) & (BANDS - 1)
            key = band_key(queries[(step + 1) >> 4], band)
            slot = PROBES * ((step + 1) & 1)
            for probe in range(first_probe, PROBES):
                at = band * (BUCKETS + 1) + (key ^ ((1 << probe) & 0xFFFF))
                begin = band * stride + np.int64(starts[at])
                end = band * stride + np.int64(starts[at + 1])
                begins[slot + probe] = begin
                ends[slot + probe] = end
                for ahead in range(begin, min(end, begin + 40), 8):
                    prefetch(entries, ahead)
                # The last line of a short bucket; of a long one, the hardware sees the stream by then.
                prefetch(entries, min(end, begin + 40))
        if step < 0:
            continue
        number, band, slot = step >> 4, step & (BANDS - 1), PROBES * (step & 1)
        if band == 0:
            found_before = found
        q0, q1, q2, q3 = queries[number, 0], queries[number, 1], queries[number, 2], queries[number, 3]
        pattern = companions(queries[number], band)
        for probe in range(first_probe, PROBES):
            spent = 0 if probe == EXACT_PROBE else 1
            pair, group = np.uint64(of_pair - spent), np.uint64(of_group - spent)
            end = ends[slot + probe]
            for at in range(begins[slot + probe], end, 8):
                near = near_entries(entries, at, pattern, pair, group)
                while near:
                    entry = at + np.int64(trailing_zeros(near))
                    near &= near - np.uint64(1)
                    if entry >= end:
                        break
                    row = np.int64(entries[entry] >> _HALF)
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
                        hits[found, 0] = number
                        hits[found, 1] = row
                        hits[found, 2] = np.int64(distance)
                    found += 1
    return found
