"""Which entries a list that is read afresh has, over as many runs as the reading takes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


class Seen:
    """A file of entry ids, one a line. It is begun with a reading from the start, and forgotten when that is done.

    Args:
        begin: a reading from the start begins now.
    """

    def __init__(self, folder: Path, name: str, *, begin: bool) -> None:
        self._path = folder / f"{name}.seen"
        if begin:
            self.forget()
        #: False: the reading began before this file did, so what is not in it may yet have been seen.
        self.whole = begin or self._path.exists()

    def add(self, entry_ids: Iterable[str]) -> None:
        """Note ids, on disk when this returns: before the checkpoint that passes them is kept."""
        with self._path.open("a", encoding="ascii") as file:
            file.writelines(f"{entry_id}\n" for entry_id in entry_ids)
            file.flush()
            os.fsync(file.fileno())

    def load(self) -> frozenset[str]:
        """Every id that was noted."""
        if not self._path.exists():
            return frozenset()
        with self._path.open(encoding="ascii") as file:
            return frozenset(line.rstrip("\n") for line in file)

    def forget(self) -> None:
        """The reading is done, or begins anew."""
        self._path.unlink(missing_ok=True)
