"""A picture is allowed; then a list learns of it: the decision escalates, and the next such picture is stopped."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seawall.api.bank.v1 import bank_pb2
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.bank_store import BankStore
from tests.e2e.conftest import UpMesh, logs_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

PATIENCE_SECONDS = 60.0


def noise(path: Path, seed: int) -> Path:
    """A picture of nothing that no other test sends: smooth noise, so that its hash says enough."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(small).resize((600, 600), Image.Resampling.BICUBIC).save(path)
    return path


def measured_hash(mesh: UpMesh, generation_id: str) -> tuple[str, bytes]:
    """The pipeline and the PDQ hash that the service found, from the decision itself."""
    (decision,) = mesh.seawall_json("why", generation_id)["decisions"]
    signals = {joined["signal"]["stage"]: joined["signal"] for joined in decision["signals"]}
    hashes = {one["hash_type"]: one for one in signals["perceptual_hashing"]["items"][0]["hashes"]}
    kind, pipeline = ("pdq", "full") if "pdq" in hashes else ("pdq_512", "512")
    assert hashes[kind]["quality"] >= 50
    return pipeline, base64.b64decode(hashes[kind]["value"])


def until_amended(mesh: UpMesh, generation_id: str) -> dict[str, object]:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        document: dict[str, object] = mesh.seawall_json("why", generation_id)
        if document["amendments"]:
            return document
    raise AssertionError(f"no late signal came\n{logs_of(mesh)}")


def test_what_a_bank_lists_later_is_found_and_explained(mesh: UpMesh, tmp_path: Path) -> None:
    picture = noise(tmp_path / "noise.png", 7)
    allowed = mesh.seawall("submit", "--image", str(picture), "--json")
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr
    generation_id = json.loads(allowed.stdout)["generation_id"]
    pipeline, value = measured_hash(mesh, generation_id)
    near = (int.from_bytes(value) ^ 0b1011).to_bytes(32)

    # As an import or a pull on this machine does: into the store; the hashing service writes it to the topic.
    store = BankStore(mesh.home / "bank_store")
    card = bank_pb2.Bank(
        name="later",
        state=bank_pb2.BANK_STATE_ACTIVE,
        kind=bank_pb2.BANK_KIND_POSITIVE,
        category="stand-in",
        pipeline=pipeline,
        radius=31,
    )
    entry = bank_changes.listed("later", "stand-in-1", {"pdq": near}, origin="test")
    store.apply([bank_pb2.BankChange(bank=card), entry])
    store.close()

    document = until_amended(mesh, generation_id)
    assert (document["outcome"], document["rule_id"], document["amendments"]) == ("BLOCK_AND_REPORT", "known-hash", 1)
    text = mesh.seawall("why", generation_id).stdout
    assert "a bank listed it later (bank_entries.v1/" in text
    assert "later/stand-in-1 pdq distance 3, original, stand-in" in text
    assert mesh.seawall("submit", "--image", str(picture)).returncode == 12, "and now it is known as it comes"
