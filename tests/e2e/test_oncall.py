"""On-call commands against the running mesh, as an engineer types them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from seawall.local import photographs
from seawall.local.mesh import ROOMS
from seawall.runtime.broker import Output
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.topics import TopicNames
from tests.e2e.conftest import UpMesh

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

NAMES = TopicNames()
#: Of no other generation: what is found by its digest is ours.
PICTURE = photographs.encode(photographs.EDITS["darker"](photographs.picture("camera")), "png")[0]
RUBBISH = b"\xff\xfe nothing that anybody could read"


@pytest.fixture(scope="module")
def blocked(mesh: UpMesh) -> dict[str, Any]:
    """What `why` says of a blocked generation with a picture."""
    picture = mesh.home / "oncall.png"
    picture.write_bytes(PICTURE)
    sent = mesh.seawall_json("submit", "--prompt", "explicit image of a minor", "--image", str(picture))
    document: dict[str, Any] = mesh.seawall_json("why", sent["generation_id"])
    assert document["outcome"] == "BLOCK"
    return document


def test_status_shows_every_room_and_what_it_rests_on(mesh: UpMesh, blocked: dict[str, Any]) -> None:
    document = mesh.whole_status()
    rooms = {line["room"]: line for line in document["rooms"]}
    assert set(rooms) == {*ROOMS, "ledger", "console"}
    assert {line["state"] for line in rooms.values()} == {"ready"}, document
    assert document["healthy"] is True
    assert rooms["aggregator"]["lag_seconds"] is not None
    assert rooms["perceptual_hashing.retroactive"]["lag_seconds"] is None, "it settles nothing"
    rests = {one["name"] for room in ("classification", "aggregator") for one in rooms[room]["rests_on"]}
    assert rests == {"opennsfw-int8", "default"}
    text = mesh.seawall("status")
    assert text.returncode == 0
    assert "opennsfw-int8" in text.stdout, "a narrow table folds its words, not names"


def test_why_takes_what_one_has_in_hand(mesh: UpMesh, blocked: dict[str, Any]) -> None:
    (decision,) = blocked["decisions"]
    generation = decision["generation_record"]
    (record,) = decision["records"]
    handles = [
        decision["traceparent"][3:35],
        decision["traceparent"],
        hashlib.sha256(PICTURE).hexdigest(),
        f"{generation['topic']}/{generation.get('partition', 0)}/{generation.get('offset', 0)}",
        f"{record['topic']}/{record['partition']}/{record['offset']}",
    ]
    for handle in handles:
        found = mesh.seawall_json("why", handle)
        assert blocked["generation_id"] in found.get("generations", [found.get("generation_id")]), handle


@pytest.mark.parametrize("handle", ["0" * 32, "ab" * 32, "generations.v1/0/999999999", "signals.v1/77/0"])
def test_why_of_what_is_not_there_says_so_in_one_line(mesh: UpMesh, handle: str) -> None:
    done = mesh.seawall("why", handle)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "NOT_FOUND" in done.stderr


def test_tail_shows_what_passes_its_filter(mesh: UpMesh, blocked: dict[str, Any]) -> None:
    done = mesh.seawall("tail", "--since", "1h", "--outcome", "block", "--count", "1", "--json")
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (line["outcome"], line["rule_id"]) == ("BLOCK", "attempt-in-prompt")
    assert line["seconds"] > 0


def test_a_dead_letter_is_listed_shown_redriven_and_discarded(mesh: UpMesh) -> None:
    key = "oncall-e2e-rubbish"

    async def send() -> None:
        producer = KafkaBroker(mesh.kafka).producer()
        await producer.start()
        await producer.send([Output(NAMES.generations, 1, key.encode(), RUBBISH)])
        await producer.stop()

    asyncio.run(send())
    # The HOLD is written after the letters' originals were read by the aggregator; each relay has its own pace.
    rooms = {"aggregator", "classification", "perceptual_hashing", "prompt_scoring"}
    letters = until_letters(mesh, key, rooms)
    places = {(letter["source"]["partition"], letter["source"]["offset"]) for letter in letters}
    assert len(places) == 1
    assert {letter["reason"] for letter in letters} == {"UNDECODABLE"}

    held = {one["generation_id"]: one for one in mesh.seawall_json("hold", "list")["held"]}
    assert held[key]["rescanned"] is False

    shown = mesh.seawall("dlq", "show", letters[0]["dead_letter_id"][:12])
    assert "seal" in shown.stdout and "nothing that anybody" not in shown.stdout

    chosen = [letter["dead_letter_id"] for letter in letters]
    dry = mesh.seawall("dlq", "redrive", *chosen)
    assert "nothing was done: add --yes" in dry.stdout
    assert until_letters(mesh, key, rooms) == letters
    done = mesh.seawall_json("dlq", "redrive", *chosen, "--yes", "--by", "e2e")
    assert [step["act"] for step in done["steps"]] == ["repeat", "with another", "with another", "with another"]
    assert done["resolved"] == 4

    again = until_letters(mesh, key, rooms, other_than=chosen)
    assert {letter["source"]["partition"] for letter in again} == {1}, "to the same partition"
    assert {letter["source"]["offset"] for letter in again}.isdisjoint({offset for _, offset in places})
    refused = mesh.seawall("dlq", "discard")
    assert "NOTHING_CHOSEN" in refused.stderr
    mesh.seawall("dlq", "discard", *(letter["dead_letter_id"] for letter in again), "--yes")
    assert [one for one in mesh.seawall_json("dlq", "list")["dead_letters"] if one["generation_id"] == key] == []


def until_letters(mesh: UpMesh, key: str, rooms: set[str], other_than: list[str] | None = None) -> list[dict[str, Any]]:
    """The letters of a key, once every room has written its own; looking is all one can do."""
    found: list[dict[str, Any]] = []
    for _ in range(30):
        listed = mesh.seawall_json("dlq", "list")["dead_letters"]
        found = [
            one for one in listed if one["generation_id"] == key and one["dead_letter_id"] not in (other_than or [])
        ]
        if {one["room"] for one in found} == rooms:
            return found
    raise AssertionError(f"not every room has set it aside: {found}")


def test_doctor_finds_nothing_on_a_mesh_that_is_well(mesh: UpMesh) -> None:
    done = mesh.seawall("doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    # A machine's disk is its own affair, and an earlier test may have sent what a service refused.
    assert [one for one in findings if one["check"] not in ("disk", "refused", "telemetry")] == []


def test_commands_take_bad_input_in_one_line(mesh: UpMesh) -> None:
    for arguments, reason in (
        (("tail", "--outcome", "MAYBE"), "BAD_OUTCOME"),
        (("tail", "--since", "yesterday"), "BAD_TIME"),
        (("hold", "list", "--since", "soon"), "BAD_TIME"),
        (("dlq", "show", "no"), "NOT_FOUND"),
        (("dlq", "redrive", "zzzzzzzz", "--yes"), "NOT_FOUND"),
        (("restart", "nothing"), "NO_ROOM"),
    ):
        done = mesh.seawall(*arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), (arguments, done.stderr)
        assert reason in done.stderr
