"""Puts memory that a process holds for long into huge pages, where the system allows it.

An inference reads every weight: megabytes over thousands of small pages, more than a processor remembers the addresses
of, so that each is looked up again, on a virtual machine twice over. Linux gives huge pages to those who ask
(``transparent_hugepage`` is "madvise" by default), and the runtimes' allocators do not ask.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_HUGE: Final = 2 * 1024 * 1024
#: Linux 6.1: now, rather than when the system gets round to it.
_MADV_COLLAPSE: Final = 25
#: Of a mapping at least this share must be in use: a stack is large, and hardly any of it ever is.
_IN_USE: Final = 0.75
_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?$")
_PROC: Final = Path("/proc/self/smaps")
_SETTING: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use() -> None:
    """Put what this process has allocated so far into huge pages. Does nothing where it may not."""
    try:
        if "[never]" in _SETTING.read_text(encoding="ascii"):
            return
        mappings = list(_mappings(_PROC.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for begin, end in mappings:
        # What has been unmapped since, and kernels that do not know the second, answer with an error: nothing is lost.
        if madvise(begin, end - begin, mmap.MADV_HUGEPAGE) == 0:
            madvise(begin, end - begin, _MADV_COLLAPSE)


def _mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """The huge pages' worth of each anonymous mapping that is in use: begin and end."""
    begin = end = 0
    for line in smaps.splitlines():
        if found := _MAPPING.match(line):
            begin, end = (int(address, 16) for address in found.groups())
        elif "-" in line.partition(" ")[0]:
            begin = end = 0
        elif end and line.startswith("Anonymous:"):
            used = int(line.split()[1]) * 1024
            first, last = -(-begin // _HUGE) * _HUGE, end // _HUGE * _HUGE
            if first < last and used >= _IN_USE * (end - begin):
                yield first, last
