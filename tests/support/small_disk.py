"""A folder that is soon full, for a process that does not know.

Where this user may mount, it is a tmpfs: writes fail with ENOSPC, as on a full disk. Elsewhere no file of the process
may grow beyond a limit: writes fail with EFBIG. Kafka treats both alike, as a log folder that has failed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: What the failed write is called, by the means.
SAYS = {"tmpfs": "No space left on device", "file size": "File too large"}


class SmallDisk:
    """A folder of so many bytes. ``means``: "tmpfs" or "file size"."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self._size = size
        folder.mkdir(parents=True)
        self.means = "tmpfs" if self._mount(f"size={size}") else "file size"

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    @property
    def launcher(self) -> Sequence[str]:
        """Arguments put before a program's own, so that the folder is small for it."""
        return () if self.means == "tmpfs" else ("prlimit", f"--fsize={self._size // 4}")

    def grow(self) -> None:
        """As if somebody had added a disk; of a limited process, the next one is not limited."""
        if self.means == "tmpfs" and not self._mount("remount,size=1g"):
            raise RuntimeError(f"{self.folder} could not be grown")

    def remove(self) -> None:
        """Give it back."""
        if self.means == "tmpfs":
            subprocess.run(["umount", str(self.folder)], capture_output=True, check=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """A small folder, given back when the context is left."""
    disk = SmallDisk(folder, size)
    try:
        yield disk
    finally:
        disk.remove()
