"""`Allowance`: so many a second, for what costs too much to be done each time."""

from __future__ import annotations

import time


class Allowance:
    """So many a second, on average; what a quiet second left over may be taken in the next.

    Args:
        per_second: below 1, one in so many seconds; 0: none.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(per_second, 1.0) if per_second else 0.0
        self._left = self._most
        self._looked = time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed now."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._looked) * self._per_second)
        self._looked = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
