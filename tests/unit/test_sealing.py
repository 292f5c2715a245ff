from __future__ import annotations

import json
import multiprocessing
import multiprocessing.synchronize
import stat
from pathlib import Path

import pytest
import tink
from tink import aead, json_proto_keyset_format, mac, secret_key_access

from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Poison
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import SealingSettings

TEXT = "un bateau à voile ⛵"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "sealing.json"


@pytest.fixture
def sealer(path: Path) -> Sealer:
    return Sealer.load_or_create(path)


@pytest.mark.parametrize("text", ["", TEXT, "x" * 1_000_000, "nul\x00 and \u202e override"])
def test_what_is_sealed_opens(sealer: Sealer, text: str) -> None:
    sealed = sealer.seal(text, "gen-1", "prompt")
    assert sealed.key_id == sealer.key_id
    assert sealer.key_id.isdecimal()
    assert not text or text.encode() not in sealed.ciphertext
    assert sealer.open(sealed, "gen-1", "prompt") == text


def test_the_same_text_seals_differently_each_time(sealer: Sealer) -> None:
    assert sealer.seal(TEXT, "g", "prompt").ciphertext != sealer.seal(TEXT, "g", "prompt").ciphertext


@pytest.mark.parametrize(("generation_id", "field"), [("gen-2", "prompt"), ("gen-1", "negative_prompt")])
def test_a_ciphertext_that_was_moved_does_not_open(sealer: Sealer, generation_id: str, field: str) -> None:
    sealed = sealer.seal(TEXT, "gen-1", "prompt")
    with pytest.raises(Poison) as caught:
        sealer.open(sealed, generation_id, field)
    assert caught.value.reason == "UNSEAL_FAILED"
    assert caught.value.detail.startswith(f"{field}.ciphertext")


@pytest.mark.parametrize("position", [0, 5, 20, -1])
def test_an_altered_ciphertext_does_not_open(sealer: Sealer, position: int) -> None:
    sealed = sealer.seal(TEXT, "gen-1", "prompt")
    altered = bytearray(sealed.ciphertext)
    altered[position] ^= 1
    sealed.ciphertext = bytes(altered)
    with pytest.raises(Poison, match="UNSEAL_FAILED"):
        sealer.open(sealed, "gen-1", "prompt")


@pytest.mark.parametrize("length", [0, 1, 5, 16, 30])
def test_a_cut_ciphertext_does_not_open(sealer: Sealer, length: int) -> None:
    sealed = sealer.seal(TEXT, "gen-1", "prompt")
    sealed.ciphertext = sealed.ciphertext[:length]
    with pytest.raises(Poison, match="UNSEAL_FAILED"):
        sealer.open(sealed, "gen-1", "prompt")


def test_an_unknown_key_id_is_named_as_the_fault_and_not_repeated(sealer: Sealer) -> None:
    with pytest.raises(Poison) as caught:
        sealer.open(generation_pb2.SealedText(key_id="something private", ciphertext=b"x"), "gen-1", "prompt")
    assert "prompt.key_id" in caught.value.detail
    assert "private" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_poison_and_not_shown(sealer: Sealer) -> None:
    key_id, ciphertext = sealer.seal_bytes(b"secret\xff", "gen-1/prompt")
    with pytest.raises(Poison, match="UNSEAL_FAILED") as caught:
        sealer.open(generation_pb2.SealedText(key_id=key_id, ciphertext=ciphertext), "gen-1", "prompt")
    assert "secret" not in str(caught.value)
    # A UnicodeDecodeError in the chain would carry the bytes into a traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_lone_surrogate_cannot_be_sealed(sealer: Sealer) -> None:
    with pytest.raises(Poison, match="NOT_UTF8") as caught:
        sealer.seal("secret \ud800", "gen-1", "prompt")
    assert "secret" not in str(caught.value)


def test_dead_letters_are_bound_to_their_coordinates(sealer: Sealer) -> None:
    key_id, ciphertext = sealer.seal_bytes(b"\x00raw\xff", "generations.v1/3/17")
    assert sealer.open_bytes(key_id, ciphertext, "generations.v1/3/17") == b"\x00raw\xff"
    with pytest.raises(Poison, match="UNSEAL_FAILED"):
        sealer.open_bytes(key_id, ciphertext, "generations.v1/3/18")


def test_a_rotated_keyset_opens_what_the_old_one_sealed_and_seals_with_the_new(sealer: Sealer, path: Path) -> None:
    old = sealer.seal(TEXT, "gen-1", "prompt")
    keyset = json.loads(path.read_text())
    fresh = json.loads(
        json_proto_keyset_format.serialize(
            tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM), secret_key_access.TOKEN
        )
    )
    keyset["key"] += fresh["key"]
    keyset["primaryKeyId"] = fresh["primaryKeyId"]
    path.write_text(json.dumps(keyset))

    rotated = Sealer.load(path)
    assert rotated.key_id == str(fresh["primaryKeyId"]) != sealer.key_id
    assert rotated.open(old, "gen-1", "prompt") == TEXT
    new = rotated.seal(TEXT, "gen-1", "prompt")
    assert new.key_id == rotated.key_id
    with pytest.raises(Poison, match="UNSEAL_FAILED"):
        sealer.open(new, "gen-1", "prompt")


def test_a_keyset_wrapped_by_another_key_loads_with_that_key_alone(path: Path) -> None:
    wrapping, other = (
        tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM).primitive(aead.Aead) for _ in range(2)
    )
    path.parent.mkdir()
    path.write_text(
        json_proto_keyset_format.serialize_encrypted(
            tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM), wrapping, b"seawall.sealing"
        )
    )
    sealer = Sealer.load(path, wrapping)
    assert sealer.open(sealer.seal(TEXT, "g", "prompt"), "g", "prompt") == TEXT
    with pytest.raises(Fatal, match="BAD_KEYSET"):
        Sealer.load(path, other)


def test_a_made_keyset_is_for_its_owner_alone_and_is_kept(path: Path) -> None:
    first = Sealer.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Sealer.load_or_create(path).key_id == first.key_id
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def _make(path: Path, barrier: multiprocessing.synchronize.Barrier, results: multiprocessing.Queue[str]) -> None:
    barrier.wait()
    results.put(Sealer.load_or_create(path).key_id)


def test_processes_that_start_at_once_share_one_keyset(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_make, args=(path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    key_ids = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert key_ids == {Sealer.load(path).key_id}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"primaryKeyId": 1, "key": []}', "\x00\x01"])
def test_a_broken_keyset_is_fatal_and_named(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(Fatal, match="BAD_KEYSET") as caught:
        Sealer.load(path)
    assert str(path) in caught.value.detail


def test_an_absent_keyset_is_fatal_when_it_must_not_be_made(path: Path) -> None:
    with pytest.raises(Fatal, match="BAD_KEYSET"):
        Sealer.from_settings(SealingSettings(keyset=path, create=False))
    assert not path.exists()
    assert Sealer.from_settings(SealingSettings(keyset=path)).key_id == Sealer.load(path).key_id


def test_a_keyset_that_everybody_may_read_is_refused(sealer: Sealer, path: Path) -> None:
    path.chmod(0o644)
    with pytest.raises(Fatal, match="chmod 0600"):
        Sealer.load(path)


def test_a_keyset_of_another_kind_is_refused(path: Path) -> None:
    mac.register()
    path.parent.mkdir()
    path.write_text(
        json_proto_keyset_format.serialize(
            tink.new_keyset_handle(mac.mac_key_templates.HMAC_SHA256_128BITTAG), secret_key_access.TOKEN
        )
    )
    path.chmod(0o600)
    with pytest.raises(Fatal, match="BAD_KEYSET"):
        Sealer.load(path)
