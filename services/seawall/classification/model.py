"""Runs one model pack's graph on onnxruntime: what goes in and comes out is checked against its card."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from seawall.classification.execution import ExecutionSettings, session
from seawall.core.errors import Fatal, Poison
from seawall.runtime import onnx_file
from seawall.runtime.model_card import MODEL_FILE, ImageClassificationCard
from seawall.runtime.model_pack import ModelPack

CPU = ExecutionSettings()

# How far outside 0 to 1 a probability may lie: float32 rounding, and int8 output grids.
_SLACK = 1e-3

# onnxruntime's Python errors share no base class below Exception; these are what a bad file or a bad input raises.
_STATE: Any = onnxruntime.capi.onnxruntime_pybind11_state
_RUNTIME_ERRORS = (
    _STATE.EPFail,
    _STATE.Fail,
    _STATE.InvalidArgument,
    _STATE.InvalidGraph,
    _STATE.InvalidProtobuf,
    _STATE.NoModel,
    _STATE.NoSuchFile,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
    RuntimeError,
    ValueError,
)


class Model:
    """An image classifier. Safe for threads."""

    def __init__(self, pack: ModelPack, execution: ExecutionSettings = CPU) -> None:
        """Raises Fatal: ``BAD_MODEL``, ``MODEL_DIGEST_MISMATCH``, ``WRONG_MODEL_TASK`` or ``PROVIDER_UNAVAILABLE``."""
        card = pack.card
        if not isinstance(card, ImageClassificationCard):
            raise Fatal("WRONG_MODEL_TASK", f"{pack.name}: this room runs image-classification, not {card.task}")
        self._name = pack.name
        self._classes = card.output.classes
        self._activation = card.output.activation
        data = pack.read(MODEL_FILE)
        references = onnx_file.references(data, f"{pack.name}/{MODEL_FILE}")
        opset = references.opsets.get("", 0)
        if opset < card.minimum_opset:
            detail = f"{pack.name}/{MODEL_FILE} uses operator set {opset}, the card says at least {card.minimum_opset}"
            raise Fatal("BAD_MODEL", f"{detail}: correct minimum_opset or export the model again")
        try:
            self._session = session(data, str(pack.path), execution)
        except _RUNTIME_ERRORS as error:
            detail = f"{pack.name}/{MODEL_FILE} is not a model this onnxruntime can run ({type(error).__name__})"
            raise Fatal("BAD_MODEL", f"{detail}: check its operators and export it again") from error
        self._input = self._check_input(card)
        self._output = self._session.get_outputs()[0].name
        #: Whether inputs may share a run: the graph takes any number, and scales each by itself.
        self.batchable = not isinstance(self._session.get_inputs()[0].shape[0], int) and (
            "DynamicQuantizeLinear" not in references.operators
        )

    def run(self, batch: NDArray[np.float32]) -> list[list[float]]:
        """Probabilities, a row of one a class for each input.

        Args:
            batch: n inputs in the card's layout, contiguous; onnxruntime reads them where they are.

        Raises:
            Poison: ``INFERENCE_FAILED``, or ``BAD_MODEL_OUTPUT``: wrong shape, NaN, infinity or no probability.
        """
        try:
            output = self._session.run([self._output], {self._input: batch})[0]
        except _RUNTIME_ERRORS as error:
            raise Poison("INFERENCE_FAILED", f"{self._name} failed ({type(error).__name__}): check the pack") from error
        if not isinstance(output, np.ndarray) or output.shape != (len(batch), self._classes):
            raise Poison("BAD_MODEL_OUTPUT", f"{self._name}: output.classes of the card is not what the model returns")
        # Plain numbers: numpy takes 0.1 ms for a row of two, as its code is in no cache after an inference.
        return [self._probabilities(row) for row in output.tolist()]

    def _probabilities(self, values: list[float]) -> list[float]:
        if not all(map(math.isfinite, values)):
            raise Poison("BAD_MODEL_OUTPUT", f"{self._name} returned NaN or infinity: check the pack")
        if self._activation == "softmax":
            most = max(values)
            powers = [math.exp(value - most) for value in values]
            total = sum(powers)
            return [power / total for power in powers]
        if self._activation == "sigmoid":
            return [0.5 * (1 + math.tanh(value / 2)) for value in values]
        if min(values) < -_SLACK or max(values) > 1 + _SLACK:
            raise Poison("BAD_MODEL_OUTPUT", f"{self._name} returned no probability: set output.activation in its card")
        return [min(max(value, 0.0), 1.0) for value in values]

    def _check_input(self, card: ImageClassificationCard) -> str:
        spec = card.input
        wanted = (spec.height, spec.width, 3) if spec.layout == "NHWC" else (3, spec.height, spec.width)
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            raise Fatal("BAD_MODEL", f"{self._name}/{MODEL_FILE} must take one float32 input: export it so")
        # A named dimension is a string and takes any size.
        shape = inputs[0].shape
        fits = len(shape) == 4 and all(
            not isinstance(have, int) or have == want for have, want in zip(shape[1:], wanted, strict=True)
        )
        if not fits:
            detail = f"{self._name}: the model takes {shape[1:]}, the card's input says {list(wanted)}"
            raise Fatal("BAD_MODEL", f"{detail}: correct layout, height or width")
        return str(inputs[0].name)
