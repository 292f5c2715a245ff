"""`seawall models` on a second small model, step by step as docs/bring-your-own-classifier.md tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from typer.testing import CliRunner

from seawall.api.signal.v1 import signal_pb2
from seawall.classification.rollout import Rollout
from seawall.cli.app import app
from seawall.core.errors import Fatal, SeawallError
from seawall.local import signal_log
from tests.support.model_packs import encoded, write_version

SIDE = 32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CARD: dict[str, Any] = {
    "name": "textures",
    "version": "1.0.0",
    "licence": "Apache-2.0",
    "intended_use": "Tells three made-up textures apart.",
    "task": "image-classification",
    "minimum_opset": 17,
    "input": {
        "layout": "NCHW",
        "colour": "RGB",
        "height": SIDE,
        "width": SIDE,
        "scale": 1 / 255,
        "mean": MEAN,
        "std": STD,
        "resize": {"rule": "short-side", "side": SIDE, "filter": "bilinear"},
    },
    "output": {"classes": 3, "activation": "softmax"},
    "labels": [{"name": "striped", "index": 1, "threshold": 0.5}, {"name": "spotted", "index": 2, "threshold": 0.5}],
    "expects": {"per_core_second": 2000, "memory_mb": 20, "measured_on": "a laptop"},
}


def small_network() -> onnx.ModelProto:
    """What an export from torchvision looks like, small: n x 3 x 32 x 32, two convolutions, a fully connected layer."""
    random = np.random.default_rng(5)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1.6 / np.sqrt(np.prod(shape[1:]) or 1)
        return numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["pixels", "w1", "b1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "textures",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [
            weights("w1", 16, 3, 3, 3),
            weights("b1", 16),
            weights("w2", 32, 16, 3, 3),
            weights("b2", 32),
            weights("w3", 3, 32),
            weights("b3", 3),
        ],
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])


def picture(seed: int) -> NDArray[np.uint8]:
    """A square of soft noise, so that any resize gives nearly the same."""
    random = np.random.default_rng(seed)
    noise = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
    return np.asarray(noise.resize((64, 64), Image.Resampling.BICUBIC), np.uint8)


def by_the_framework(model: onnx.ModelProto, rgb: NDArray[np.uint8]) -> dict[str, float]:
    """The scores as the framework that trained it would give them: nothing of Seawall takes part."""
    resized = Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = (np.asarray(resized, np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    (logits,) = ReferenceEvaluator(model).run(None, {"pixels": values.transpose(2, 0, 1)[None].astype(np.float32)})
    row = np.asarray(logits)[0]
    odds = np.exp(row - row.max())
    return {"striped": float(odds[1] / odds.sum()), "spotted": float(odds[2] / odds.sum())}


def seawall(*arguments: str | Path, ok: bool = True) -> str:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    if isinstance(result.exception, SeawallError):
        raise result.exception
    assert (result.exit_code == 0) is ok, result.output
    return result.stdout


def as_json(*arguments: str | Path) -> Any:
    return json.loads(seawall(*arguments, "--json"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEAWALL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Steps 1 to 3 of the guide: the model, its examples with the framework's scores, the card."""
    folder = tmp_path / "textures"
    (folder / "examples").mkdir(parents=True)
    model = small_network()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    card = CARD | {"examples": []}
    for seed in range(3):
        name = f"examples/{seed}.png"
        (folder / name).write_bytes(encoded(picture(seed)))
        scores = {label: round(score, 4) for label, score in by_the_framework(model, picture(seed)).items()}
        card["examples"].append({"file": name, "scores": scores, "tolerance": 0.03})
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for seed in range(40):
        (folder / ("deeper" if seed % 2 else ".") / f"{seed}.png").write_bytes(encoded(picture(100 + seed)))
    (folder / "broken.png").write_bytes(encoded(picture(1))[:60])
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_guide_from_an_onnx_file_to_an_installed_int8_pack(home: Path, pack: Path, images: Path) -> None:
    assert "4 files" in seawall("stamp", pack)
    checked = as_json("check", pack, "--images", images)
    assert checked["labels"] == ["striped", "spotted"]
    assert checked["examples_reproduced"] == 3
    assert checked["pictures"] == {"scored": 40, "left_out": {"TRUNCATED": 1, "UNKNOWN_TYPE": 1}}
    card = yaml.safe_load((pack / "card.yaml").read_text())
    for label in card["labels"]:
        label["reference"] = checked["references"][label["name"]]
    (pack / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    seawall("stamp", pack)
    assert "3 examples reproduced; labels striped, spotted" in seawall("check", pack)

    measured = as_json("bench", pack, "--seconds", "0.2")
    assert measured["model"] == "textures@1.0.0" and measured["runs"] > 2
    assert measured["card_expects"]["per_core_second"] == 2000
    assert "its card expects 2000" in seawall("bench", pack, "--seconds", "0.1")

    made = as_json("quantise", pack, pack.with_name("textures-int8"), "--images", images)
    assert made["version"] == "1.0.0-int8"
    assert [one["pictures"] for one in made["held_out"]] == [8, 8]
    assert [one["pictures"] for one in made["calibrated"]] == [32, 32]
    assert 0 < max(one["largest"] for one in made["held_out"]) < 0.1
    written = yaml.safe_load((pack.with_name("textures-int8") / "card.yaml").read_text())
    assert written["labels"][0]["reference"]["shares"]
    assert "expects" not in written

    assert str(home / "models" / "textures") in seawall("install", pack)
    seawall("install", pack.with_name("textures-int8"), "--as", "textures-int8")
    listed = as_json("list")
    assert [(Path(one["folder"]).name, one["version"]) for one in listed] == [
        ("textures", "1.0.0"),
        ("textures-int8", "1.0.0-int8"),
    ]
    assert "textures@1.0.0-int8" in seawall("list")


def test_a_wrong_card_is_found_by_the_frameworks_scores(pack: Path) -> None:
    card = (pack / "card.yaml").read_text()
    for right, wrong in (
        ("colour: RGB", "colour: BGR"),
        ("- 0.485", "- 0.9"),
        ("activation: softmax", "activation: sigmoid"),
    ):
        assert right in card
        (pack / "card.yaml").write_text(card.replace(right, wrong))
        seawall("stamp", pack)
        with pytest.raises(Fatal, match=r"MODEL_NOT_REPRODUCED.*its card says"):
            seawall("check", pack)


def test_an_installation_that_fails_leaves_what_was_there(home: Path, pack: Path, tmp_path: Path) -> None:
    seawall("stamp", pack)
    seawall("install", pack)
    before = (home / "models" / "textures" / "card.yaml").read_bytes()
    model = pack / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(Fatal, match="MODEL_DIGEST_MISMATCH"):
        seawall("install", pack)
    assert (home / "models" / "textures" / "card.yaml").read_bytes() == before
    assert sorted(path.name for path in (home / "models").iterdir()) == [".lock", "textures"]
    (home / "models" / "textures" / "model.onnx").write_bytes(b"")
    assert "MODEL_DIGEST_MISMATCH" in seawall("list", ok=False)


def test_a_quantisation_that_changes_too_much_leaves_nothing(pack: Path, images: Path, tmp_path: Path) -> None:
    seawall("stamp", pack)
    out = tmp_path / "int8"
    with pytest.raises(Fatal, match=r"QUANTISED_TOO_FAR.*--max-change"):
        seawall("quantise", pack, out, "--images", images, "--max-change", "0.000001")
    assert not out.exists()
    out.mkdir()
    with pytest.raises(Fatal, match="OUT_EXISTS"):
        seawall("quantise", pack, out, "--images", images)
    with pytest.raises(Fatal, match="TOO_FEW_PICTURES"):
        seawall("quantise", pack, tmp_path / "other", "--images", pack / "examples")


# ---- compare ---------------------------------------------------------------------------------------------------------


def signal(number: int, a: float | None, b: float | None, on_trial: str = "red@2") -> signal_pb2.Signal:
    """A signal in which one version decides and the other is on trial, or one of them alone."""
    made = signal_pb2.Signal(signal_id=f"s{number}", generation_id=f"g{number}", stage="classification")
    item = made.items.add(item_id="output/0", status=signal_pb2.ITEM_STATUS_OK)
    for model, score in (("red@1", a), ("red@2", b)):
        if score is None:
            continue
        if model == on_trial:
            item.shadows.add(model=model).labels.add(label="red", score=score, model=model, frame=number % 3)
        else:
            item.labels.add(label="red", score=score, model=model)
    return made


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    signals = [signal(n, n / 100, min(1.0, n / 100 + 0.1)) for n in range(100)]
    signals += [signals[3], signal(200, 0.9, None), signal(201, None, 0.7, on_trial="")]
    failed = signal(202, 0.2, None)
    failed.items[0].shadows.add(model="red@2", reason="TRIAL_TIMEOUT")
    other = signal_pb2.Signal(signal_id="p", generation_id="g", stage="prompt_scoring")
    path = tmp_path / "signals.bin"
    assert signal_log.write_file(path, [*signals, failed, other]) == 105
    return path


def test_two_versions_are_compared_by_their_signals(exported: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    found = as_json("compare", "red@1", "red@2", "--file", exported, "--plot", plot)
    assert found["signals"] == 103 and found["items"] == {"both": 100, "only_a": 2, "only_b": 1}
    assert found["without_a_score"] == {"TRIAL_TIMEOUT": 1}
    (red,) = found["labels"]
    # B is 0.1 above A: 40 to 49 of a hundred cross 0.5 upwards.
    assert red["flips"] == {"raised": 10, "lowered": 0} and red["agreement"] == pytest.approx(0.9)
    assert red["difference"]["largest"] == pytest.approx(0.1)
    assert red["correlation"] == pytest.approx(1, abs=0.01)
    assert red["scored"] == {"a": 102, "b": 101}
    assert red["at_or_above_threshold"]["a"] == pytest.approx(51 / 102)
    assert {flip["generation_id"] for flip in red["widest_flips"]} == {f"g{n}" for n in range(40, 50)}
    assert plot.read_text().startswith("<svg") and "100 pairs, 90.00% agree" in plot.read_text()

    text = seawall("compare", "red@1", "red@2", "--file", exported, "--threshold", "red=0.805")
    assert "90.00%" in text and "threshold" in text and "TRIAL_TIMEOUT" in text and "flip: g7" in text


def test_versions_that_no_signal_names_are_not_compared(exported: Path) -> None:
    with pytest.raises(Fatal, match=r"NOTHING_TO_COMPARE.*red@3"):
        seawall("compare", "red@1", "red@3", "--file", exported)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_export_is_refused(exported: Path, cut: int) -> None:
    exported.write_bytes(exported.read_bytes()[:-cut])
    with pytest.raises(Fatal, match="BAD_SIGNAL_FILE"):
        seawall("compare", "red@1", "red@2", "--file", exported)


def test_a_rollout_of_the_packs_that_were_installed(home: Path, tmp_path: Path) -> None:
    from seawall.classification import lineup

    for version in ("1", "2"):
        seawall("install", write_version(tmp_path / version, version).path, "--as", f"red-{version}")
    models = home / "models"
    rollout = Rollout(active=(models / "red-1",))
    assert [head.model_name for head in lineup.load(rollout).plan("g").deciding] == ["red@1"]
