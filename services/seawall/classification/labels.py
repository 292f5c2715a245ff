"""From a model's probabilities to calibrated label scores: what the aggregator sees is labels, not models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from seawall.api.signal.v1 import signal_pb2
from seawall.runtime.model_card import Label, LogisticCalibration

# Keeps the logit of 0 and 1 finite; far below what a calibration can tell apart.
_EPSILON = 1e-12


class LabelScores(Protocol):
    """A message's repeated ``labels``."""

    def add(self, *, label: str, score: float, frame: int, model: str) -> signal_pb2.LabelScore: ...


def scores(labels: Sequence[Label], row: Sequence[float]) -> Mapping[str, float]:
    """Calibrated scores, 0 to 1, by label name.

    Args:
        labels: the card's labels.
        row: probabilities, one a class.
    """
    return {label.name: _calibrate(label, row[label.index]) for label in labels}


class Highest:
    """Per label the highest score of all frames, and the first frame that has it: one bad frame spoils an animation."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._found: dict[str, tuple[float, int]] = {}

    def see(self, number: int, scores: Mapping[str, float]) -> None:
        """The scores of a frame, by label."""
        for name, score in scores.items():
            if name not in self._found or score > self._found[name][0]:
                self._found[name] = (score, number)

    def add_to(self, labels: LabelScores) -> None:
        """Add what was found."""
        for name, (score, number) in self._found.items():
            labels.add(label=name, score=score, frame=number, model=self._model_name)


def _calibrate(label: Label, probability: float) -> float:
    calibration = label.calibration
    if not isinstance(calibration, LogisticCalibration):
        return probability
    clipped = min(max(probability, _EPSILON), 1 - _EPSILON)
    logit = math.log(clipped / (1 - clipped))
    return 0.5 * (1 + math.tanh((calibration.slope * logit + calibration.offset) / 2))
