"""Instants as options give them."""

from __future__ import annotations

from seawall.core.errors import Fatal
from seawall.ledger.instants import instant


def instant_of(option: str, given: str) -> int:
    """Unix nanoseconds of what a person wrote. Raises Fatal("BAD_TIME") that names the option."""
    try:
        return instant(given)
    except Fatal as error:
        raise Fatal(error.reason, f"{option}: {error.detail}") from None
