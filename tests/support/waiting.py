"""Waiting for another thread or process, of which nothing else tells."""

from __future__ import annotations

import threading
from collections.abc import Callable


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; a test that waits for long has failed."""
    event = threading.Event()
    for _ in range(1_000):
        if condition():
            return
        event.wait(0.02)
    raise AssertionError("it never held")
