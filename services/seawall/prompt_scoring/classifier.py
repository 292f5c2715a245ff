"""An operator's own text classifier: any ONNX model of task "text-classification", as a text scorer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.prompt_scoring.encoder import open_session, open_tokenizer
from seawall.prompt_scoring.text_scorer import Reading, Unscannable
from seawall.runtime.model_card import IdentityCalibration, Label, TextClassificationCard
from seawall.runtime.model_pack import ModelPack

_INPUTS = frozenset(("input_ids", "attention_mask", "token_type_ids"))
_TINY = 1e-7


class TextClassifier:
    """A `text_scorer.TextScorer`. Safe for threads.

    One window at a time: in a batch, an int8 model's scores would depend on the batch's other members.
    """

    def __init__(self, pack: ModelPack, max_windows: int) -> None:
        """Args:
            pack: a verified pack; its inputs are any of input_ids, attention_mask and token_type_ids, (1, tokens), its
                first output (1, classes).
            max_windows: a prompt longer than so many windows of the card's max_tokens is UNSCANNABLE.

        Raises:
            Fatal: ``WRONG_MODEL_TASK``; ``BAD_MODEL`` when the model cannot be run or does not reproduce its card.
        """
        card = pack.card
        if not isinstance(card, TextClassificationCard):
            raise Fatal("WRONG_MODEL_TASK", f"{pack.name}: task is {card.task}, not text-classification")
        self._name = pack.name
        self._card = card
        self._max_windows = max_windows
        self._tokenizer = open_tokenizer(pack, card.input.tokenizer, card.input.max_tokens)
        self._session = open_session(pack)
        self._inputs = [value.name for value in self._session.get_inputs()]
        unknown = sorted(set(self._inputs) - _INPUTS)
        if unknown:
            raise Fatal("BAD_MODEL", f"{pack.name}: inputs {', '.join(unknown)} are unknown: export a plain classifier")
        self._artefact = signal_pb2.Artefact(
            kind=signal_pb2.ARTEFACT_KIND_MODEL, name=pack.name, version=pack.version, sha256=pack.digest
        )
        self._verify()

    @property
    def labels(self) -> Sequence[str]:
        return tuple(label.name for label in self._card.labels)

    @property
    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        return (self._artefact,)

    def score(self, reading: Reading) -> Mapping[str, float]:
        """The highest score of any window of the prompt. Raises Unscannable("TOO_LONG")."""
        return self._scores(reading.prompt) if reading.prompt.strip() else {}

    def _scores(self, text: str) -> dict[str, float]:
        first = self._tokenizer.encode(text)
        windows = [first, *first.overflowing]
        if len(windows) > self._max_windows:
            raise Unscannable("TOO_LONG")
        rows = [self._run(window.ids) for window in windows]
        return {
            label.name: max(_calibrated(label, float(row[label.index])) for row in rows) for label in self._card.labels
        }

    def _run(self, ids: list[int]) -> NDArray[np.float64]:
        """Probabilities: (classes,)."""
        tokens = np.array([ids], dtype=np.int64)
        feed = {"input_ids": tokens}
        if "attention_mask" in self._inputs:
            feed["attention_mask"] = np.ones_like(tokens)
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(tokens)
        output = np.asarray(self._session.run(None, feed)[0], np.float64)
        if output.shape != (1, self._card.output.classes) or not np.isfinite(output).all():
            raise ValueError(f"the output is {output.shape} or not finite")
        row = output[0]
        if self._card.output.activation == "softmax":
            row = np.exp(row - row.max())
            row = row / row.sum()
        elif self._card.output.activation == "sigmoid":
            row = 1 / (1 + np.exp(-np.clip(row, -60, 60)))
        if row.min() < 0 or row.max() > 1 + _TINY:
            raise ValueError("the output is no probability: set output.activation")
        found: NDArray[np.float64] = np.minimum(row, 1.0)
        return found

    def _verify(self) -> None:
        for number, example in enumerate(self._card.examples, 1):
            try:
                found = self._scores(example.text)
            except Exception as error:
                # onnxruntime raises a class of its own for every kind of fault.
                detail = f"{self._name}: the model cannot be run on example {number} ({type(error).__name__})"
                raise Fatal("BAD_MODEL", f"{detail}: export it again") from error
            for name, score in example.scores.items():
                if not abs(found[name] - score) <= example.tolerance:
                    detail = f"{self._name}: example {number} has {name} {found[name]:.3f}, the card says {score:.3f}"
                    raise Fatal("BAD_MODEL", f"{detail}: install the pack again, or another release of onnxruntime")


def _calibrated(label: Label, probability: float) -> float:
    calibration = label.calibration
    if isinstance(calibration, IdentityCalibration):
        return probability
    clipped = min(max(probability, _TINY), 1 - _TINY)
    logit = math.log(clipped / (1 - clipped))
    return 1 / (1 + math.exp(-max(min(calibration.slope * logit + calibration.offset, 60.0), -60.0)))
