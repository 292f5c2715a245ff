from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.cli.app import app
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import bank_import
from seawall.perceptual_hashing.bank_entries import Entry, to_csv
from seawall.perceptual_hashing.bank_store import BankStore
from tests.support.bank_entries import card, random_words

WORDS = random_words(5)
CARD = 'name: own\nsource: benign stand-ins\nversion: "1"\ncategory: stand-in\npipeline: "512"\nlicence: CC0-1.0\n'


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAWALL_BANKS__FOLDER", str(tmp_path / "banks"))
    monkeypatch.setenv("SEAWALL_BANKS__STORE", str(tmp_path / "store"))
    (tmp_path / "card.yaml").write_text(CARD)


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["banks", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result.stdout


def answer(*arguments: object, status: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", status=status))


def csv(path: Path, *numbers: int) -> Path:
    rows = [
        Entry(f"e{k}", kind, value)
        for k in numbers
        for kind, value in (("md5", bytes([k]) * 16), ("pdq", WORDS[k].tobytes()))
    ]
    path.write_bytes(to_csv(rows))
    return path


def test_import_stat_diff_export_and_verify_agree(tmp_path: Path) -> None:
    first = csv(tmp_path / "first.csv", 0, 1, 2)
    done = answer("import", first, "--bank", "own", "--card", tmp_path / "card.yaml")
    assert (done["changed"], done["unchanged"], done["refused"]) == (3, 0, [])
    again = answer("import", first, "--bank", "own")
    assert (again["changed"], again["unchanged"], again["digest"]) == (0, 3, done["digest"])
    (row,) = answer("stat")["banks"]
    assert (row["name"], row["where"], row["entries"], row["digest"]) == ("own", "store", {"listed": 3}, done["digest"])
    assert run("export", "own").encode() == first.read_bytes()
    other = csv(tmp_path / "other.csv", 1, 2, 3)
    wanted = {"bank": "own", "added": ["e3"], "changed": [], "removed": ["e0"]}
    assert answer("diff", "own", other, status=1) == wanted
    replaced = answer("import", other, "--bank", "own", "--replace")
    assert (replaced["changed"], replaced["removed"]) == (1, 1)
    assert run("diff", "own", other) == ""
    assert answer("verify") == {"ok": True, "folders": 0, "entries": 3, "segments": 0}
    assert answer("verify", "--repair")["segments"] == 1


def test_a_disabled_entry_stays_so_when_its_file_is_imported_again(tmp_path: Path) -> None:
    file = csv(tmp_path / "list.csv", 0, 1)
    run("import", file, "--bank", "own", "--card", tmp_path / "card.yaml")
    run("disable", "own", "e1", "--reason", "a blank picture")
    run("import", file, "--bank", "own")
    assert answer("stat")["banks"][0]["entries"] == {"listed": 1, "disabled": 1}
    run("enable", "own", "e1")
    assert answer("stat")["banks"][0]["entries"] == {"listed": 2}
    with pytest.raises(Fatal, match="NO_ENTRY"):
        CliRunner().invoke(app, ["banks", "disable", "own", "nobody"], catch_exceptions=False)


def test_what_cannot_be_read_is_told_and_the_rest_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    rows = [{"entry_id": "a", "hashes": {"md5": "00" * 16}}, {"entry_id": "b", "hashes": {"md5": "00"}}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    done = answer("import", file, "--bank", "own", "--card", tmp_path / "card.yaml", status=3)
    assert done["changed"] == 1
    assert len(done["refused"]) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"entry_id,hash_type,value\na,pdq,abcd\n", "line 2: a pdq value has 64 hex digits"), (b"x", "line 1")],
)
def test_a_bad_file_is_named_by_line_and_nothing_is_imported(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(content)
    with pytest.raises(Fatal, match=reason):
        CliRunner().invoke(
            app,
            ["banks", "import", str(file), "--bank", "own", "--card", str(tmp_path / "card.yaml")],
            catch_exceptions=False,
        )
    assert BankStore(tmp_path / "store").banks() == {}


def test_a_bank_that_nobody_described_is_refused(tmp_path: Path) -> None:
    arguments = ["banks", "import", str(csv(tmp_path / "list.csv", 0)), "--bank", "own"]
    with pytest.raises(Fatal, match="--card"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_videos_and_plug_ins_hashes_come_in_and_go_out_again(tmp_path: Path) -> None:
    film = WORDS[:3].tobytes()
    rows = [Entry("film", "vpdq", film), Entry("still", "photodna", bytes(range(144)))]
    file = tmp_path / "list.csv"
    file.write_bytes(to_csv(rows, ["photodna"]))
    arguments = ["banks", "import", str(file), "--bank", "own", "--card", str(tmp_path / "card.yaml")]
    with pytest.raises(Fatal, match=r"line 3: .*signal_types"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    (tmp_path / "card.yaml").write_text(CARD + "signal_types: [photodna]\nmin_listed_percent: 10\n")
    digest = answer(*arguments[1:])["digest"]
    assert run("export", "own").encode() == file.read_bytes()
    assert run("diff", "own", file) == ""
    # The same list as JSON; of another plug-in, which the card does not name, each record is told.
    as_json = tmp_path / "list.json"
    lines = [
        {"entry_id": "film", "hashes": {"vpdq": [f"{word.tobytes().hex()},90,0.5" for word in WORDS[:3]]}},
        {"entry_id": "still", "hashes": {"photodna": bytes(range(144)).hex()}},
        {"entry_id": "typed", "hashes": {"photo_dna": "00"}},
    ]
    as_json.write_text("\n".join(map(json.dumps, lines)))
    done = answer("import", as_json, "--bank", "own", status=3)
    assert (done["changed"], done["unchanged"], len(done["refused"]), done["digest"]) == (0, 2, 1, digest)


def test_a_confirmed_decision_lists_its_media_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = signal_pb2.ItemResult(item_id="output/0", status=signal_pb2.ITEM_STATUS_OK)
    item.hashes.add(hash_type="sha256", value=bytes(32), quality=100)
    item.hashes.add(hash_type="pdq_512", value=WORDS[0].tobytes(), quality=90)
    item.hashes.add(hash_type="pdq_512", value=WORDS[1].tobytes(), quality=90)
    decision = decision_pb2.Decision(decision_id="d", generation_id="g")
    decision.signals.add(signal=signal_pb2.Signal(stage="perceptual_hashing", items=[item]))
    own = card().bank
    store = BankStore(tmp_path / "store")
    store.apply([card(), *bank_import.confirmed(decision, own)])
    (entry,) = store.entries("own")
    assert {one.hash_type: one.value for one in entry.hashes} == {"pdq": WORDS[0].tobytes(), "sha256": bytes(32)}
    assert entry.provenance.checkpoint == "d output/0"
    store.apply(bank_import.confirmed(decision, own, item_ids=["output/0"]))
    assert store.state().banks["own"].listed == 1
    with pytest.raises(Fatal, match="NOTHING_TO_LIST"):
        bank_import.confirmed(decision, own, item_ids=["output/9"])
    full = card(pipeline="full").bank
    assert [one.hash_type for one in bank_import.confirmed(decision, full)[0].entry.hashes] == ["sha256"]
    # The command takes the newest decision that has hashes.
    late = decision_pb2.Decision(decision_id="late", generation_id="g")
    monkeypatch.setattr("seawall.cli.banks._decisions", lambda _: [decision, late])
    listed = answer("confirm", "g", "--bank", "own")
    assert (listed["entries"], listed["digest"]) == ([entry.entry_id], store.digests()["own"].hex())
    with pytest.raises(Fatal, match="NOTHING_TO_LIST"):
        CliRunner().invoke(app, ["banks", "confirm", "g", "--bank", "own", "--item", "x"], catch_exceptions=False)
