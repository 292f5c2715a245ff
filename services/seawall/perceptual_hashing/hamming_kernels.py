"""Compiled comparison of hashes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing.kernels import intrinsic, kernel, llvm, types

_I8, _I32, _I64 = llvm.IntType(8), llvm.IntType(32), llvm.IntType(64)
V8: Final = llvm.VectorType(_I64, 8)


@intrinsic
def popcount(typing_context: Any, word: Any) -> Any:
    """Bits set in a uint64: one instruction. Numba has no word for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Place of the lowest bit set in a uint64 that is not zero."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], llvm.Constant(llvm.IntType(1), 0))

    return types.uint64(types.uint64), generate


# Vectors of eight words are written as LLVM's own, which become what the processor has: one instruction a step with
# AVX-512, table look-ups with AVX2, `cnt` on Arm. Numba's own vectoriser does not find them.


def splat(builder: Any, word: Any) -> Any:
    """A vector of one word, eight times."""
    one = builder.insert_element(llvm.Constant(V8, llvm.Undefined), word, llvm.Constant(_I32, 0))
    lanes = llvm.Constant(llvm.VectorType(_I32, 8), [llvm.Constant(_I32, 0)] * 8)
    return builder.shuffle_vector(one, llvm.Constant(V8, llvm.Undefined), lanes)


def load8(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Eight words of an array, from ``offset`` on."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.load(builder.bitcast(builder.gep(data, [offset]), V8.as_pointer()), align=8)


def popcount8(builder: Any, vector: Any) -> Any:
    """Bits set in each word of a vector."""
    name = "llvm.ctpop.v8i64"
    known = builder.module.globals.get(name)
    return builder.call(known or llvm.Function(builder.module, llvm.FunctionType(V8, [V8]), name), [vector])


def lanes(builder: Any, truths: Any) -> Any:
    """A vector of truths as a uint64, one bit each."""
    return builder.zext(builder.bitcast(truths, _I8), _I64)


@intrinsic
def near_halves(typing_context: Any, planes: Any, stride: Any, at: Any, q0: Any, q1: Any, limit: Any) -> Any:
    """Which of the eight hashes from ``at`` on differ from (q0, q1) in at most ``limit`` bits of their first 128."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, length, offset, word0, word1, most = arguments
        kind = signature.args[0]
        low = builder.xor(load8(context, builder, kind, array, offset), splat(builder, word0))
        high = builder.xor(load8(context, builder, kind, array, builder.add(offset, length)), splat(builder, word1))
        bits = builder.add(popcount8(builder, low), popcount8(builder, high))
        return lanes(builder, builder.icmp_unsigned("<=", bits, splat(builder, most)))

    return types.uint64(planes, types.int64, types.int64, types.uint64, types.uint64, types.uint64), generate


@kernel()
def scan(
    planes: npt.NDArray[np.uint64],
    count: int,
    queries: npt.NDArray[np.uint64],
    radius: int,
    hits: npt.NDArray[np.int64],
) -> int:
    """Every pair within the radius.

    Args:
        planes: flat (4 * stride): the first words of all hashes, then the second ones, …; stride is a multiple of 8.
        count: how many hashes there are, at most stride.
        queries: (m, 4).
        hits: out, (room, 3): query, row, distance; what does not fit is counted only.
    """
    found = 0
    limit = np.uint64(radius)
    stride = planes.shape[0] // 4
    for q in range(queries.shape[0]):
        q0, q1, q2, q3 = queries[q, 0], queries[q, 1], queries[q, 2], queries[q, 3]
        for at in range(0, count, 8):
            near = near_halves(planes, stride, at, q0, q1, limit)
            while near:
                row = at + np.int64(trailing_zeros(near))
                near &= near - np.uint64(1)
                if row >= count:
                    break
                distance = (
                    popcount(planes[row] ^ q0)
                    + popcount(planes[stride + row] ^ q1)
                    + popcount(planes[2 * stride + row] ^ q2)
                    + popcount(planes[3 * stride + row] ^ q3)
                )
                if distance <= limit:
                    if found < hits.shape[0]:
                        hits[found, 0] = q
                        hits[found, 1] = row
                        hits[found, 2] = np.int64(distance)
                    found += 1
    return found
