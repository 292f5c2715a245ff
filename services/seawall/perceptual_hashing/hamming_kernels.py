"""Compiled comparison of hashes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from seawall.perceptual_hashing.kernels import intrinsic, kernel, types


@intrinsic
def popcount(typing_context: Any, word: Any) -> Any:
    """Bits set in a uint64: one instruction, which LLVM also finds a vector form for. Numba has no word for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@kernel()
def scan(
    words: npt.NDArray[np.uint64], queries: npt.NDArray[np.uint64], radius: int, hits: npt.NDArray[np.int64]
) -> int:
    """Every pair within the radius.

    Args:
        words: (n, 4), queries: (m, 4).
        hits: out, (room, 3): query, row, distance; what does not fit is counted only.
    """
    found = 0
    limit = np.uint64(radius)
    for q in range(queries.shape[0]):
        q0, q1, q2, q3 = queries[q, 0], queries[q, 1], queries[q, 2], queries[q, 3]
        for row in range(words.shape[0]):
            distance = (
                popcount(words[row, 0] ^ q0)
                + popcount(words[row, 1] ^ q1)
                + popcount(words[row, 2] ^ q2)
                + popcount(words[row, 3] ^ q3)
            )
            if distance <= limit:
                if found < hits.shape[0]:
                    hits[found, 0] = q
                    hits[found, 1] = row
                    hits[found, 2] = np.int64(distance)
                found += 1
    return found
