"""Drift: how far the distribution of a label's scores has moved from the one that its card was accepted with.

The measure is the population-stability index over the card's bins, sum of (share - reference) * ln(share / reference).
By the usual reading below 0.1 is stable, above 0.25 is another population: new traffic, or a model that has broken.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections.abc import Sequence

from seawall.runtime import metrics
from seawall.runtime.model_card import Reference

#: Takes the place of an empty bin's share, so that the index stays finite.
_FLOOR = 1e-4


def stability_index(reference: Sequence[float], counts: Sequence[int]) -> float:
    """The population-stability index; 0 for no difference.

    Args:
        reference: shares by bin, adding up to 1.
        counts: how many scores fell into each bin; at least one in all.
    """
    total = sum(counts)
    index = 0.0
    for expected, count in zip(reference, counts, strict=True):
        before, now = max(expected, _FLOOR), max(count / total, _FLOOR)
        index += (now - before) * math.log(now / before)
    return index


def reference_of(scores: Sequence[float], bins: int = 10) -> Reference:
    """A card's reference from the scores of a sample: bins that hold equal parts of it, fewer where scores repeat.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("no scores")
    ordered = sorted(scores)
    cuts = [ordered[len(ordered) * part // bins] for part in range(1, bins)]
    # An edge at the lowest score would leave nothing below it.
    edges = sorted({min(max(round(cut, 6), 0.0), 1.0) for cut in cuts if cut > ordered[0]}) or [0.5]
    counts = [0] * (len(edges) + 1)
    for score in ordered:
        counts[bisect_right(edges, score)] += 1
    return Reference(edges=tuple(edges), shares=tuple(round(count / len(ordered), 6) for count in counts))


class ScoreWatch:
    """Follows one label of one model. Safe for threads.

    Args:
        window: scores that one index is made of.
    """

    def __init__(self, model: str, label: str, reference: Reference | None, window: int) -> None:
        self._attributes = {metrics.MODEL: model, metrics.LABEL: label}
        self._reference = reference
        self._window = window
        self._counts = [0] * (len(reference.edges) + 1) if reference else []
        self._seen = 0
        self._lock = threading.Lock()
        #: The last window's index; NaN before the first is full.
        self.index = math.nan

    def __call__(self, score: float) -> None:
        """Note a score."""
        metrics.SCORES.record(score, self._attributes)
        if self._reference is None:
            return
        place = bisect_right(self._reference.edges, score)
        with self._lock:
            self._counts[place] += 1
            self._seen += 1
            if self._seen < self._window:
                return
            self.index = stability_index(self._reference.shares, self._counts)
            self._counts = [0] * len(self._counts)
            self._seen = 0
        metrics.SCORE_STABILITY.set(self.index, self._attributes)
