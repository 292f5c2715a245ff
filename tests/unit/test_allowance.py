"""So many a second, and no more."""

from __future__ import annotations

import pytest

from seawall.runtime.allowance import Allowance


class Clock:
    """A monotonic clock that stands until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.mark.parametrize(("per_second", "at_once", "after_four_seconds"), [(3.0, 3, 3), (0.5, 1, 1), (0.0, 0, 0)])
def test_a_second_is_saved_up_and_no_more(
    clock: Clock, per_second: float, at_once: int, after_four_seconds: int
) -> None:
    allowed = Allowance(per_second)
    assert sum(allowed.take() for _ in range(10)) == at_once
    clock.now += 4
    assert sum(allowed.take() for _ in range(10)) == after_four_seconds
