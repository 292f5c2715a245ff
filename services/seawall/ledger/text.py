"""Text as a column takes it."""

from __future__ import annotations

from typing import Final

_MAX_TEXT: Final = 2_000


def fitting(value: str, most: int = _MAX_TEXT) -> str:
    """Without NUL, which PostgreSQL does not have, and no longer than ``most``."""
    return value.replace("\x00", "\N{REPLACEMENT CHARACTER}")[:most]
