from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from seawall.core.errors import Fatal
from seawall.runtime import model_pack, onnx_file
from tests.support import model_packs


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "red"
    model_packs.write_pack(folder)
    return folder


def refused(folder: Path, **options: Any) -> Fatal:
    with pytest.raises(Fatal) as caught:
        model_pack.load(folder, **options)
    assert str(folder.parent) not in caught.value.detail
    return caught.value


def edit(folder: Path, change: Callable[[str], str]) -> None:
    card = folder / "card.yaml"
    before = card.read_text()
    after = change(before)
    assert after != before
    card.write_text(after)


def line_of(folder: Path, text: str) -> int:
    return next(n for n, line in enumerate((folder / "card.yaml").read_text().splitlines(), 1) if text in line)


def test_a_pack_is_known_by_the_digest_of_its_card_and_files(pack: Path) -> None:
    loaded = model_pack.load(pack, "image-classification")
    names = ["card.yaml", "examples/plain.png", "model.onnx"]
    lines = "".join(f"{hashlib.sha256((pack / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert loaded.digest == hashlib.sha256(lines.encode()).digest()
    assert (loaded.name, loaded.version, loaded.path) == ("red", "1", pack.resolve())
    assert loaded.read("model.onnx") == (pack / "model.onnx").read_bytes()

    edit(pack, lambda card: card.replace("threshold: 0.5", "threshold: 0.6"))
    assert model_pack.load(pack).digest != loaded.digest


@pytest.mark.parametrize(
    ("before", "after", "at", "says"),
    [
        ("intended_use:", "intended_usage:", "intended_usage:", "unknown key"),
        ("  colour: RGB", "  colour: RBG", "colour: RBG", "input.colour"),
        ("  height: 32\n", "  height: -1\n", "height: -1", "input.height"),
        ("licence: Apache-2.0\n", "", "name: red", "licence: missing"),
        ("  index: 1", "  index: 7", "name: red", "output.classes"),
        ("  threshold: 0.5", "  threshold: .nan", "threshold: .nan", "labels.0.threshold"),
        ("rule: stretch", "rule: squeeze", "resize:", "input.resize"),
        ("    red: 0.8", "    blue: 0.8", "name: red", "scores must name every label"),
        ("task: image-classification", "task: image-guessing", "task: image-guessing", "text-embedding"),
        ("version: '1'", "name: again", "name: again", "a key stands twice"),
        ("version: '1'", "version: [", "", "line"),
        ("- file: examples/plain.png", "- file: examples/other.png", "name: red", "files does not list"),
    ],
)
def test_a_card_is_refused_with_the_line_the_field_and_the_mend(
    pack: Path, before: str, after: str, at: str, says: str
) -> None:
    edit(pack, lambda card: card.replace(before, after, 1))
    error = refused(pack)
    assert error.reason == "BAD_MODEL_CARD"
    assert says in error.detail
    if at:
        assert f"line {line_of(pack, at)}:" in error.detail


def test_aliases_in_a_card_are_refused(pack: Path) -> None:
    edit(pack, lambda card: card.replace("scale:", "mean: &m [0, 0, 0]\n  std: *m\n  scale:"))
    assert "aliases" in refused(pack).detail


def test_a_card_that_is_no_text_or_too_long_is_refused(pack: Path) -> None:
    (pack / "card.yaml").write_bytes(b"\xff\xfe\x00")
    assert refused(pack).reason == "BAD_MODEL_CARD"
    (pack / "card.yaml").write_bytes(b"- just\n- a list\n")
    assert refused(pack).reason == "BAD_MODEL_CARD"
    (pack / "card.yaml").write_bytes(b"#" * 300_000)
    assert refused(pack).reason == "BAD_MODEL_CARD"
    (pack / "card.yaml").unlink()
    assert refused(pack).reason == "MODEL_FILE_MISSING"


def test_a_missing_folder_names_the_command_that_mends_it(tmp_path: Path) -> None:
    error = refused(tmp_path / "absent")
    assert error.reason == "MODEL_PACK_MISSING"
    assert "seawall models install demo" in error.detail


@pytest.mark.parametrize("name", ["model.onnx", "examples/plain.png"])
def test_a_changed_file_is_refused_at_load_and_at_use(pack: Path, name: str) -> None:
    loaded = model_pack.load(pack)
    data = bytearray((pack / name).read_bytes())
    data[len(data) // 2] ^= 1
    (pack / name).write_bytes(data)
    assert refused(pack).reason == "MODEL_DIGEST_MISMATCH"
    with pytest.raises(Fatal, match="MODEL_DIGEST_MISMATCH"):
        loaded.read(name)
    (pack / name).unlink()
    assert refused(pack).reason == "MODEL_FILE_MISSING"
    with pytest.raises(Fatal, match="MODEL_FILE_MISSING"):
        loaded.read(name)


def test_only_listed_files_can_be_read(pack: Path) -> None:
    (pack / "notes.txt").write_text("unlisted")
    with pytest.raises(Fatal, match="MODEL_FILE_NOT_LISTED"):
        model_pack.load(pack).read("notes.txt")


def test_links_may_lead_inside_the_folder_but_not_out_of_it(pack: Path, tmp_path: Path) -> None:
    inside = pack / "elsewhere.onnx"
    os.rename(pack / "model.onnx", inside)
    (pack / "model.onnx").symlink_to("elsewhere.onnx")
    assert model_pack.load(pack).name == "red"

    os.rename(inside, tmp_path / "outside.onnx")
    (pack / "model.onnx").unlink()
    (pack / "model.onnx").symlink_to(tmp_path / "outside.onnx")
    assert refused(pack).reason == "MODEL_FILE_OUTSIDE"


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/hostname", "a/../../b", ".hidden", "a//b", "card.yaml"])
def test_a_listed_name_must_stay_inside(pack: Path, name: str) -> None:
    edit(pack, lambda card: f"{card}  {name}: {'0' * 64}\n")
    assert refused(pack).reason == "BAD_MODEL_CARD"


def test_a_pack_above_the_size_limit_is_refused_before_it_is_read(pack: Path) -> None:
    assert refused(pack, max_bytes=100).reason == "MODEL_TOO_LARGE"


def test_a_pack_for_another_task_is_refused(pack: Path) -> None:
    assert refused(pack, task="text-embedding").reason == "WRONG_MODEL_TASK"


def external(location: str) -> onnx.ModelProto:
    model = model_packs.red_model()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "one")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "weights.bin", "a/../../b", ""])
def test_tensor_data_outside_the_listed_files_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "weights.bin").write_bytes(np.array(1, np.float32).tobytes())
    with pytest.raises(Fatal, match="MODEL_FILE_OUTSIDE"):
        model_packs.write_pack(tmp_path / "red", external(location))


def test_tensor_data_in_a_listed_file_are_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "red"
    model_packs.write_pack(folder)
    (folder / "weights.bin").write_bytes(np.array(1, np.float32).tobytes())
    (folder / "model.onnx").write_bytes(external("weights.bin").SerializeToString())
    files = ["model.onnx", "weights.bin", "examples/plain.png"]
    assert model_pack.write_card(folder, model_packs.red_card(), files).card.files.keys() == set(files)


def test_references_are_found_in_subgraphs_attributes_and_functions() -> None:
    hidden = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    hidden.ClearField("raw_data")
    hidden.external_data.add(key="location", value="in-subgraph")
    attribute = onnx.TensorProto()
    attribute.CopyFrom(hidden)
    attribute.external_data[0].value = "in-attribute"
    model = model_packs.red_model()
    body = helper.make_graph([], "body", [], [], [hidden])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))
    constant = helper.make_node("Constant", [], ["c"], value=attribute)
    model.functions.append(
        helper.make_function("custom", "f", [], ["c"], [constant], [helper.make_opsetid("custom", 3)])
    )
    found = onnx_file.references(model.SerializeToString(), "model.onnx")
    assert found.external_locations == {"in-subgraph", "in-attribute"}
    assert found.opsets == {"": 13, "custom": 3}


def test_a_file_that_is_no_model_is_refused() -> None:
    whole = model_packs.red_model().SerializeToString()
    for data in (b"", b"\x00", b"not a model at all", whole[: len(whole) // 2], b"\xff" * 64, whole[:-3]):
        with pytest.raises(Fatal, match="BAD_MODEL"):
            onnx_file.references(data, "model.onnx")
