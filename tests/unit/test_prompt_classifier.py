"""An operator's own classifier as a text scorer: a tiny model, one row of logits by word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from seawall.core.errors import Fatal
from seawall.prompt_scoring import scorer
from seawall.prompt_scoring.classifier import TextClassifier
from seawall.prompt_scoring.detection import Detection
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.text_scorer import Reading, Unscannable
from seawall.runtime import model_pack

WORDS = ("[UNK]", "lake", "storm", "garden")
#: Logits of (calm, wild).
LOGITS = np.array([[0, 0], [2, -2], [-2, 2], [1, 0]], dtype=np.float32)


def tiny(logits: NDArray[np.float32] = LOGITS) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["logits"], axes=[1], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", logits.shape[1]])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [numpy_helper.from_array(logits, "table")])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def write_pack(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> model_pack.ModelPack:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "model.onnx").write_bytes((model or tiny()).SerializeToString())
    calm = 1 / (1 + math.exp(-4))
    card = {
        "name": "weather",
        "version": "1",
        "licence": "Apache-2.0",
        "intended_use": "Tests.",
        "task": "text-classification",
        "minimum_opset": 13,
        "languages": ["en"],
        "input": {"tokenizer": "tokenizer.json", "max_tokens": 8},
        "output": {"classes": 2, "activation": "softmax"},
        "labels": [{"name": "calm", "index": 0, "threshold": 0.5}, {"name": "wild", "index": 1, "threshold": 0.5}],
        "examples": [{"text": "lake", "scores": {"calm": calm, "wild": 1 - calm}, "tolerance": 0.01}],
        **changes,
    }
    return model_pack.write_card(folder, card, ["model.onnx", "tokenizer.json"])


def read(text: str) -> Reading:
    return Reading(text, "", (), Detection())


def test_it_scores_every_label_of_its_card(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "weather")
    classifier = TextClassifier(pack, max_windows=4)
    assert classifier.labels == ("calm", "wild")
    assert [artefact.sha256 for artefact in classifier.artefacts] == [pack.digest]
    found = classifier.score(read("a Storm storm storm"))
    # Three storms and an unknown word: mean logits of -1.5 and 1.5.
    assert found == pytest.approx({"calm": 1 / (1 + math.exp(3)), "wild": 1 / (1 + math.exp(-3))})
    assert classifier.score(read("  ")) == {}


def test_a_long_prompt_is_read_to_its_end_and_no_further(tmp_path: Path) -> None:
    classifier = TextClassifier(write_pack(tmp_path / "weather"), max_windows=2)
    assert classifier.score(read("lake " * 8 + "storm " * 8))["wild"] == pytest.approx(1 / (1 + math.exp(-4)))
    with pytest.raises(Unscannable, match="TOO_LONG"):
        classifier.score(read("lake " * 17))


def test_scores_are_calibrated_as_the_card_says(tmp_path: Path) -> None:
    calibration = {"method": "logistic", "slope": 0.5, "offset": -1.0}
    score = 1 / (1 + math.exp(-(0.5 * 4 - 1)))
    pack = write_pack(
        tmp_path / "weather",
        labels=[{"name": "calm", "index": 0, "threshold": 0.5, "calibration": calibration}],
        examples=[{"text": "lake", "scores": {"calm": score}, "tolerance": 0.01}],
    )
    assert TextClassifier(pack, 1).score(read("lake"))["calm"] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        # The example's score differs.
        (tiny(LOGITS[:, ::-1].copy()), {}),
        # More classes than the card says.
        (tiny(np.zeros((4, 3), np.float32)), {}),
        # Logits passed off as probabilities.
        (None, {"output": {"classes": 2, "activation": "none"}}),
        (tiny(np.full((4, 2), np.nan, np.float32)), {}),
        (tiny(LOGITS[:1]), {}),
    ],
)
def test_a_model_that_does_not_prove_itself_is_not_used(
    tmp_path: Path, model: onnx.ModelProto | None, changes: dict[str, Any]
) -> None:
    pack = write_pack(tmp_path / "weather", model, **changes)
    with pytest.raises(Fatal, match="BAD_MODEL"):
        TextClassifier(pack, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"languages": []},
        {"examples": []},
        {"labels": [{"name": "calm", "index": 2, "threshold": 0.5}]},
        {"examples": [{"text": "lake", "scores": {"calm": 1.0}, "tolerance": 0.1}]},
        {"input": {"tokenizer": "absent.json", "max_tokens": 8}},
    ],
)
def test_a_card_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Fatal, match="BAD_MODEL_CARD"):
        write_pack(tmp_path / "weather", **changes)


def test_two_scorers_may_not_share_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoderless:
        labels = ("minor_sexual_semantic",)

    monkeypatch.setattr(scorer, "SemanticScorer", lambda *_: Encoderless())
    write_pack(tmp_path / "weather")
    load = model_pack.load
    monkeypatch.setattr(model_pack, "load", lambda path, task: None if task == "text-embedding" else load(path, task))
    both = [tmp_path / "weather", tmp_path / "weather"]
    assert len(scorer.text_scorers(PromptScoringSettings(classifiers=both[:1]))) == 2
    with pytest.raises(Fatal, match="LABEL_TWICE"):
        scorer.text_scorers(PromptScoringSettings(classifiers=both))
