from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from seawall.runtime import huge_pages

MAPS = """\
00400000-00a00000 r-xp 00000000 fe:00 77                         /usr/bin/program
Anonymous:             6144 kB
10000000-10900000 rw-p 00000000 00:00 0                          [heap]
Rss:                   9000 kB
Anonymous:             9000 kB
7f0000100000-7f0000700000 rw-p 00000000 00:00 0
Anonymous:             6000 kB
7f0001000000-7f0001800000 rw-p 00000000 00:00 0
Anonymous:               24 kB
7f0002000000-7f0002800000 rw-s 00000000 00:01 9                  /memfd:seawall-worker (deleted)
Anonymous:             8192 kB
7f0003000000-7f0003800000 rw-p 00000000 fe:00 99                 /usr/lib/library.so
Anonymous:             8192 kB
7f0004000000-7f0004100000 rw-p 00000000 00:00 0
Anonymous:             1024 kB
7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0                  [stack]
Anonymous:             8192 kB
"""


def test_whole_huge_pages_of_what_is_used_of_the_processs_own_memory() -> None:
    assert list(huge_pages._mappings(MAPS)) == [(0x10000000, 0x10800000), (0x7F0000200000, 0x7F0000600000)]


@pytest.mark.parametrize("setting", ["always madvise [never]", None])
def test_a_system_that_has_none_or_gives_none_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "enabled")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked the system all the same"))
    huge_pages.use()


def test_what_memory_holds_stays() -> None:
    numbers = np.arange(2 * 2**20)
    huge_pages.use()
    assert numbers[0] == 0 and (np.diff(numbers) == 1).all()
