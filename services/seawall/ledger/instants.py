"""Instants as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from seawall.core.errors import Fatal

_NANOS: Final = 1_000_000_000
_SPAN: Final = re.compile(r"(\d{1,6})([smhd])\Z")
#: Beyond what 63 bits of nanoseconds hold, in the year 2262, nothing was decided.
_END: Final = 2**63
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def instant(given: str) -> int:
    """An ISO 8601 instant (UTC where it names no zone), or a span back from now ("15m", "2h", "3d"), as Unix
    nanoseconds.

    Raises Fatal("BAD_TIME"), whose detail does not repeat what was given.
    """
    try:
        if span := _SPAN.match(given):
            moment = datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        else:
            moment = datetime.fromisoformat(given)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        nanos = int(moment.timestamp()) * _NANOS + moment.microsecond * 1_000
    except (ValueError, OverflowError):
        nanos = -1
    if not 0 <= nanos < _END:
        raise Fatal("BAD_TIME", "write an instant, 2026-01-31T12:00:00+00:00, or a span back from now: 15m, 2h, 3d")
    return nanos
