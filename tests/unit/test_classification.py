from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from seawall.api.classification.v1 import classification_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification import labels, scorer
from seawall.classification.head import Head
from seawall.classification.model import Model
from seawall.classification.preprocess import Preprocessor
from seawall.classification.settings import ClassificationSettings
from seawall.classification.stage import STAGE
from seawall.core.errors import Fatal, Poison
from seawall.runtime import model_pack
from seawall.runtime.model_card import ImageInput, Label
from tests.support import model_packs
from tests.support.stages import sent

OPENNSFW = {
    "layout": "NHWC",
    "colour": "BGR",
    "height": 224,
    "width": 224,
    "mean": [104, 117, 123],
    "resize": {"rule": "stretch", "height": 256, "width": 256},
}
TORCHVISION = {
    "layout": "NCHW",
    "colour": "RGB",
    "height": 224,
    "width": 224,
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "resize": {"rule": "short-side", "side": 256},
}


def preprocessor(spec: dict[str, Any]) -> Preprocessor:
    return Preprocessor(ImageInput.model_validate(spec))


def picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.default_rng(7).integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.uint8)


@pytest.mark.parametrize("spec", [OPENNSFW, TORCHVISION], ids=["opennsfw", "torchvision"])
@pytest.mark.parametrize("size", [(256, 256), (300, 400), (400, 300), (97, 61), (1200, 900), (3, 700), (1, 1)])
def test_input_is_the_resized_centre_with_mean_and_scale_applied(spec: dict[str, Any], size: tuple[int, int]) -> None:
    rgb = picture(*size)
    short = min(size)
    scaled = (256, 256) if spec is OPENNSFW else (256 * size[0] // short, 256 * size[1] // short)
    whole = Image.fromarray(rgb).resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR)
    left, top = round((scaled[1] - 224) / 2), round((scaled[0] - 224) / 2)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), np.float64)

    pixels = preprocessor(spec).pixels(rgb)
    assert pixels.shape == (224, 224, 3)
    # reducing_gap trades exactness of large reductions; a level or two of 255 is the resize's own rounding.
    assert np.abs(pixels - expected).mean() < 1.0

    values = preprocessor(spec)(rgb)
    assert values.dtype == np.float32 and values.flags.c_contiguous
    if spec is OPENNSFW:
        assert values.shape == (1, 224, 224, 3)
        np.testing.assert_array_equal(values[0], pixels[:, :, ::-1].astype(np.float32) - [104, 117, 123])
    else:
        assert values.shape == (1, 3, 224, 224)
        normalised = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(values[0], normalised.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("spec", [OPENNSFW, TORCHVISION], ids=["opennsfw", "torchvision"])
def test_inputs_of_several_lie_behind_each_other(spec: dict[str, Any]) -> None:
    prepare = preprocessor(spec)
    several = [picture(300, 400), picture(256, 256), picture(97, 61)]
    values = prepare.inputs([prepare.pixels(rgb) for rgb in several])
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values, np.concatenate([prepare(rgb) for rgb in several]))


def test_a_picture_of_the_right_size_is_only_cropped() -> None:
    rgb = picture(256, 256)
    np.testing.assert_array_equal(preprocessor(OPENNSFW).pixels(rgb), rgb[16:240, 16:240])


def test_the_decoder_is_told_what_the_resize_needs() -> None:
    assert preprocessor(OPENNSFW).min_side == 256
    assert preprocessor(TORCHVISION).min_side == 256


def label(name: str, index: int, **calibration: Any) -> Label:
    return Label.model_validate({"name": name, "index": index, "threshold": 0.5, **calibration})


def test_scores_are_calibrated_by_label() -> None:
    platt = {"calibration": {"method": "logistic", "slope": 2.0, "offset": -1.0}}
    row = [0.25, 0.75, 0.0]
    got = labels.scores([label("plain", 1), label("bent", 1, **platt), label("nothing", 2, **platt)], row)
    assert got["plain"] == 0.75
    assert got["bent"] == pytest.approx(1 / (1 + math.exp(-(2 * math.log(3) - 1))))
    assert 0 <= got["nothing"] < 1e-12


def test_an_animation_has_each_labels_highest_score_and_the_first_frame_that_has_it() -> None:
    highest = labels.Highest("told@1")
    for number, a, b in ((0, 0.1, 0.9), (7, 0.8, 0.2), (9, 0.8, 0.9)):
        highest.see(number, {"a": a, "b": b})
    result = signal_pb2.ItemResult()
    highest.add_to(result.labels)
    assert [(one.label, one.score, one.frame, one.model) for one in result.labels] == [
        ("a", 0.8, 7, "told@1"),
        ("b", 0.9, 0, "told@1"),
    ]


# --- the graph --------------------------------------------------------------------------------------------------------


def red(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.full((1, model_packs.SIDE, model_packs.SIDE, 3), value, np.float32)


def test_a_model_gives_probabilities(tmp_path: Path) -> None:
    model = Model(model_packs.write_pack(tmp_path / "red"))
    np.testing.assert_allclose(model.run(red(0.3)), [[0.7, 0.3]], atol=1e-6)
    np.testing.assert_allclose(model.run(np.concatenate([red(0.1), red(0.9)])), [[0.9, 0.1], [0.1, 0.9]], atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("softmax", [1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(0.4))]), ("sigmoid", [0.66818777, 0.57444252])],
)
def test_logits_are_activated(tmp_path: Path, activation: str, expected: list[float]) -> None:
    pack = model_packs.write_pack(tmp_path / "red", output={"classes": 2, "activation": activation})
    np.testing.assert_allclose(Model(pack).run(red(0.3)), [expected], atol=1e-6)


def broken(kind: Literal["nan", "infinity", "shape", "range"]) -> onnx.ModelProto:
    zero = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0, np.float32)))
    if kind == "nan":
        tail = [
            zero,
            helper.make_node("Div", ["row", "zero"], ["big"]),
            helper.make_node("Mul", ["big", "zero"], ["n"]),
        ]
        return model_packs.red_model([*tail, helper.make_node("Identity", ["n"], ["scores"])])
    if kind == "infinity":
        return model_packs.red_model([zero, helper.make_node("Div", ["row", "zero"], ["scores"])])
    if kind == "range":
        return model_packs.red_model([helper.make_node("Add", ["row", "one"], ["scores"])])
    return model_packs.red_model([helper.make_node("Concat", ["row", "row"], ["scores"], axis=1)], ("n", 4))


@pytest.mark.parametrize("kind", ["nan", "infinity", "shape", "range"])
def test_a_model_without_a_usable_answer_is_never_loaded_nor_given_a_score(
    tmp_path: Path, kind: Literal["nan", "infinity", "shape", "range"]
) -> None:
    pack = model_packs.write_pack(tmp_path / "red", broken(kind))
    with pytest.raises(Poison, match="BAD_MODEL_OUTPUT"):
        Head(pack).score(model_packs.plain((10, 20, 30)))
    with pytest.raises(Fatal, match="MODEL_NOT_REPRODUCED"):
        scorer.load_heads([pack.path])


def test_a_model_that_does_not_reproduce_its_examples_is_never_loaded(tmp_path: Path) -> None:
    examples = [{"file": "examples/plain.png", "scores": {"red": 0.2}, "tolerance": 0.01}]
    pack = model_packs.write_pack(tmp_path / "red", examples=examples)
    with pytest.raises(Fatal, match=r"MODEL_NOT_REPRODUCED.*red 0\.8000, its card says 0\.2"):
        scorer.load_heads([pack.path])
    swapped = model_packs.red_card()["input"] | {"colour": "BGR"}
    pack = model_packs.write_pack(tmp_path / "swapped", input=swapped)
    with pytest.raises(Fatal, match="MODEL_NOT_REPRODUCED"):
        scorer.load_heads([pack.path])


def test_an_operator_the_runtime_does_not_know_is_refused(tmp_path: Path) -> None:
    model = model_packs.red_model([helper.make_node("Guess", ["row"], ["scores"], domain="custom")])
    model.opset_import.append(helper.make_opsetid("custom", 1))
    with pytest.raises(Fatal, match="BAD_MODEL"):
        Model(model_packs.write_pack(tmp_path / "red", model))


def test_a_card_must_fit_its_model(tmp_path: Path) -> None:
    wrong = model_packs.red_card()["input"] | {"layout": "NCHW"}
    with pytest.raises(Fatal, match="correct layout, height or width"):
        Model(model_packs.write_pack(tmp_path / "layout", input=wrong))
    with pytest.raises(Fatal, match="minimum_opset"):
        Model(model_packs.write_pack(tmp_path / "opset", minimum_opset=17))
    double = model_packs.red_model()
    double.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(Fatal, match="one float32 input"):
        Model(model_packs.write_pack(tmp_path / "inputs", double))


def test_tensor_data_beside_the_model_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "red"
    model_packs.write_pack(folder)
    model = model_packs.red_model()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "one")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    (folder / "weights.bin").write_bytes(np.array(1, np.float32).tobytes())
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    files = ["model.onnx", "weights.bin", "examples/plain.png"]
    pack = model_pack.write_card(folder, model_packs.red_card(), files)
    np.testing.assert_allclose(Model(pack).run(red(0.3)), [[0.7, 0.3]], atol=1e-6)


def test_two_classifiers_may_not_answer_for_one_label(tmp_path: Path) -> None:
    model_packs.write_pack(tmp_path / "one")
    model_packs.write_pack(tmp_path / "two")
    settings = ClassificationSettings(classifiers=[tmp_path / "one", tmp_path / "two"])
    with pytest.raises(Fatal, match=r"DUPLICATE_LABEL.*red"):
        scorer.load(settings)


# --- the relay's side -------------------------------------------------------------------------------------------------


def test_every_media_item_is_classified_and_text_is_not() -> None:
    generation = generation_pb2.Generation(generation_id="g", attempt=1, modality=generation_pb2.MODALITY_IMAGE)
    assert not STAGE.items(generation)
    wanted = (("input/0", generation_pb2.NEXUS_UPLOADED_INPUT), ("output/0", generation_pb2.NEXUS_MODEL_OUTPUT))
    for name, nexus in wanted:
        generation.media.add(item_id=name, nexus=nexus, content=generation_pb2.ContentRef(uri=f"file:///m/{name}"))
    items = STAGE.items(generation)
    assert [(item.item_id, item.nexus) for item in items] == [(m.item_id, m.nexus) for m in generation.media]
    assert sent(STAGE, generation, 7) == [
        classification_pb2.ClassifyItem(id=number, content=media.content, generation_id="g")
        for number, media in enumerate(generation.media, 7)
    ]
    service = classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"]
    assert STAGE.method == f"/{service.full_name}/{service.methods[0].name}"
