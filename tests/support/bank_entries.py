"""Made-up hashes and changes for tests of banks."""

from __future__ import annotations

from typing import Any

import numpy as np

from seawall.api.bank.v1 import bank_pb2
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.hamming import Words


def random_words(count: int, seed: int = 0) -> Words:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 4), dtype=np.uint64)


def flipped(hash_: Words, bits: list[int]) -> Words:
    out = hash_.copy()
    for bit in bits:
        out[bit >> 6] ^= np.uint64(1) << np.uint64(bit & 63)
    return out


def card(
    name: str = "own", *, negative: bool = False, radius: int = 31, pipeline: str = "512", **more: Any
) -> bank_pb2.BankChange:
    bank = bank_pb2.Bank(
        name=name,
        state=bank_pb2.BANK_STATE_ACTIVE,
        kind=bank_pb2.BANK_KIND_NEGATIVE if negative else bank_pb2.BANK_KIND_POSITIVE,
        source="benign stand-ins",
        version="1",
        category=f"category of {name}",
        pipeline=pipeline,
        radius=radius,
        action="report",
        licence="CC0-1.0",
        **more,
    )
    return bank_pb2.BankChange(bank=bank)


def entry(
    entry_id: str,
    word: Words | None = None,
    *,
    bank: str = "own",
    state: bank_pb2.EntryState.ValueType = bank_pb2.ENTRY_STATE_LISTED,
    expires_unix_nano: int = 0,
    category: str = "",
    **digests: bytes,
) -> bank_pb2.BankChange:
    hashes = dict(digests)
    if word is not None:
        hashes["pdq"] = word.tobytes()
    return bank_changes.listed(
        bank, entry_id, hashes, origin="test", state=state, expires_unix_nano=expires_unix_nano, category=category
    )


def removed(entry_id: str, bank: str = "own") -> bank_pb2.BankChange:
    return bank_changes.listed(bank, entry_id, {}, origin="test", state=bank_pb2.ENTRY_STATE_REMOVED)
