"""Static int8 quantisation of image classifiers, calibrated on pictures of the operator's choice.

Weights are quantised per output channel, activations per tensor, within the ranges that the calibration pictures reach.
Static, not dynamic: a picture's scores must not depend on what else was in its batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from seawall.core.errors import Fatal

#: Lowest and highest value of every tensor.
Ranges = Mapping[str, tuple[float, float]]
Input = NDArray[np.float32]

# Per-channel quantisation needs it.
_OPSET = 13
_CLASSIFIER = ("Gemm", "MatMul")


def prepare(model: bytes) -> onnx.ModelProto:
    """The float model as quantisation wants it: at operator set 13 or later, batch normalisation folded, shapes known.

    Raises:
        Fatal: ``NOT_QUANTISABLE``.
    """
    try:
        parsed = onnx.load_from_string(model)
        opset = max((entry.version for entry in parsed.opset_import if not entry.domain), default=0)
        if opset < _OPSET:
            parsed = onnx.version_converter.convert_version(parsed, _OPSET)
        with tempfile.TemporaryDirectory(prefix="seawall-") as folder:
            result = Path(folder, "model.onnx")
            quant_pre_process(parsed, str(result), skip_symbolic_shape=True)
            return onnx.load(result)
    except Exception as error:
        # onnx, its converter and onnxruntime raise whatever their C++ throws; all of it means the same here.
        detail = f"the model cannot be prepared for quantisation ({type(error).__name__})"
        raise Fatal("NOT_QUANTISABLE", f"{detail}: export it again with operator set {_OPSET} or later") from error


def static_int8(model: onnx.ModelProto, ranges: Ranges, keep_float: Sequence[str]) -> bytes:
    """The int8 model.

    Weights use 7 of 8 bits: on CPUs without VNNI, int8 products are summed in 16 bits and would saturate, so that the
    same picture would score differently there.

    Args:
        ranges: of every activation.
        keep_float: names of nodes that are left as they are.
    """
    with tempfile.TemporaryDirectory(prefix="seawall-") as folder:
        cache, result = Path(folder, "ranges.json"), Path(folder, "model.onnx")
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, _tensors(ranges)), cache)
        quantize_static(
            model,
            result,
            calibration_cache_path=cache,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep_float),
        )
        return onnx.load(result).SerializeToString(deterministic=True)


def measure_ranges(model: onnx.ModelProto, inputs: Iterable[Input]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of every activation over the inputs, to four significant digits.

    The digits are those in which runs on different CPUs agree, so that the result does not change with the machine.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    name = model.graph.input[0].name
    outputs = [output for node in model.graph.node for output in node.output if output]
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=output) for output in outputs)
    session = open_session(watched.SerializeToString())
    found: dict[str, tuple[float, float]] = {}
    for values in inputs:
        for tensor, array in zip([name, *outputs], [values, *session.run(outputs, {name: values})], strict=True):
            if array.dtype != np.float32 or not array.size:
                continue
            low, high = found.get(tensor, (0.0, 0.0))
            found[tensor] = (min(low, float(array.min())), max(high, float(array.max())))
    return {tensor: (float(f"{low:.4g}"), float(f"{high:.4g}")) for tensor, (low, high) in found.items()}


def classifier_tail(model: onnx.ModelProto) -> list[str]:
    """Names of the last fully connected layer and of all after it; nodes without a name are given one.

    They see one vector a picture, so there is nothing to gain, and rounding costs most.
    """
    nodes = model.graph.node
    for index, node in enumerate(nodes):
        node.name = node.name or f"node_{index}"
    last = max((index for index, node in enumerate(nodes) if node.op_type in _CLASSIFIER), default=len(nodes))
    return [node.name for node in nodes[last:]]


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """A session on one thread of a CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _tensors(ranges: Ranges) -> dict[str, Any]:
    return {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
