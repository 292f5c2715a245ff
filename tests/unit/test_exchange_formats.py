"""Lists in files: JSON, python-threatexchange's lines and its state, hostile ones included."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from threatexchange.exchanges.clients.ncmec.hash_api import (
    Feedback,
    FeedbackType,
    NCMECEntryType,
    NCMECEntryUpdate,
    StatusResult,
)
from threatexchange.exchanges.fetch_state import FetchDelta, SignalOpinionCategory
from threatexchange.exchanges.impl.fb_threatexchange_api import (
    FBThreatExchangeCheckpoint,
    FBThreatExchangeIndicatorRecord,
    FBThreatExchangeOpinion,
)
from threatexchange.exchanges.impl.ncmec_api import NCMECCheckpoint
from threatexchange.exchanges.impl.stop_ncii_api import StopNCIICheckpoint, StopNCIISignalMetadata

from seawall.core.errors import Fatal
from seawall.perceptual_hashing.exchanges import formats
from seawall.perceptual_hashing.exchanges.records import ExchangeRecord, Refused, entry_id_of, parts_of

PDQ, MD5, SHA256 = "ab" * 32, "cd" * 16, "ef" * 32


def read(tmp_path: Path, name: str, content: bytes) -> tuple[list[ExchangeRecord], list[Refused]]:
    path = tmp_path / "list"
    path.write_bytes(content)
    found = list(formats.read(path, name))
    return [one for one in found if isinstance(one, ExchangeRecord)], [one for one in found if isinstance(one, Refused)]


def hashes(record: ExchangeRecord) -> dict[str, str]:
    return {kind: value.hex() for kind, value in record.hashes}


@pytest.mark.parametrize("lines", [True, False])
def test_json(tmp_path: Path, lines: bool) -> None:
    rows: list[Any] = [
        {"entry_id": "a", "hashes": {"pdq": PDQ, "md5": MD5}, "note": "A1"},
        {"entry_id": "b c", "hashes": {"sha256": SHA256}},
        {"entry_id": "gone", "hashes": {}, "deleted": True},
        {"entry_id": "empty", "hashes": {}},
        {"entry_id": "short", "hashes": {"md5": "00"}},
        {"entry_id": "unknown", "hashes": {"phash": "00"}},
        {"hashes": {"md5": MD5}},
        7,
    ]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    records, refused = read(tmp_path, "json", text.encode())
    assert [record.entry_id for record in records] == ["a", "b:20c", "gone"]
    assert hashes(records[0]) == {"pdq": PDQ, "md5": MD5}
    assert records[2].deleted
    assert [one.reason for one in refused] == ["NO_HASH", "BAD_LENGTH", "UNKNOWN_HASH", "BAD_RECORD", "BAD_RECORD"]
    assert refused[0].where == ("list line 4" if lines else "list item 4")


def test_a_broken_line_costs_that_line_and_a_broken_array_the_file(tmp_path: Path) -> None:
    good = json.dumps({"entry_id": "a", "hashes": {"md5": MD5}})
    records, refused = read(tmp_path, "json", f"{good}\n{{broken\n\n{good}".encode())
    assert (len(records), [one.reason for one in refused]) == (2, ["BAD_JSON"])
    with pytest.raises(Fatal, match="line 2: not JSON"):
        read(tmp_path, "json", b"[\n{broken")


def test_lines_of_signals(tmp_path: Path) -> None:
    text = f"pdq {PDQ}\nvideo_md5 {MD5}\nurl https://example.com\npdq 00\n\nsha256 {SHA256}\n"
    records, refused = read(tmp_path, "signals", text.encode())
    assert [hashes(record) for record in records] == [{"pdq": PDQ}, {"md5": MD5}, {"sha256": SHA256}]
    assert [(one.reason, one.where) for one in refused] == [
        ("UNKNOWN_HASH", "list line 3"),
        ("BAD_LENGTH", "list line 4"),
    ]
    assert PDQ[:16] not in records[0].entry_id, "a hash is no id: ids stand in matches"


def test_videos_as_python_threatexchange_writes_them(tmp_path: Path) -> None:
    frames = [f"{PDQ},100,0.000", f"{'00' * 32},49,1.000", f"{'ff' * 32},50,2.000"]
    bad = [["x"], [f"{PDQ},100"], [f"{PDQ},10,0.1"], {"a": 1}, [f"{PDQ[:-2]},100,0.1"]]
    lines = [f"vpdq {json.dumps(each)}" for each in (frames, *bad)]
    records, refused = read(tmp_path, "signals", "\n".join(lines).encode())
    assert [hashes(record) for record in records] == [{"vpdq": PDQ + "ff" * 32}], "a poor frame says nothing"
    assert {one.reason for one in refused} <= {"BAD_VIDEO", "NOT_HEX", "BAD_LENGTH"}
    assert len(refused) == len(bad)


def ncmec_entry(number: int, **more: Any) -> NCMECEntryUpdate:
    fields: dict[str, Any] = {
        "id": f"image{number}",
        "member_id": 42,
        "entry_type": NCMECEntryType.image,
        "deleted": False,
        "classification": "A1",
        "fingerprints": {"md5": MD5, "pdq": PDQ, "pdna": "1,2"},
        "feedback": {"Md5": [Feedback(FeedbackType.upvote, StatusResult(1, "Member"))]},
    }
    return NCMECEntryUpdate(**{**fields, **more})


def test_the_state_of_an_ncmec_exchange(tmp_path: Path) -> None:
    updates: dict[Any, Any] = {
        "42-image1": ncmec_entry(1),
        "42-image2": ncmec_entry(2, deleted=True, fingerprints={}),
        "42-image3": ncmec_entry(3, fingerprints={"md5": "00"}),
    }
    state = pickle.dumps(FetchDelta(updates, NCMECCheckpoint(1)))
    records, refused = read(tmp_path, "threatexchange", state)
    assert [(one.entry_id, one.deleted, one.note) for one in records] == [
        ("42.image1", False, "A1"),
        ("42.image2", True, ""),
    ]
    assert hashes(records[0]) == {"md5": MD5, "pdq": PDQ}
    assert [one.reason for one in refused] == ["BAD_LENGTH"]


def test_the_states_of_the_other_exchanges(tmp_path: Path) -> None:
    opinion = FBThreatExchangeOpinion(False, SignalOpinionCategory.POSITIVE_CLASS, {"tag"}, 7, 8)
    meta = {("HASH_PDQ", PDQ): FBThreatExchangeIndicatorRecord([opinion]), ("HASH_MD5", MD5): None, ("URI", "x"): None}
    records, _ = read(tmp_path, "threatexchange", pickle.dumps(FetchDelta(meta, FBThreatExchangeCheckpoint(1, 2))))
    assert [hashes(record) for record in records] == [{"pdq": PDQ}]
    stopncii: dict[Any, Any] = {
        ("pdq", PDQ): StopNCIISignalMetadata([]),
        ("raw_text", "words"): StopNCIISignalMetadata([]),
    }
    records, _ = read(tmp_path, "threatexchange", pickle.dumps(FetchDelta(stopncii, StopNCIICheckpoint(1, 2))))
    assert [hashes(record) for record in records] == [{"pdq": PDQ}]


class Called:
    """Is written as a call."""

    def __init__(self, run: Any, *arguments: Any) -> None:
        self.reduced = (run, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def test_a_state_may_name_the_members_of_enumerations(tmp_path: Path) -> None:
    # As Python 3.11.0 to 3.11.3 write them.
    updates: dict[Any, Any] = {"42-image1": ncmec_entry(1, entry_type=Called(getattr, NCMECEntryType, "image"))}
    records, refused = read(tmp_path, "threatexchange", pickle.dumps(FetchDelta(updates, NCMECCheckpoint(1))))
    assert [one.entry_id for one in records] == ["42.image1"]
    assert not refused


def test_a_state_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for content in (
        pickle.dumps(Called(os.system, f"touch {mark}")),
        pickle.dumps(Called(eval, f"open({str(mark)!r}, 'w')")),
        pickle.dumps(FetchDelta({"x": Called(os.system, f"touch {mark}")}, None)),
        pickle.dumps(FetchDelta({"x": Called(getattr, set, "pop")}, None)),
        b"cthreatexchange.exchanges.fetch_state\nos.system\n(S'true'\ntR.",
        b"\x80\x04garbage",
        b"",
        pickle.dumps(["no delta"]),
    ):
        with pytest.raises(Fatal, match="BAD_FILE"):
            read(tmp_path, "threatexchange", content)
    assert not mark.exists()


@pytest.mark.parametrize("parts", [("42", "image1"), ("1", "a.b~c d/ü%:"), ("x",)])
def test_ids_go_there_and_back(parts: tuple[str, ...]) -> None:
    assert parts_of(entry_id_of(*parts)) == list(parts)
