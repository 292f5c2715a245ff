"""Named arrays in one file: written whole or not at all, checked when opened, memory-mapped.

    8 bytes   b"SEAWALL1"
    8 bytes   length of the header, little-endian
    header    JSON: {"meta": …, "arrays": {name: {"dtype", "shape", "offset", "crc32"}}}
    arrays    each on a page of its own

Processes that open one file share its memory.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MAGIC: Final = b"SEAWALL1"
_PAGE: Final = 4096
_CHUNK: Final = 1 << 22
_MAX_HEADER: Final = 1 << 24
#: MADV_POPULATE_READ, which Python has no name for.
_POPULATE_READ: Final = 22
_DTYPES: Final = frozenset({"<u8", "<u4", "<u2", "|u1", "<i8"})


class Damaged(Exception):
    """The file is not what was written. The message says what is wrong with it."""


class Opened(NamedTuple):
    """A file's content."""

    meta: Any
    #: Read-only views of the file.
    arrays: dict[str, Array]


def write(path: Path, arrays: Mapping[str, Array], meta: Any) -> None:
    """Write a file, over one that is there; after a crash there is the old one or the new one.

    Raises OSError.
    """
    described: dict[str, dict[str, object]] = {}
    places: dict[str, int] = {}
    flat = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    offset = 0
    with ThreadPoolExecutor(2) as pool:
        checksums = dict(zip(flat, pool.map(_crc32, flat.values()), strict=True))
    for name, array in flat.items():
        # Relative to the first page behind the header, whose length is not known yet.
        places[name] = offset
        described[name] = {
            "dtype": array.dtype.str,
            "shape": array.shape,
            "offset": offset,
            "crc32": checksums[name],
        }
        offset += -(-array.nbytes // _PAGE) * _PAGE
    header = json.dumps({"meta": meta, "arrays": described}).encode()
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
        begin = _first_page(len(header))
        for name, array in flat.items():
            file.seek(begin + places[name])
            file.write(_bytes(array))
        file.truncate(begin + offset)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def open_(path: Path) -> Opened:
    """Map a file, after reading all of it once to check it.

    Raises:
        Damaged: it is cut short, or a byte of it is not what was written. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, begin = _header(file, size)
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = np.frombuffer(mapping, np.uint8)
        arrays: dict[str, Array] = {}
        try:
            for name, said in header["arrays"].items():
                if said["dtype"] not in _DTYPES:
                    raise Damaged(f"array {name} has a type that no version writes")
                dtype = np.dtype(said["dtype"])
                shape = tuple(int(length) for length in said["shape"])
                at, length = begin + int(said["offset"]), dtype.itemsize * int(np.prod(shape, dtype=np.int64))
                if min(shape, default=0) < 0 or at < begin or at + length > size:
                    raise Damaged(f"array {name} ends behind the file: it was cut short")
                arrays[name] = mapped[at : at + length].view(dtype).reshape(shape)
            wanted = {name: int(said["crc32"]) for name, said in header["arrays"].items()}
            meta = header["meta"]
        except (KeyError, TypeError, ValueError):
            raise Damaged("its header is not one that was written") from None
        places = [(begin + int(header["arrays"][name]["offset"]), array.nbytes) for name, array in arrays.items()]
    # Through reads, which ask the disk for more at a time than page faults do.
    with ThreadPoolExecutor(2) as pool:
        for (name, crc), found in zip(
            wanted.items(), pool.map(lambda place: _file_crc32(path, *place), places), strict=True
        ):
            if crc != found:
                raise Damaged(f"array {name} is not what was written")
    # Now, at once, rather than page by page under the first searches. Kernels before 5.14 do not know how.
    with contextlib.suppress(OSError):
        mapping.madvise(_POPULATE_READ)
    return Opened(meta, arrays)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header(file: BinaryIO, size: int) -> tuple[Any, int]:
    start = file.read(len(_MAGIC) + 8)
    if len(start) < len(_MAGIC) + 8 or not start.startswith(_MAGIC):
        raise Damaged("it does not begin as such a file does")
    length = int.from_bytes(start[len(_MAGIC) :], "little")
    if length > min(size, _MAX_HEADER):
        raise Damaged("its header ends behind the file: it was cut short")
    try:
        header = json.loads(file.read(length))
        if not isinstance(header["arrays"], dict):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise Damaged("its header is not one that was written") from None
    return header, _first_page(length)


def _first_page(header: int) -> int:
    return -(-(len(_MAGIC) + 8 + header) // _PAGE) * _PAGE


def _crc32(array: Array) -> int:
    return zlib.crc32(_bytes(array))


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _file_crc32(path: Path, at: int, length: int) -> int:
    crc = 0
    buffer = memoryview(bytearray(min(_CHUNK, max(length, 1))))
    with path.open("rb", buffering=0) as file:
        file.seek(at)
        while length:
            read = file.readinto(buffer[: min(length, _CHUNK)])
            if not read:
                raise Damaged("it was cut short")
            crc = zlib.crc32(buffer[:read], crc)
            length -= read
    return crc
