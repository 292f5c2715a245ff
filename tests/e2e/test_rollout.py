"""A classifier rolled out on the demo stream: shadow, then canary, compared by the signals in Kafka."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from seawall.api.signal.v1 import signal_pb2
from seawall.classification.rollout import falls_in
from seawall.local import signal_log
from seawall.local.demo import Summary
from seawall.local.samples import stream
from seawall.runtime import model_pack
from tests.e2e.conftest import UpMesh, logs_of, send_samples

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

_PICTURES = {"ordinary-photograph", "ordinary-edit", "data-set-item", "hard-negative-photograph"}
_CANARY_PERCENT = 40


@pytest.fixture
def candidate(mesh: UpMesh) -> Iterator[Path]:
    """The demo classifier in another version, half a logit keener; the rollout is put back afterwards."""
    place = mesh.home / "candidate"
    shutil.copytree((mesh.home / "models" / "opennsfw").resolve(), place)
    card = yaml.safe_load((place / "card.yaml").read_text("utf-8"))
    files = list(card.pop("files"))
    card["version"] = "candidate"
    card["labels"][0]["calibration"] = {"method": "logistic", "slope": 1.0, "offset": 0.5}
    for example in card["examples"]:
        score = example["scores"]["explicit"]
        example["scores"] = {"explicit": 1 / (1 + math.exp(-(math.log(score / (1 - score)) + 0.5)))}
    model_pack.write_card(place, card, files)
    try:
        yield place
    finally:
        roll_out(mesh, "active: [models/opennsfw]\n")


def roll_out(mesh: UpMesh, rollout: str) -> None:
    """Change the rollout under the running service, and wait until it has taken it up."""
    log = mesh.home / "logs" / "classification.log"

    def swaps() -> int:
        return log.read_text("utf-8").count("models swapped")

    before = swaps()
    (mesh.home / "rollout.yaml").write_text(rollout)
    for _ in range(600):
        if swaps() > before:
            return
        time.sleep(0.1)  # Another process's log: a look is all there is.
    pytest.fail(logs_of(mesh))


def signals_of(mesh: UpMesh, run: Summary) -> list[signal_pb2.Signal]:
    """The classification signals of a run, by way of the export."""
    path = mesh.home / "signals.bin"
    done = mesh.seawall("models", "export", str(path))
    assert done.returncode == 0, done.stderr
    wanted = {result.generation_id for result in run.results}
    return [signal for signal in signal_log.read_file(path) if signal.generation_id in wanted]


def test_a_version_is_tried_as_shadow_and_canary_on_the_demo_stream(mesh: UpMesh, candidate: Path) -> None:
    a = f"opennsfw-int8@{model_pack.load(mesh.home / 'models' / 'opennsfw').version}"
    b = "opennsfw-int8@candidate"
    chosen = [sample for sample in stream() if sample.category in _PICTURES][:30]

    roll_out(mesh, "active: [models/opennsfw]\nshadow: [{pack: candidate}]\n")
    shadowed = send_samples(mesh, chosen)
    assert [(result.generation_id, result.fault) for result in shadowed.faults] == [], logs_of(mesh)
    seen = signals_of(mesh, shadowed)
    assert len(seen) == len(chosen)
    for signal in seen:
        for item in signal.items:
            assert {label.model for label in item.labels} == {a}
            assert [(shadow.model, shadow.reason) for shadow in item.shadows] == [(b, "")]

    found = mesh.seawall_json("models", "compare", a, b, "--threshold", "explicit=0.8")
    (explicit,) = found["labels"]
    assert found["items"]["both"] == explicit["pairs"] == sum(len(signal.items) for signal in seen)
    assert explicit["correlation"] > 0.99
    assert 0 < explicit["difference"]["largest"] < 0.13
    plot = mesh.home / "plot.svg"
    text = mesh.seawall("models", "compare", a, b, "--threshold", "explicit=0.8", "--plot", str(plot)).stdout
    assert "threshold" in text and "explicit" in text and plot.read_text("utf-8").startswith("<svg")

    roll_out(mesh, f"active: [models/opennsfw]\ncanary: [{{pack: candidate, percent: {_CANARY_PERCENT}}}]\n")
    canaried = send_samples(mesh, chosen)
    assert [(result.generation_id, result.fault) for result in canaried.faults] == [], logs_of(mesh)
    seen = signals_of(mesh, canaried)
    decided = {signal.generation_id: {label.model for item in signal.items for label in item.labels} for signal in seen}
    assert decided == {
        result.generation_id: {b if falls_in(_CANARY_PERCENT, b, result.generation_id) else a}
        for result in canaried.results
    }
    assert not any(item.shadows for signal in seen for item in signal.items)
