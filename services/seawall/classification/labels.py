"""From a model's probabilities to calibrated label scores: what the aggregator sees is labels, not models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seawall.runtime.model_card import Label, LogisticCalibration

# Keeps the logit of 0 and 1 finite; far below what a calibration can tell apart.
_EPSILON = 1e-12


def scores(labels: Sequence[Label], row: NDArray[np.float64]) -> Mapping[str, float]:
    """Calibrated scores, 0 to 1, by label name.

    Args:
        labels: the card's labels.
        row: probabilities, one a class.
    """
    return {label.name: _calibrate(label, float(row[label.index])) for label in labels}


def highest(frames: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Per label the highest score of all frames: one bad frame makes an animation bad."""
    return {name: max(frame[name] for frame in frames) for name in frames[0]}


def _calibrate(label: Label, probability: float) -> float:
    calibration = label.calibration
    if not isinstance(calibration, LogisticCalibration):
        return probability
    clipped = min(max(probability, _EPSILON), 1 - _EPSILON)
    logit = math.log(clipped / (1 - clipped))
    return 0.5 * (1 + math.tanh((calibration.slope * logit + calibration.offset) / 2))
