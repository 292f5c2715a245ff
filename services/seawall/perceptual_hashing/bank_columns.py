"""Listed entries as columns: what a segment of the index is made of.

Entries are sorted by a 32-bit key of their name, so that one of ten million is found by a binary search; hashes point
back at them by number.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.api.bank.v1 import bank_pb2
from seawall.perceptual_hashing.hamming import to_words
from seawall.perceptual_hashing.hash_types import indexed, is_pdq
from seawall.perceptual_hashing.kernels import kernel
from seawall.perceptual_hashing.multi_index import permuted

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.uint32]
#: The key of a bank's PDQ hashes in `Columns.hashes` is f"pdq.{pipeline}".
PIPELINES: Final = ("full", "512")


class Hashes(NamedTuple):
    """Hashes of one type."""

    #: uint32 (m,): whose they are.
    entry: Numbers
    #: uint8 (m, length); PDQ hashes with their bits in `multi_index.permuted` order.
    values: Bytes


class Row(NamedTuple):
    """One entry, as it goes in."""

    bank: str
    entry_id: str
    expires_unix_nano: int
    quarantined: bool
    category: str
    #: By the names of `Columns.hashes`; of a listed video one a frame.
    hashes: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, eq=False)
class Columns:
    """``n`` entries."""

    #: Names of banks and categories that the columns below number.
    banks: tuple[str, ...]
    categories: tuple[str, ...]
    #: uint32 (n,), ascending: `entry_key`.
    key: Numbers
    #: uint16 (n,): number of the bank.
    bank: npt.NDArray[np.uint16]
    #: uint32 (n + 1,) and the names, one after the other.
    name_ends: Numbers
    names: Bytes
    #: int64 (n,), Unix nanoseconds; empty where no entry ever expires.
    expires: npt.NDArray[np.int64]
    #: uint8 (n,); empty where none is.
    quarantined: Bytes
    #: uint16 (n,), 0 for the bank's own; empty where no entry has one of its own.
    category: npt.NDArray[np.uint16]
    #: By kind, see `hash_types.indexed`; rows in order of their entries.
    hashes: dict[str, Hashes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.key)

    def name(self, index: int) -> str:
        """The entry_id of entry ``index``."""
        return self.names[int(self.name_ends[index]) : int(self.name_ends[index + 1])].tobytes().decode()

    def find(self, bank: str, entry_id: str) -> int:
        """The number of an entry; -1: it is not here."""
        wanted = entry_key(bank, entry_id)
        at = int(np.searchsorted(self.key, np.uint32(wanted)))
        while at < len(self.key) and int(self.key[at]) == wanted:
            if self.banks[int(self.bank[at])] == bank and self.name(at) == entry_id:
                return at
            at += 1
        return -1


def entry_key(bank: str, entry_id: str) -> int:
    """What entries are sorted by. Two may share it."""
    return zlib.crc32(f"{bank}/{entry_id}".encode())


def row_of(entry: bank_pb2.BankEntry, pipeline: str) -> Row:
    """What of an entry is matched against, by a bank of this pipeline."""
    return Row(
        entry.bank,
        entry.entry_id,
        entry.expires_unix_nano,
        entry.state == bank_pb2.ENTRY_STATE_QUARANTINED,
        entry.category,
        [found for one in entry.hashes for found in indexed(one.hash_type, one.value, pipeline)],
    )


def from_rows(rows: Iterable[Row]) -> Columns:
    """Columns of entries, each of which is given once."""
    ordered = sorted((entry_key(row.bank, row.entry_id), number, row) for number, row in enumerate(rows))
    banks: dict[str, int] = {}
    categories: dict[str, int] = {"": 0}
    names = [row.entry_id.encode() for _, _, row in ordered]
    numbers: dict[str, list[int]] = {}
    values: dict[str, bytearray] = {}
    for number, (_, _, row) in enumerate(ordered):
        for kind, value in row.hashes:
            numbers.setdefault(kind, []).append(number)
            values.setdefault(kind, bytearray()).extend(value)
    return Columns(
        bank=np.array([banks.setdefault(row.bank, len(banks)) for _, _, row in ordered], np.uint16),
        category=_unless_zero(
            np.array([categories.setdefault(row.category, len(categories)) for _, _, row in ordered], np.uint16)
        ),
        banks=tuple(banks),
        categories=tuple(categories),
        key=np.array([key for key, _, _ in ordered], np.uint32),
        name_ends=np.cumsum([0, *map(len, names)], dtype=np.int64).astype(np.uint32),
        names=np.frombuffer(b"".join(names), np.uint8),
        expires=_unless_zero(np.array([row.expires_unix_nano for _, _, row in ordered], np.int64)),
        quarantined=_unless_zero(np.array([row.quarantined for _, _, row in ordered], np.uint8)),
        hashes={
            kind: Hashes(
                np.array(numbers[kind], np.uint32),
                _indexed(kind, np.frombuffer(bytes(values[kind]), np.uint8).reshape(len(numbers[kind]), -1)),
            )
            for kind in numbers
        },
    )


def _indexed(kind: str, values: Bytes) -> Bytes:
    """PDQ hashes are kept with their bits in the index's order, and so once only."""
    return permuted(to_words(values)).view(np.uint8) if is_pdq(kind) else values


def merge(parts: Sequence[tuple[Columns, npt.NDArray[np.bool_] | None]]) -> Columns:
    """Columns of every entry that is alive in its part.

    Args:
        parts: columns, and which entries of them are alive; None: all.
    """
    banks: dict[str, int] = {}
    categories: dict[str, int] = {"": 0}
    kept = [np.flatnonzero(alive) if alive is not None else np.arange(len(part)) for part, alive in parts]
    columns = [part for part, _ in parts]
    key = _joined([part.key[keep] for part, keep in zip(columns, kept, strict=True)], np.uint32)
    order = np.argsort(key, kind="stable")
    place = np.empty(len(order), np.uint32)
    place[order] = np.arange(len(order), dtype=np.uint32)

    def numbered(of: Sequence[npt.NDArray[Any]], names: Sequence[tuple[str, ...]], known: dict[str, int]) -> Any:
        out = []
        for numbers, mine, keep in zip(of, names, kept, strict=True):
            table = np.array([known.setdefault(name, len(known)) for name in mine], np.uint16)
            out.append(table[numbers[keep]] if len(numbers) else np.zeros(len(keep), np.uint16))
        return _joined(out, np.uint16)[order]

    def optional(of: Sequence[npt.NDArray[Any]], dtype: Any) -> Any:
        filled = [a[keep] if len(a) else np.zeros(len(keep), dtype) for a, keep in zip(of, kept, strict=True)]
        return _unless_zero(_joined(filled, dtype)[order])

    ends, names = _merge_names(columns, kept, order)
    bank = numbered([part.bank for part in columns], [part.banks for part in columns], banks)
    category = numbered([part.category for part in columns], [part.categories for part in columns], categories)
    return Columns(
        banks=tuple(banks),
        categories=tuple(categories),
        key=key[order],
        bank=bank,
        name_ends=ends,
        names=names,
        expires=optional([part.expires for part in columns], np.int64),
        quarantined=optional([part.quarantined for part in columns], np.uint8),
        category=_unless_zero(category),
        hashes=_merge_hashes(columns, kept, place),
    )


def _merge_hashes(
    columns: Sequence[Columns], kept: Sequence[npt.NDArray[np.int64]], place: Numbers
) -> dict[str, Hashes]:
    kinds = sorted({kind for part in columns for kind in part.hashes})
    entries: dict[str, list[Numbers]] = {kind: [] for kind in kinds}
    values: dict[str, list[Bytes]] = {kind: [] for kind in kinds}
    before = 0
    for part, keep in zip(columns, kept, strict=True):
        # Where each entry of the part is now; those that are not kept are nowhere.
        now = np.full(len(part), -1, np.int64)
        now[keep] = place[before : before + len(keep)]
        before += len(keep)
        for kind, hashes in part.hashes.items():
            to = now[hashes.entry]
            alive = to >= 0
            entries[kind].append(to[alive].astype(np.uint32))
            values[kind].append(hashes.values[alive])
    out = {}
    for kind in kinds:
        entry = np.concatenate(entries[kind])
        order = np.argsort(entry, kind="stable")
        out[kind] = Hashes(entry[order], np.concatenate(values[kind])[order])
    return out


def _merge_names(
    columns: Sequence[Columns], kept: Sequence[npt.NDArray[np.int64]], order: npt.NDArray[np.int64]
) -> tuple[Numbers, Bytes]:
    ends64 = [part.name_ends.astype(np.int64) for part in columns]
    shifts = np.cumsum([0, *(len(part.names) for part in columns)])
    begins = _joined([e[:-1][k] + s for e, k, s in zip(ends64, kept, shifts, strict=False)], np.int64)[order]
    stops = _joined([e[1:][k] + s for e, k, s in zip(ends64, kept, shifts, strict=False)], np.int64)[order]
    ends = np.zeros(len(order) + 1, np.int64)
    np.cumsum(stops - begins, out=ends[1:])
    if ends[-1] >= 2**32:
        raise ValueError("the names of one index must stay below 4 GiB: split the bank")
    out = np.empty(int(ends[-1]), np.uint8)
    gather(_joined([part.names for part in columns], np.uint8), begins, ends, out)
    return ends.astype(np.uint32), out


@kernel()
def gather(source: Bytes, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], out: Bytes) -> None:
    """Copy strings that begin anywhere in ``source`` to where they end one after the other in ``out``."""
    for k in range(begins.shape[0]):
        shift = begins[k] - ends[k]
        for at in range(ends[k], ends[k + 1]):
            out[at] = source[at + shift]


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> Any:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


def _unless_zero(array: Any) -> Any:
    return array if array.any() else array[:0]
