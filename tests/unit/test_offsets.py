"""The contiguous watermark."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from seawall.relay.offsets import OffsetTracker


def test_nothing_done_means_nothing_to_commit() -> None:
    tracker = OffsetTracker()
    tracker.read(4)
    assert tracker.watermark is None
    assert tracker.in_progress == 1


def test_the_watermark_waits_for_the_slowest() -> None:
    # The case in which Faust 0.15.3 commits 10: acked 4, 5, 7, 8, 9 with 6 held.
    tracker = OffsetTracker()
    for offset in range(4, 10):
        tracker.read(offset)
    for offset in (4, 5, 7, 8, 9):
        tracker.done(offset)
    assert tracker.watermark == 6
    tracker.done(6)
    assert tracker.watermark == 10


@given(st.data())
def test_any_order_never_passes_what_is_not_done(data: st.DataObject) -> None:
    offsets = sorted(data.draw(st.sets(st.integers(0, 60), min_size=1, max_size=30)))  # gaps: the broker's own markers
    order = data.draw(st.permutations(offsets))
    tracker = OffsetTracker()
    for offset in offsets:
        tracker.read(offset)
    done: set[int] = set()
    for offset in order:
        tracker.done(offset)
        done.add(offset)
        held = [o for o in offsets if o not in done]
        if held:
            below = [o for o in offsets if o < held[0]]
            assert tracker.watermark == (below[-1] + 1 if below else None)
    assert tracker.watermark == offsets[-1] + 1
    assert tracker.in_progress == 0
