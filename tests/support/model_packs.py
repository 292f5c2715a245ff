"""Small model packs made on the spot: a classifier that answers with the picture's mean red, and broken relatives."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from seawall.runtime import model_pack
from seawall.runtime.model_pack import ModelPack

SIDE = 32
OPSET = 13


def red_model(tail: Sequence[onnx.NodeProto] = (), output_shape: Sequence[Any] = ("n", 2)) -> onnx.ModelProto:
    """Input n x 32 x 32 x 3 RGB, 0 to 1. Output: [1 - mean red, mean red].

    Args:
        tail: nodes from "row" (n x 2) to "scores", instead of the identity.
    """
    constants: dict[str, NDArray[Any]] = {
        "starts": np.array([0], np.int64),
        "ends": np.array([1], np.int64),
        "axis": np.array([3], np.int64),
        "flat": np.array([0, 1], np.int64),
        "one": np.array(1, np.float32),
    }
    nodes = [
        helper.make_node("Slice", ["pixels", "starts", "ends", "axis"], ["red"]),
        helper.make_node("ReduceMean", ["red"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Sub", ["one", "mean"], ["rest"]),
        helper.make_node("Concat", ["rest", "mean"], ["row"], axis=1),
        *(tail or [helper.make_node("Identity", ["row"], ["scores"])]),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, output_shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])


def plain(colour: tuple[int, int, int], side: int = 48) -> NDArray[np.uint8]:
    return np.full((side, side, 3), colour, np.uint8)


def encoded(image: Image.Image | NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def animated(colours: Sequence[tuple[int, int, int]], kind: str = "GIF", **options: Any) -> bytes:
    first, *rest = (Image.fromarray(plain(colour)) for colour in colours)
    return encoded(first, kind, save_all=True, append_images=rest, duration=50, **options)


def red_card(**changes: Any) -> dict[str, Any]:
    return {
        "name": "red",
        "version": "1",
        "licence": "Apache-2.0",
        "intended_use": "Tests.",
        "task": "image-classification",
        "minimum_opset": OPSET,
        "input": {
            "layout": "NHWC",
            "colour": "RGB",
            "height": SIDE,
            "width": SIDE,
            "scale": 1 / 255,
            "resize": {"rule": "stretch", "height": SIDE, "width": SIDE},
        },
        "output": {"classes": 2, "activation": "none"},
        "labels": [{"name": "red", "index": 1, "threshold": 0.5}],
        "examples": [{"file": "examples/plain.png", "scores": {"red": 0.8}, "tolerance": 0.01}],
        **changes,
    }


def write_pack(folder: Path, model: onnx.ModelProto | bytes | None = None, **changes: Any) -> ModelPack:
    """A pack at ``folder``: the red model unless another is given, and a card with these keys changed."""
    (folder / "examples").mkdir(parents=True, exist_ok=True)
    (folder / "examples" / "plain.png").write_bytes(encoded(plain((204, 30, 30))))
    model = red_model() if model is None else model
    (folder / "model.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return model_pack.write_card(folder, red_card(**changes), ["model.onnx", "examples/plain.png"])


def write_version(folder: Path, version: str, offset: float = 0.0, **changes: Any) -> ModelPack:
    """The red pack in another version, whose calibration adds ``offset`` to the logit of the score."""
    calibration = {"method": "logistic", "slope": 1.0, "offset": offset}
    card = {
        "version": version,
        "labels": [{"name": "red", "index": 1, "threshold": 0.5, "calibration": calibration}],
        "examples": [{"file": "examples/plain.png", "scores": {"red": shifted(0.8, offset)}, "tolerance": 0.01}],
    }
    return write_pack(folder, **{**card, **changes})


def shifted(score: float, offset: float) -> float:
    """What `write_version` makes of a score."""
    return 1 / (1 + math.exp(-(math.log(score / (1 - score)) + offset)))


def nan_above(limit: float) -> onnx.ModelProto:
    """The red model, but NaN where a value is above ``limit``: it passes its example and fails on a redder picture."""

    def constant(name: str, value: float) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.float32)))

    return red_model(
        [
            constant("limit", limit),
            constant("nan", math.nan),
            helper.make_node("Greater", ["row", "limit"], ["above"]),
            helper.make_node("Where", ["above", "nan", "row"], ["scores"]),
        ]
    )
