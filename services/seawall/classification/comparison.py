"""Two versions of a model, from the signals: where both scored the same item, and how each scored its own share.

Reads signals only: no picture, no model. Memory does not grow with the log: what is kept of a pair is a cell of a grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal

STAGE: Final = "classification"
#: Cells along each side of a label's grid of pairs, and bins of each version's own scores.
GRID: Final = 20
#: Flips that are named by generation and item, at most, the widest first.
_NAMED: Final = 10


@dataclass(frozen=True)
class Flip:
    """An item on which the versions stand on different sides of the threshold."""

    generation_id: str
    item_id: str
    frame: int
    a: float
    b: float


@dataclass
class LabelComparison:
    """One label of two versions, A and B."""

    label: str
    threshold: float
    pairs: int = 0
    #: Pairs on the same side of the threshold.
    agreed: int = 0
    #: Below the threshold with A and not with B, and the other way round.
    raised: int = 0
    lowered: int = 0
    difference_sum: float = 0.0
    largest: float = 0.0
    #: Sums for Pearson's r.
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    #: Pairs by cell, (A, B).
    grid: Counter[tuple[int, int]] = field(default_factory=Counter)
    flips: list[Flip] = field(default_factory=list)
    #: What each version scored at all, decided on or on trial: items, and items at or above the threshold.
    scored: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)

    def one(self, version: str, score: float) -> None:
        """A score that one version gave, whatever the other did."""
        self.scored[version] += 1
        self.reached[version] += score >= self.threshold

    def pair(self, flip: Flip) -> None:
        """Scores that both gave for one item."""
        a, b = flip.a, flip.b
        self.pairs += 1
        self.grid[_cell(a), _cell(b)] += 1
        self.difference_sum += abs(a - b)
        self.largest = max(self.largest, abs(a - b))
        for place, value in enumerate((a, b, a * a, b * b, a * b)):
            self._sums[place] += value
        if (a >= self.threshold) == (b >= self.threshold):
            self.agreed += 1
            return
        self.raised += b >= self.threshold
        self.lowered += a >= self.threshold
        self.flips.append(flip)
        self.flips.sort(key=lambda one: abs(one.a - one.b), reverse=True)
        del self.flips[_NAMED:]

    @property
    def correlation(self) -> float | None:
        """Pearson's r over the pairs; None where one version always says the same."""
        n, (a, b, aa, bb, ab) = self.pairs, self._sums
        spread = (n * aa - a * a) * (n * bb - b * b)
        return None if n < 2 or spread <= 1e-18 else float((n * ab - a * b) / spread**0.5)


@dataclass
class Comparison:
    """What the signals say of two versions."""

    a: str
    b: str
    labels: dict[str, LabelComparison] = field(default_factory=dict)
    signals: int = 0
    #: Items that only A, only B, or both were asked about.
    items: Counter[str] = field(default_factory=Counter)
    #: Why a version on trial gave no score.
    unsaid: Counter[str] = field(default_factory=Counter)


def compare(
    signals: Iterable[signal_pb2.Signal], a: str, b: str, thresholds: Mapping[str, float], default: float = 0.5
) -> Comparison:
    """Compare versions ``a`` and ``b``, both "name@version".

    Args:
        signals: each at most once; those of other stages are passed over.
        thresholds: by label.
        default: for a label without one.

    Raises:
        Fatal: ``NOTHING_TO_COMPARE``, no signal names one of the two.
    """
    found = Comparison(a, b)
    for signal in signals:
        if signal.stage != STAGE:
            continue
        found.signals += 1
        for item in signal.items:
            if item.status == signal_pb2.ITEM_STATUS_OK:
                _item(found, signal.generation_id, item, thresholds, default)
    if missing := [name for name in (a, b) if not (found.items["both"] or found.items[name])]:
        raise Fatal(
            "NOTHING_TO_COMPARE",
            f"none of {found.signals} classification signals has scores of {' or '.join(missing)}: "
            "check the names (name@version, as `seawall models list` prints them), or let more traffic pass",
        )
    return found


def _item(
    found: Comparison, generation_id: str, item: signal_pb2.ItemResult, thresholds: Mapping[str, float], default: float
) -> None:
    said: dict[str, dict[str, signal_pb2.LabelScore]] = {found.a: {}, found.b: {}}
    for score in (*item.labels, *(score for shadow in item.shadows for score in shadow.labels)):
        if score.model in said:
            said[score.model][score.label] = score
    for shadow in item.shadows:
        if shadow.model in said and shadow.reason:
            found.unsaid[shadow.reason] += 1
    of_a, of_b = said[found.a], said[found.b]
    if not of_a and not of_b:
        return
    found.items["both" if of_a and of_b else found.a if of_a else found.b] += 1
    for label in {**of_a, **of_b}:
        into = found.labels.get(label)
        if into is None:
            into = found.labels[label] = LabelComparison(label, thresholds.get(label, default))
        for name, scores in ((found.a, of_a), (found.b, of_b)):
            if label in scores:
                into.one(name, scores[label].score)
        if label in of_a and label in of_b:
            frame = of_b[label].frame
            into.pair(Flip(generation_id, item.item_id, frame, of_a[label].score, of_b[label].score))


def _cell(score: float) -> int:
    return min(int(score * GRID), GRID - 1)


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as a document for scripts."""
    return {
        "a": found.a,
        "b": found.b,
        "signals": found.signals,
        "items": {"both": found.items["both"], "only_a": found.items[found.a], "only_b": found.items[found.b]},
        "without_a_score": dict(sorted(found.unsaid.items())),
        "labels": [
            {
                "label": one.label,
                "threshold": one.threshold,
                "pairs": one.pairs,
                "agreement": one.agreed / one.pairs if one.pairs else None,
                "flips": {"raised": one.raised, "lowered": one.lowered},
                "difference": {
                    "mean": one.difference_sum / one.pairs if one.pairs else None,
                    "largest": one.largest if one.pairs else None,
                },
                "correlation": one.correlation,
                "at_or_above_threshold": {
                    name: one.reached[model] / one.scored[model] if one.scored[model] else None
                    for name, model in (("a", found.a), ("b", found.b))
                },
                "scored": {"a": one.scored[found.a], "b": one.scored[found.b]},
                "widest_flips": [vars(flip) for flip in one.flips],
            }
            for one in sorted(found.labels.values(), key=lambda one: one.label)
        ],
    }
