from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from seawall.core.errors import Fatal
from seawall.perceptual_hashing import banks
from seawall.perceptual_hashing.bank_entries import Entry
from tests.support import images

CARD: dict[str, Any] = {
    "name": "demo",
    "source": "benign stand-ins",
    "version": "1",
    "category": "stand-in",
    "pipeline": "512",
    "radius": 31,
    "licence": "CC0-1.0",
}
PDQ, SHA256, MD5 = "ab" * 32, "cd" * 32, "ef" * 16
LINES = ["entry_id,hash_type,value", f"a,pdq,{PDQ}", f"a,sha256,{SHA256}", f"a,md5,{MD5}", f"b,pdq,{PDQ}"]


def by_hand(root: Path, lines: list[str] = LINES, files: dict[str, str] | None = None, **card: Any) -> Path:
    """A bank as a person would write it."""
    folder = root / "demo"
    folder.mkdir(exist_ok=True)
    content = ("\n".join(lines) + "\n").encode()
    (folder / "entries.csv").write_bytes(content)
    files = files or {"entries.csv": hashlib.sha256(content).hexdigest()}
    (folder / "bank.yaml").write_text(yaml.safe_dump({**CARD, **card, "files": files}))
    return folder


def refused(folder: Path, reason: str, *words: str) -> None:
    with pytest.raises(Fatal) as raised:
        banks.load(folder)
    assert raised.value.reason == reason
    for word in words:
        assert word in raised.value.detail, raised.value.detail


def test_a_bank_written_by_hand_loads(tmp_path: Path) -> None:
    bank = banks.load(by_hand(tmp_path))
    assert (bank.card.name, bank.card.pipeline, bank.card.radius) == ("demo", "512", 31)
    assert len(bank.entries) == 4
    assert bank.entries.pdq.tobytes().hex() == PDQ * 2
    assert [bank.entries.pdq_ids[0], bank.entries.pdq_ids[1]] == ["a", "b"]
    assert bank.entries.digests["md5"] == {bytes.fromhex(MD5): ("a",)}


def test_the_digest_covers_the_card_and_every_entry(tmp_path: Path) -> None:
    first = banks.load(by_hand(tmp_path)).digest
    assert first == banks.load(by_hand(tmp_path)).digest
    assert len(first) == 32
    assert banks.load(by_hand(tmp_path, radius=30)).digest != first
    assert banks.load(by_hand(tmp_path, [*LINES, f"c,pdq,{PDQ}"])).digest != first


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("a,pdq", "3 fields"),
        (f"c,pdq,{PDQ},x", "3 fields"),
        ("", "3 fields"),
        (f"c,phash,{PDQ}", "pdq, sha256, sha1, md5"),
        (f"c,pdq,{PDQ[:-2]}", "64 hex digits"),
        (f"c,md5,{PDQ}", "32 hex digits"),
        (f"c,pdq,{'zz' * 32}", "hex digits only"),
        (f"c,pdq,{'a ' * 32}", "hex digits only"),
        (f"a,pdq,{PDQ}", "second pdq hash"),
        (f"a name with blanks,pdq,{PDQ}", "entry_id"),
        (f",pdq,{PDQ}", "entry_id"),
        (f'"c",pdq,{PDQ}', "entry_id"),
        (f"é,pdq,{PDQ}", "ASCII"),
    ],
)
def test_a_bad_entry_is_named_by_file_and_line(tmp_path: Path, line: str, word: str) -> None:
    refused(by_hand(tmp_path, [*LINES, line]), "BAD_BANK", "demo/entries.csv line 6", word)


@pytest.mark.parametrize("header", ["", "entry_id,value", "ENTRY_ID,hash_type,value"])
def test_a_wrong_first_line_is_refused(tmp_path: Path, header: str) -> None:
    refused(by_hand(tmp_path, [header, *LINES[1:]]), "BAD_BANK", "line 1", "entry_id,hash_type,value")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"radius": 32}, ("radius", "at most 31")),
        ({"radius": -1}, ("radius",)),
        ({"radius": "31"}, ("radius",)),
        ({"pipeline": "256"}, ("pipeline",)),
        ({"version": 1}, ("version", "quotes")),
        ({"category": ""}, ("category",)),
        ({"name": "other"}, ("folder", "demo")),
        ({"name": "../demo"}, ("name",)),
        ({"radios": 31}, ("radios", "unknown key")),
        ({"files": {}}, ("files",)),
        ({"files": {"../entries.csv": "0" * 64}}, ("files", ".csv")),
        ({"files": {"entries.csv": "0" * 63}}, ("files", "64 hex digits")),
    ],
)
def test_a_bad_card_is_named_by_key_and_mend(tmp_path: Path, card: dict[str, Any], words: tuple[str, ...]) -> None:
    folder = by_hand(tmp_path)
    (folder / "bank.yaml").write_text(yaml.safe_dump({**CARD, "files": {"entries.csv": "0" * 64}, **card}))
    refused(folder, "BAD_BANK", "demo/bank.yaml", *words)


@pytest.mark.parametrize("text", ["", "- a\n", "name: [", "name: a\nname: b\n", "\x00"])
def test_a_card_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    folder = by_hand(tmp_path)
    (folder / "bank.yaml").write_text(text)
    refused(folder, "BAD_BANK", "demo/bank.yaml")


def test_missing_and_changed_files_are_refused(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    (folder / "entries.csv").write_text("\n".join(LINES[:-1]) + "\n")
    refused(folder, "BANK_DIGEST_MISMATCH", "demo/entries.csv")
    (folder / "entries.csv").unlink()
    refused(folder, "BANK_FILE_MISSING", "demo/entries.csv")
    (folder / "bank.yaml").unlink()
    refused(folder, "BANK_FILE_MISSING", "demo/bank.yaml")


def test_a_required_bank_must_be_there_and_list_something(tmp_path: Path) -> None:
    assert banks.load_all(tmp_path / "nowhere") == []
    with pytest.raises(Fatal) as raised:
        banks.load_all(tmp_path, ["demo"])
    assert raised.value.reason == "BANK_MISSING"
    by_hand(tmp_path, LINES[:1])
    assert [len(bank.entries) for bank in banks.load_all(tmp_path)] == [0]
    with pytest.raises(Fatal) as raised:
        banks.load_all(tmp_path, ["demo"])
    assert raised.value.reason == "EMPTY_BANK"
    by_hand(tmp_path)
    assert [bank.card.name for bank in banks.load_all(tmp_path, ["demo"])] == ["demo"]


def test_written_banks_load_and_can_be_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    picture = images.encode(images.photograph("coffee"))
    bank = banks.write(folder, CARD, banks.entries_of("coffee", picture, "512"))
    assert bank.digest == banks.load(folder).digest
    assert bank.entries.digests["sha256"] == {hashlib.sha256(picture).digest(): ("coffee",)}
    assert len(bank.entries) == 3
    again = banks.write(folder, CARD, banks.entries_of("coffee", picture, "512"))
    assert again.digest == bank.digest
    other = banks.write(folder, {**CARD, "version": "2"}, [Entry("x", "md5", bytes(16))])
    assert (other.card.version, len(other.entries)) == ("2", 1)
    assert len(list(folder.iterdir())) == 2


def test_a_bank_that_would_not_load_is_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    kept = banks.write(folder, CARD, [Entry("x", "md5", bytes(16))]).digest
    for card, entries in (
        ({**CARD, "radius": 40}, []),
        ({**CARD, "name": "other"}, []),
        (CARD, [Entry("x", "md5", bytes(15))]),
        (CARD, [Entry("x", "md5", bytes(16)), Entry("x", "md5", bytes(range(16)))]),
        (CARD, [Entry("a,b", "md5", bytes(16))]),
    ):
        with pytest.raises(Fatal):
            banks.write(folder, card, entries)
        assert banks.load(folder).digest == kept


def test_a_crash_between_the_files_leaves_the_old_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    kept = banks.write(folder, CARD, [Entry("x", "md5", bytes(16))]).digest
    replace = banks._replace

    def crash(path: Path, content: bytes) -> None:
        if path.name == "bank.yaml":
            raise KeyboardInterrupt
        replace(path, content)

    monkeypatch.setattr(banks, "_replace", crash)
    with pytest.raises(KeyboardInterrupt):
        banks.write(folder, CARD, [Entry("y", "md5", bytes(range(16)))])
    assert banks.load(folder).digest == kept
