"""A bank's entries as CSV: ``entry_id,hash_type,value``.

An entry is one listed picture or video; it may have one hash of each type. Values are hex: 64 digits for pdq and
sha256, 40 for sha1, 32 for md5, 64 a frame for vpdq, and what a plug-in's hash has. Read into compact arrays, so that a
long list costs its hashes and little more.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from seawall.core.errors import Fatal
from seawall.perceptual_hashing.hash_types import DIGEST_BYTES, HASH_BYTES, VPDQ, fault

HEADER: Final = ("entry_id", "hash_type", "value")
#: What else a hash may be of.
CARD_SAYS: Final = "of a plug-in that the bank's card names in signal_types"
_ENTRY_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


class Entry(NamedTuple):
    """One hash of one listed picture."""

    entry_id: str
    #: See `hash_types`.
    hash_type: str
    value: bytes


class Names:
    """Many short strings in two arrays."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode() for name in names]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._joined = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._joined[self._ends[index] : self._ends[index + 1]].decode()


@dataclass(frozen=True, eq=False)
class Entries:
    """All entries of a bank."""

    #: uint8 (n, 32), and the entry of each row.
    pdq: npt.NDArray[np.uint8]
    pdq_ids: Names
    #: By type ("sha256", "md5"): digest to the entries that have it.
    digests: dict[str, dict[bytes, tuple[str, ...]]]
    #: Videos, and hashes of plug-ins.
    others: Sequence[Entry] = ()

    def __len__(self) -> int:
        """How many hashes there are, of all types."""
        digests = sum(len(ids) for table in self.digests.values() for ids in table.values())
        return len(self.pdq) + digests + len(self.others)


def read(files: Iterable[tuple[str, bytes]], plug_ins: Collection[str] = ()) -> Entries:
    """Read files of entries.

    Args:
        files: (name for errors, content).
        plug_ins: those whose hashes the bank says it lists.

    Raises:
        Fatal: ``BAD_BANK``, naming the file, the line and the mend.
    """
    hashes = bytearray()
    ids: list[str] = []
    digests: dict[str, dict[bytes, tuple[str, ...]]] = {kind: {} for kind in DIGEST_BYTES}
    others: list[Entry] = []
    seen: dict[str, set[str]] = {}
    for where, content in files:
        for entry in _rows(where, content, seen, plug_ins):
            if entry.hash_type == "pdq":
                hashes += entry.value
                ids.append(entry.entry_id)
            elif entry.hash_type in digests:
                table = digests[entry.hash_type]
                table[entry.value] = (*table.get(entry.value, ()), entry.entry_id)
            else:
                others.append(entry)
    return Entries(np.frombuffer(bytes(hashes), np.uint8).reshape(-1, 32), Names(ids), digests, others)


def rows(where: str, content: bytes, plug_ins: Collection[str] = ()) -> Iterable[Entry]:
    """The rows of one file. Raises Fatal("BAD_BANK"), naming the line and the mend, when it comes to a bad one."""
    return _rows(where, content, {}, plug_ins)


def to_csv(entries: Iterable[Entry], plug_ins: Collection[str] = ()) -> bytes:
    """The file of ``entries``. Raises Fatal("BAD_BANK") for one that `read` would refuse."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((entry.entry_id, entry.hash_type, entry.value.hex()) for entry in entries)
    content = out.getvalue().encode()
    read([("entries", content)], plug_ins)
    return content


def _rows(where: str, content: bytes, seen: dict[str, set[str]], plug_ins: Collection[str]) -> Iterable[Entry]:
    known = (*HASH_BYTES, VPDQ, *plug_ins)
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Fatal("BAD_BANK", f"{where} line {line}: only ASCII is allowed in entries") from None
    lines = io.StringIO(text)
    if tuple(lines.readline().rstrip("\r\n").split(",")) != HEADER:
        raise Fatal("BAD_BANK", f"{where} line 1: the first line must be {','.join(HEADER)}")
    for number, row in enumerate(lines, start=2):
        parts = row.rstrip("\r\n").split(",")
        if len(parts) != len(HEADER):
            raise _bad(where, number, f"needs {len(HEADER)} fields, has {len(parts)}: no quotes, no blank lines")
        entry_id, kind, value = parts
        if not _ENTRY_ID.match(entry_id):
            raise _bad(where, number, "entry_id must match [A-Za-z0-9._:-]{1,128}")
        if kind not in known:
            raise _bad(where, number, f"hash_type must be one of {', '.join(known)}, or {CARD_SAYS}")
        length = HASH_BYTES.get(kind)
        if length is not None and len(value) != 2 * length:
            raise _bad(where, number, f"a {kind} value has {2 * length} hex digits, this one {len(value)}")
        try:
            raw = bytes.fromhex(value)
        except ValueError:
            raise _bad(where, number, "value must be hex digits only") from None
        if 2 * len(raw) != len(value):
            raise _bad(where, number, "value must be hex digits only")
        if wrong := fault(kind, len(raw)):
            raise _bad(where, number, wrong)
        of_kind = seen.setdefault(kind, set())
        if entry_id in of_kind:
            raise _bad(where, number, f"entry {entry_id} has a second {kind} hash: give each picture an id of its own")
        of_kind.add(entry_id)
        yield Entry(entry_id, kind, raw)


def _bad(where: str, line: int, what: str) -> Fatal:
    return Fatal("BAD_BANK", f"{where} line {line}: {what}")
