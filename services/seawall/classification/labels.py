"""From a model's probabilities to calibrated label scores: what the aggregator sees is labels, not models."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from seawall.api.signal.v1 import signal_pb2
from seawall.runtime.model_card import Label, LogisticCalibration

# Keeps the logit of 0 and 1 finite; far below what a calibration can tell apart.
_EPSILON = 1e-12


class ScoredFrame(NamedTuple):
    """A decoded frame on its way through the models, with the inputs that were made of it."""

    number: int
    pixels: NDArray[np.uint8]
    prepared: MutableMapping[Any, NDArray[np.float32]]


class Classifier(Protocol):
    """Scores one picture: `head.Head`."""

    @property
    def model_name(self) -> str: ...
    def score(
        self, rgb: NDArray[np.uint8], prepared: MutableMapping[Any, NDArray[np.float32]]
    ) -> Mapping[str, float]: ...


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

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._found: dict[str, tuple[float, int]] = {}

    def see(self, frame: ScoredFrame) -> None:
        """Score a frame. Raises what the classifier raises."""
        for name, score in self._classifier.score(frame.pixels, frame.prepared).items():
            if name not in self._found or score > self._found[name][0]:
                self._found[name] = (score, frame.number)

    def add_to(self, labels: LabelScores) -> None:
        """Add what was found."""
        for name, (score, number) in self._found.items():
            labels.add(label=name, score=score, frame=number, model=self._classifier.model_name)


def _calibrate(label: Label, probability: float) -> float:
    calibration = label.calibration
    if not isinstance(calibration, LogisticCalibration):
        return probability
    clipped = min(max(probability, _EPSILON), 1 - _EPSILON)
    logit = math.log(clipped / (1 - clipped))
    return 0.5 * (1 + math.tanh((calibration.slope * logit + calibration.offset) / 2))
