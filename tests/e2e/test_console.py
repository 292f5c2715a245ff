"""The console as `seawall up --with console` starts it: every decision is there, whole, and no content."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from seawall.local.demo import Summary
from seawall.local.mesh import ROOMS
from seawall.local.samples import load_catalogue, prompts
from seawall.local.verdict import outcome_name
from tests.e2e.conftest import UpMesh
from tests.support.console import csrf_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

PATIENCE_SECONDS = 90.0


@pytest.fixture(scope="module")
def browser(mesh: UpMesh, samples_run: Summary) -> Iterator[httpx2.Client]:
    """Signed in by the link that the room left, once the ledger has read everything."""
    link = (mesh.home / "run" / "console.link").read_text("utf-8").strip()
    assert link in (mesh.home / "up.log").read_text("utf-8")
    address, _, token = link.partition("/login?token=")
    with httpx2.Client(base_url=address, timeout=30) as client:
        form = {"csrf": csrf_of(client.get("/login").text), "token": token}
        assert client.post("/login", data=form).status_code == 303
        give_up = time.monotonic() + PATIENCE_SECONDS
        while (now := get(client, "now"))["ledger_lag_seconds"] != 0 or not now["ledger_lag_known"]:
            assert time.monotonic() < give_up, now
            time.sleep(0.5)  # a look is all there is
        yield client


def get(client: httpx2.Client, path: str) -> Any:
    answer = client.get(f"/api/v1/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_decision_is_there_and_whole(browser: httpx2.Client, samples_run: Summary) -> None:
    found: dict[str, str] = {}
    after = ""
    while after is not None:
        page = get(browser, f"decisions?limit=500{f'&after={after}' if after else ''}")
        after = page["after"]
        for row in page["decisions"]:
            found.setdefault(row["generation_id"], row["outcome"])
    decided = {one.generation_id: one.decision for one in samples_run.results if one.decision is not None}
    assert len(decided) > 40
    assert decided.keys() <= found.keys()
    by_outcome = {outcome_name(decision.outcome): key for key, decision in decided.items()}
    assert len(by_outcome) >= 3
    for outcome, generation_id in by_outcome.items():
        why = get(browser, f"decisions/{generation_id}")
        assert (why["outcome"], why["source"], why["notes"]) == (outcome, "ledger", [])
        assert all(one["complete"] and one["hops"] for one in why["decisions"])
        assert browser.get(f"/decisions/{generation_id}").status_code == 200


def test_the_rooms_of_this_machine_are_known(browser: httpx2.Client) -> None:
    rooms = {room["room"]: room["ready"] for room in get(browser, "now")["rooms"]}
    assert rooms.keys() >= {*ROOMS, "ledger", "console"}
    assert {name for name, ready in rooms.items() if not ready} == set()


def test_lists_models_and_dead_letters_are_named(browser: httpx2.Client) -> None:
    kinds = {one["kind"] for one in get(browser, "artefacts")["artefacts"]}
    assert kinds >= {"model", "list", "term pack"}
    letters = get(browser, "dead-letters")
    assert {one["reason"] for one in letters["counts"]} >= {"UNDECODABLE"}


def test_no_page_holds_content(browser: httpx2.Client, samples_run: Summary) -> None:
    texts = [text for text in prompts(load_catalogue()) if len(text) > 12]
    assert len(texts) > 100
    pages = [browser.get(path).text for path in ("/", "/decisions", "/dead-letters", "/policies", "/artefacts")]
    pages += [browser.get(f"/decisions/{one.generation_id}").text for one in samples_run.results if one.decision][:40]
    assert [text for text in texts if any(text in page for page in pages)] == []
