"""What an exchange sent and nobody could read: noted by digest, in one bounded file an exchange."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from seawall.core.errors import Fatal
from seawall.perceptual_hashing.exchanges.records import Refused

#: A file is turned over to ``<name>.1`` at this size: twice as much is the most an exchange takes.
MAX_BYTES: Final = 1 << 20


class SetAside:
    """The notes of one exchange: one JSON object a line, digests and places, never a hash.

    Args:
        folder: of all exchanges.
        name: of the exchange.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.jsonl"

    def note(self, refused: Iterable[Refused]) -> None:
        """Append. Raises Fatal("SET_ASIDE_UNWRITABLE"): what cannot be noted must not be passed over."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps({"at": now, **one._asdict()}, ensure_ascii=True) for one in refused]
        if not lines:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self.path.open("a", encoding="ascii") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if size > MAX_BYTES:
                self.path.replace(self.path.with_suffix(".jsonl.1"))
        except OSError as error:
            raise Fatal(
                "SET_ASIDE_UNWRITABLE", f"{self.path} cannot be written ({error.strerror}): see the setting set_aside"
            ) from None
