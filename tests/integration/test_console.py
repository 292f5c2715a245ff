"""The console as a browser without a screen meets it: who may see what, what is found, and what when a part is away."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.console import access, search, sign_in
from seawall.console.access import Role, User
from seawall.console.protection import CSP
from seawall.console.shapes import RoomNow
from tests.support.console import (
    Console,
    an_hour,
    csrf_of,
    letter,
    open_console,
    recent,
)
from tests.support.ledger_rows import ALLOW, BLOCK, HOLD, REVIEW, WITHDRAWN, word

PAGES = ("/", "/decisions", "/decisions/g-5", "/dead-letters", "/policies", "/artefacts", "/decisions.csv")
ANSWERS = tuple(f"/api/v1/{name}" for name in ("now", "decisions", "decisions/g-5", "dead-letters", "policies"))


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    made = await open_console(tmp_path, an_hour(160), [letter(n, ago=60 + n) for n in range(3)])
    yield made
    await made.close()


def become(console: Console, monkeypatch: pytest.MonkeyPatch, *roles: Role, tenant: str | None = None) -> None:
    """Whoever redeems the token is this user."""
    real = access.sign_in
    monkeypatch.setattr(
        access,
        "sign_in",
        lambda request, _, settings: real(request, User("someone", "Someone", roles, tenant), settings),
    )


# ---- who may come in -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, *ANSWERS, "/api/v1/openapi.json", "/nothing"])
async def test_nobody_sees_a_page_without_signing_in(console: Console, path: str) -> None:
    async with console.client() as client:
        answer = await client.get(path)
    if path.startswith("/api/"):
        assert (answer.status_code, answer.json()["reason"]) == (401, "SIGN_IN")
    elif path == "/nothing":
        assert answer.status_code == 404
    else:
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?next=")
    assert "g-5" not in answer.text


async def test_login_and_health_are_all_that_is_anonymous(console: Console) -> None:
    def paths(routes: Any) -> set[str]:
        return {path for one in routes if isinstance(path := getattr(one, "path", None), str)}

    anonymous = set()
    async with console.client() as client:
        for path in paths(console.app.routes) | {"/", "/login", "/healthz"}:
            if "{" not in path and (await client.get(path)).status_code == 200:
                anonymous.add(path)
    assert anonymous == {"/login", "/healthz"}


async def test_the_token_is_good_once_and_the_next_is_in_the_file(console: Console, tmp_path: Path) -> None:
    assert console.token is not None
    link = console.token.link
    first = await console.signed_in()
    assert (await first.get("/")).status_code == 200
    async with console.client() as client:
        form = {"csrf": csrf_of((await client.get("/login")).text), "token": link.partition("token=")[2]}
        assert (await client.post("/login", data=form)).status_code == 401
    file = tmp_path / "console.link"
    assert file.read_text().strip() == console.token.link != link
    assert file.stat().st_mode & 0o777 == 0o600


async def test_a_token_is_not_redeemed_by_looking_at_its_link(console: Console) -> None:
    """What previews a link in a chat must not use it up."""
    assert console.token is not None
    async with console.client() as client:
        page = await client.get(console.token.link)
        assert page.status_code == 200
        assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize(
    ("role", "seen"),
    [
        (Role.VIEWER, {"/", "/policies", "/artefacts"}),
        (Role.REVIEWER, {"/", "/policies", "/artefacts", "/decisions", "/decisions/g-5"}),
        (Role.ON_CALL, {"/", "/policies", "/artefacts", "/decisions", "/decisions/g-5", "/dead-letters"}),
        (Role.ADMIN, set(PAGES)),
    ],
)
async def test_a_role_sees_its_pages_and_no_others(
    console: Console, monkeypatch: pytest.MonkeyPatch, role: Role, seen: set[str]
) -> None:
    become(console, monkeypatch, role)
    client = await console.signed_in()
    answers = {path: (await client.get(path)).status_code for path in PAGES}
    assert {path for path, status in answers.items() if status == 200} == seen
    assert {status for path, status in answers.items() if path not in seen} <= {403}
    shown = set(re.findall(r'<a href="([^"]+)" data-key', (await client.get("/")).text))
    assert shown == {path for path in seen if path.count("/") == 1 and "." not in path}


async def test_another_tenants_decision_is_not_found_and_no_search_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = recent(1, ago=4, outcome=BLOCK, kind=decision_pb2.DECISION_KIND_AMENDMENT, tenant_id="", actor_id="")
    late.decision_id = "e" * 32
    theirs_late = recent(2, ago=4, outcome=BLOCK, kind=decision_pb2.DECISION_KIND_AMENDMENT, tenant_id="", actor_id="")
    theirs_late.decision_id = "f" * 32
    made = [recent(1, ago=9, tenant_id="ours"), recent(2, ago=8, tenant_id="theirs"), late, theirs_late]
    console = await open_console(tmp_path, made)
    become(console, monkeypatch, Role.ADMIN, tenant="ours")
    client = await console.signed_in()
    # A late signal's decision names no tenant: it is theirs whose generation it is about.
    ours = (await client.get("/api/v1/decisions/g-1")).json()
    assert [one["kind"] for one in ours["decisions"]] == ["late signal", "joint"]
    for base in ("/decisions/", "/api/v1/decisions/"):
        other, unknown = await client.get(f"{base}g-2"), await client.get(f"{base}g-77")
        assert other.status_code == unknown.status_code == 404
        assert other.text.replace("g-2", "g-77") == unknown.text
    for query in ("", "id=g-2", "tenant=theirs", "actor=actor-2", "since=1h"):
        found = (await client.get(f"/api/v1/decisions?{query}")).json()["decisions"]
        assert {one["generation_id"] for one in found} <= {"g-1"}
    now = (await client.get("/api/v1/now")).json()
    assert sum(one["decisions"] for one in now["outcomes"]) == 1
    assert now["dead_letters"] is None
    assert (await client.get("/dead-letters")).status_code == 403
    assert "theirs" not in (await client.get("/decisions.csv?tenant=theirs")).text
    # Nor where the topic itself is searched.
    console.state.db.dispose()
    (tmp_path / "ledger.db").unlink()
    assert (await client.get("/api/v1/decisions/g-2")).status_code == 404
    from_kafka = (await client.get("/api/v1/decisions/g-1")).json()
    assert (from_kafka["source"], len(from_kafka["decisions"])) == ("kafka", 2)


# ---- sessions and forms ----------------------------------------------------------------------------------------------


async def test_a_session_is_signed_and_kept_from_scripts(console: Console) -> None:
    client = await console.signed_in()
    page = await client.get("/")
    assert page.status_code == 200
    (cookie,) = [one for one in client.cookies.jar if one.name == "seawall_session"]
    assert cookie.has_nonstandard_attr("httponly")
    assert cookie.get_nonstandard_attr("samesite") == "lax"
    value = client.cookies["seawall_session"]
    forged = "A" if value[10] != "A" else "B"
    client.cookies.clear()
    client.cookies.set("seawall_session", value[:10] + forged + value[11:])
    assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize("gone", [31 * 60, 13 * 3600, -3600])
async def test_a_session_ends_by_rest_by_age_and_when_clocks_are_set_back(
    console: Console, monkeypatch: pytest.MonkeyPatch, gone: float
) -> None:
    client = await console.signed_in()
    assert (await client.get("/")).status_code == 200
    later = time.time() + gone
    monkeypatch.setattr("seawall.console.access.time.time", lambda: later)
    answer = await client.get("/decisions?outcome=HOLD")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=%2Fdecisions%3Foutcome%3DHOLD"
    part = await client.get("/", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["HX-Redirect"][:6]) == (401, "/login")


async def test_a_session_that_is_used_goes_on_to_its_longest(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await console.signed_in()
    begin = time.time()
    for minutes in range(20, 12 * 60, 20):
        monkeypatch.setattr("seawall.console.access.time.time", lambda at=begin + minutes * 60: at)
        assert (await client.get("/policies")).status_code == 200, minutes
    monkeypatch.setattr("seawall.console.access.time.time", lambda: begin + 12 * 3600 + 60)
    assert (await client.get("/policies")).status_code == 303


@pytest.mark.parametrize("path", ["/views", "/views/delete", "/logout", "/login"])
@pytest.mark.parametrize("csrf", [None, "", "another", "\u00e9" * 20])
async def test_a_form_without_the_sessions_token_changes_nothing(console: Console, path: str, csrf: str | None) -> None:
    client = await console.signed_in()
    form = {"name": "mine", "query": "outcome=HOLD"} | ({} if csrf is None else {"csrf": csrf})
    answer = await client.post(path, data=form)
    assert answer.status_code == 403
    assert "mine" not in (await client.get("/decisions")).text


async def test_signing_out_ends_it(console: Console) -> None:
    client = await console.signed_in()
    form = {"csrf": csrf_of((await client.get("/")).text)}
    assert (await client.post("/logout", data=form)).status_code == 303
    assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize(
    "given", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/a\nb"]
)
def test_nobody_is_sent_elsewhere_after_signing_in(given: str) -> None:
    assert sign_in.local_path(given) == "/"
    assert sign_in.local_path("/decisions?outcome=HOLD") == "/decisions?outcome=HOLD"


async def test_every_answer_is_guarded(console: Console) -> None:
    client = await console.signed_in()
    for path in (*PAGES, "/login", "/nothing", "/api/v1/now", "/static/console.js", "/healthz"):
        headers = (await client.get(path)).headers
        assert headers["content-security-policy"] == CSP, path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == (
            "no-store" if "static" not in path else "public, max-age=31536000, immutable"
        )
    assert "unsafe" not in CSP


async def test_pages_hold_no_inline_script_or_style(console: Console) -> None:
    client = await console.signed_in()
    for path in PAGES[:-1]:
        html = (await client.get(path)).text
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html, re.IGNORECASE), path
        assert re.findall(r"<script(?![^>]*src=)", html) == []


async def test_a_host_that_is_not_ours_and_a_body_too_large_are_refused(console: Console) -> None:
    async with console.client() as client:
        assert (await client.get("/login", headers={"Host": "evil.example"})).status_code == 400
        # A probe asks by address.
        assert (await client.get("/healthz", headers={"Host": "192.0.2.7:8600"})).status_code == 200
        big = await client.post("/login", content=b"x" * 70_000, headers={"Content-Type": "text/plain"})
        assert big.status_code == 413


# ---- searches --------------------------------------------------------------------------------------------------------


async def test_searches_find_what_on_call_knows(console: Console) -> None:
    client = await console.signed_in()

    async def found(query: str) -> list[str]:
        answer = await client.get(f"/api/v1/decisions?{query}")
        assert answer.status_code == 200, answer.text
        return [one["generation_id"] for one in answer.json()["decisions"]]

    assert await found("id=g-5") == ["g-5"]
    assert await found(f"id={6:032x}") == ["g-5"]
    assert await found(f"id={(5).to_bytes(32, 'big').hex()}") == ["g-5"]
    assert await found("outcome=HOLD") == ["g-125", "g-85", "g-45", "g-5"]
    assert await found("rule=known-hash&actor=actor-2") == ["g-23"]
    assert await found("artefact=demo@17") == ["g-143", "g-103", "g-63", "g-23"]
    assert await found("artefact=demo@18") == []
    assert await found("since=1m&until=1s") == ["g-159"]
    assert await found("limit=2") == ["g-159", "g-158"]


async def test_pages_of_a_search_follow_each_other(console: Console) -> None:
    client = await console.signed_in()
    seen, path = [], "/decisions"
    while path:
        page = (await client.get(path)).text
        seen += re.findall(r'<a href="/decisions/(g-\d+)">', page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        path = older[1].replace("&amp;", "&") if older else ""
    assert seen == [f"g-{n}" for n in reversed(range(160))]


HOSTILE = [
    "'; DROP TABLE decisions; --",
    "<script>alert(1)</script>",
    "\x00",
    "%' OR 1=1",
    "\U0001f600" * 30,
    "{{7*7}}",
    "x" * 5_000,
    "\ud7ff\u202e",
]


@pytest.mark.parametrize("name", [*search.FIELDS, "after"])
async def test_hostile_searches_find_nothing_and_break_nothing(console: Console, name: str) -> None:
    client = await console.signed_in()
    for value in HOSTILE:
        page = await client.get("/decisions", params={name: value})
        assert page.status_code in (200, 400), value
        assert "<script>alert" not in page.text
        assert "49" not in re.findall(r'value="([^"]*)"', page.text)
        answer = await client.get("/api/v1/decisions", params={name: value})
        assert answer.status_code in (200, 400, 422), value
        assert answer.json().get("decisions", []) == []
    assert (await client.get("/api/v1/decisions?id=g-5")).json()["decisions"]


async def test_hostile_ids_are_not_found(console: Console) -> None:
    client = await console.signed_in()
    for value in HOSTILE:
        for base in ("/decisions/", "/api/v1/decisions/"):
            answer = await client.get(base + quote(value, safe=""))
            assert answer.status_code in (404, 422), value
            assert "<script>alert" not in answer.text


async def test_hostile_ids_that_were_decided_are_shown_as_text(tmp_path: Path) -> None:
    evil = recent(1, ago=5, actor_id="<img src=x onerror=alert(1)>", rule_id="=cmd|' /C calc'!A0")
    evil.rule_id = "=1+1"
    evil.model.name = "\u202emodel<b>" + "m" * 300
    console = await open_console(tmp_path, [evil])
    client = await console.signed_in()
    for path in ("/decisions", "/decisions/g-1", "/policies", "/"):
        html = (await client.get(path)).text
        assert "<img src=x" not in html and "model<b>" not in html, path
    (row,) = csv.DictReader(io.StringIO((await client.get("/decisions.csv")).text))
    assert row["rule_id"] == "'=1+1"


async def test_a_wrong_field_is_named_and_what_was_typed_stays(console: Console) -> None:
    client = await console.signed_in()
    page = await client.get("/decisions", params={"since": "yesterday", "actor": "actor-3"})
    assert page.status_code == 400
    assert "write an instant" in page.text
    assert 'value="actor-3"' in page.text
    assert 'aria-invalid="true"' in page.text


async def test_views_are_kept_for_their_owner(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await console.signed_in()
    csrf = csrf_of((await client.get("/decisions")).text)
    await client.post("/views", data={"csrf": csrf, "name": "Held & odd", "query": "outcome=HOLD&evil=1&after=x"})
    page = (await client.get("/decisions")).text
    assert '<a href="/decisions?outcome=HOLD">Held &amp; odd</a>' in page
    become(console, monkeypatch, Role.ADMIN)
    assert "Held &amp; odd" not in (await (await console.signed_in()).get("/decisions")).text
    await client.post("/views/delete", data={"csrf": csrf, "name": "Held & odd"})
    assert "Held &amp; odd" not in (await client.get("/decisions")).text
    refused = await client.post("/views", data={"csrf": csrf, "name": "  ", "query": ""})
    assert refused.status_code == 400


async def test_an_export_is_the_search_and_says_when_it_is_not_all(tmp_path: Path) -> None:
    console = await open_console(tmp_path, an_hour(160), export_rows=100)
    client = await console.signed_in()
    held = list(csv.DictReader(io.StringIO((await client.get("/decisions.csv?outcome=HOLD")).text)))
    assert [row["generation_id"] for row in held] == ["g-125", "g-85", "g-45", "g-5"]
    everything = (await client.get("/decisions.csv")).text.splitlines()
    assert len(everything) == 102
    assert everything[-1].startswith("# incomplete,the first 100")


async def test_searches_looks_and_exports_are_audited(console: Console, capfd: pytest.CaptureFixture[str]) -> None:
    client = await console.signed_in()
    await client.get("/decisions?actor=actor-3")
    await client.get("/decisions/g-5")
    await client.get("/decisions.csv?rule=known-hash")
    said = capfd.readouterr().err
    for act, about in (
        ("sign_in", "local"),
        ("search", "actor=actor-3"),
        ("look", "g-5"),
        ("export", "rule=known-hash"),
    ):
        assert re.search(rf'"act": "{act}".*{about}', said), act


# ---- a decision ------------------------------------------------------------------------------------------------------


async def test_a_decision_explains_itself(console: Console) -> None:
    client = await console.signed_in()
    page = (await client.get("/decisions/g-23")).text
    for part in (
        "known-hash",
        "demo/stand-in-017",
        "distance 6",
        "signals.v1",
        'class="fall"',
        "h-inference",
        "b" * 12,
    ):
        assert part in page, part
    answer = (await client.get("/api/v1/decisions/g-23")).json()
    (one,) = answer["decisions"]
    assert (answer["source"], answer["outcome"], one["complete"]) == ("ledger", "BLOCK_AND_REPORT", True)
    assert "because the policy's rule “known-hash” held (known match)" in one["words"]
    assert [stage["stage"] for stage in one["stages"]] == ["prompt_scoring", "perceptual_hashing", "classification"]
    assert [hop["what"] for hop in one["hops"]][0::5] == ["generation", "decision"]


async def test_a_persons_word_stands_above_what_was_decided(tmp_path: Path) -> None:
    made = [recent(n, ago=60 - n, outcome=BLOCK) for n in range(4)]
    late = recent(1, ago=5, outcome=REVIEW, kind=decision_pb2.DECISION_KIND_AMENDMENT, decision_id="f" * 32)
    late.tenant_id = ""
    late.generation_record.CopyFrom(made[1].generation_record)
    words = [word(made[0], ALLOW), word(made[1], ALLOW), word(made[2], WITHDRAWN)]
    console = await open_console(tmp_path, [*made, late], words=words)
    client = await console.signed_in()
    said = {n: (await client.get(f"/api/v1/decisions/g-{n}")).json() for n in range(4)}
    assert [(one["outcome"], one["decided"]) for one in said.values()] == [
        ("ALLOW", "BLOCK"),
        # Nobody has looked at what came since.
        ("REVIEW", "BLOCK"),
        ("BLOCK", "BLOCK"),
        ("BLOCK", "BLOCK"),
    ]
    told = said[0]["override"]
    assert (told["by"], told["reason_code"], told["before"]) == ("ada", "FALSE_POSITIVE", "BLOCK")
    assert [said[n]["override"] and said[n]["override"]["surpassed"] for n in range(4)] == [False, True, False, None]
    page = (await client.get("/decisions/g-0")).text
    parts = ("A person's word", "ada", "FALSE_POSITIVE", "It was decided: ")
    assert sorted(page.index(part) for part in parts) == [page.index(part) for part in parts]
    assert "was decided since" in (await client.get("/decisions/g-1")).text
    assert "taken back" in (await client.get("/decisions/g-2")).text
    # Without the ledger too.
    console.state.db.dispose()
    (tmp_path / "ledger.db").unlink()
    answer = (await client.get("/api/v1/decisions/g-0")).json()
    assert (answer["source"], answer["outcome"], answer["override"]["by"]) == ("kafka", "ALLOW", "ada")
    await console.close()


async def test_what_is_overridden_is_found_and_marked(tmp_path: Path) -> None:
    made = [recent(n, ago=60 - n, outcome=BLOCK) for n in range(4)]
    console = await open_console(tmp_path, made, words=[word(made[1], ALLOW), word(made[2], WITHDRAWN)])
    client = await console.signed_in()
    (one,) = (await client.get("/api/v1/decisions?overridden=true")).json()["decisions"]
    assert (one["generation_id"], one["outcome"], one["override"], one["override_by"]) == (
        "g-1",
        "BLOCK",
        "ALLOW",
        "ada",
    )
    everything = (await client.get("/api/v1/decisions")).json()["decisions"]
    assert [row["override"] for row in everything] == ["", "", "ALLOW", ""]
    assert (await client.get("/decisions?overridden=yes")).text.count("overridden: ") == 1
    (line,) = csv.DictReader(io.StringIO((await client.get("/decisions.csv?overridden=yes")).text))
    assert (line["override"], line["override_by"]) == ("ALLOW", "ada")
    assert (await client.get("/decisions?overridden=perhaps")).status_code == 400
    await console.close()


async def test_another_tenants_word_on_the_same_id_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = recent(1, ago=9, outcome=BLOCK, tenant_id="a"), recent(1, ago=8, outcome=BLOCK, tenant_id="b")
    theirs.decision_id = "e" * 32
    console = await open_console(tmp_path, [ours, theirs], words=[word(theirs, ALLOW)])
    become(console, monkeypatch, Role.REVIEWER, tenant="a")
    client = await console.signed_in()
    answer = (await client.get("/api/v1/decisions/g-1")).json()
    assert (answer["outcome"], answer["override"]) == ("BLOCK", None)
    assert [row["override"] for row in (await client.get("/api/v1/decisions")).json()["decisions"]] == [""]
    assert (await client.get("/api/v1/decisions?overridden=true")).json()["decisions"] == []
    await console.close()


async def test_a_decision_shows_no_hash_of_what_it_was_about(console: Console) -> None:
    """The ledger finds by it; no page hands it out."""
    client = await console.signed_in()
    digest = (23).to_bytes(32, "big").hex()
    for path in ("/decisions/g-23", "/api/v1/decisions/g-23", "/decisions", "/decisions.csv"):
        assert digest not in (await client.get(path)).text


async def test_links_lead_to_the_trace_and_the_log(tmp_path: Path) -> None:
    links = {"trace": "https://traces.example/t/{trace_id}", "log": "https://logs.example/?q={generation_id}"}
    console = await open_console(tmp_path, [recent(1, ago=5)], links=links)
    page = (await (await console.signed_in()).get("/decisions/g-1")).text
    assert f'href="https://traces.example/t/{2:032x}"' in page
    assert 'href="https://logs.example/?q=g-1"' in page


async def test_what_retention_has_deleted_is_told_from_the_ledgers_summary(console: Console) -> None:
    client = await console.signed_in()
    console.broker._topics["decisions.v1"].log[1].clear()
    answer = (await client.get("/api/v1/decisions/g-23")).json()
    (one,) = answer["decisions"]
    assert (one["complete"], one["outcome"], answer["notes"] != []) == (False, "BLOCK_AND_REPORT", True)
    assert one["signals"][1]["items"][0]["matches"][0]["entry_id"] == "stand-in-017"
    assert (await client.get("/decisions/g-23")).status_code == 200


# ---- what is away ----------------------------------------------------------------------------------------------------


async def test_without_the_database_pages_say_so_and_why_answers_from_kafka(console: Console, tmp_path: Path) -> None:
    client = await console.signed_in()
    console.state.db.dispose()
    (tmp_path / "ledger.db").unlink()
    console.rooms.rooms = [RoomNow(room="aggregator", ready=True)]
    await console.state.watch.look()
    for path in ("/", "/decisions", "/dead-letters", "/policies", "/artefacts"):
        page = await client.get(path)
        assert page.status_code == 503, path
        assert "The ledger does not answer" in page.text
    assert "aggregator" in (await client.get("/")).text
    page = await client.get("/decisions/g-23")
    assert page.status_code == 200
    assert "known-hash" in page.text and "read from decisions.v1 itself" in page.text
    assert (await client.get("/api/v1/decisions")).json()["reason"] == "LEDGER_NOT_MIGRATED"
    assert (await client.get("/decisions.csv")).text.splitlines()[-1].startswith("# incomplete")


async def test_without_kafka_the_ledger_answers_and_lag_is_not_known(console: Console) -> None:
    client = await console.signed_in()
    console.broker.unavailable = True
    await console.state.watch.look()
    page = await client.get("/")
    assert "Kafka does not answer the console" in page.text
    assert (await client.get("/decisions/g-23")).status_code == 200
    # An id that the ledger lacks may be in Kafka: nobody can say that it does not exist.
    assert (await client.get("/decisions/g-999")).status_code == 503
    now = (await client.get("/api/v1/now")).json()
    assert now["ledger_lag_known"] is False


async def test_without_either_the_page_says_that_it_cannot_say(console: Console, tmp_path: Path) -> None:
    client = await console.signed_in()
    console.state.db.dispose()
    (tmp_path / "ledger.db").unlink()
    console.broker.unavailable = True
    page = await client.get("/decisions/g-23")
    assert page.status_code == 503
    assert "seawall why g-23" in page.text


async def test_a_ledger_an_hour_behind_says_so_and_newer_decisions_are_found_in_kafka(tmp_path: Path) -> None:
    old = [recent(n, ago=3_700 + n) for n in range(8)]
    console = await open_console(tmp_path, [*old, recent(100, ago=5, outcome=BLOCK)], in_ledger=8)
    client = await console.signed_in()
    for path in ("/", "/decisions", "/policies", "/dead-letters"):
        assert re.search(r"The ledger is 1 h 2 min behind", (await client.get(path)).text), path
    assert (await client.get("/api/v1/decisions?id=g-100")).json()["decisions"] == []
    found = (await client.get("/api/v1/decisions/g-100")).json()
    assert (found["source"], found["outcome"]) == ("kafka", "BLOCK")
    assert (await client.get("/api/v1/decisions/g-101")).status_code == 404


async def test_a_ledger_that_has_read_nothing_says_so_and_kafka_answers(tmp_path: Path) -> None:
    console = await open_console(tmp_path, [recent(1, ago=5)], in_ledger=0)
    client = await console.signed_in()
    now = (await client.get("/api/v1/now")).json()
    assert [one["text"] for one in now["problems"]] == ["The ledger has read nothing yet"]
    assert (await client.get("/api/v1/decisions/g-1")).json()["source"] == "kafka"


async def test_an_empty_mesh_is_well(tmp_path: Path) -> None:
    client = await (await open_console(tmp_path)).signed_in()
    now = (await client.get("/api/v1/now")).json()
    assert (now["problems"], now["ledger_lag_seconds"]) == ([], 0.0)
    for path in ("/", "/decisions", "/dead-letters", "/policies", "/artefacts"):
        assert (await client.get(path)).status_code == 200


async def test_a_ledger_that_has_read_all_is_not_behind_however_old_its_last_record(tmp_path: Path) -> None:
    console = await open_console(tmp_path, [recent(1, ago=7_200)])
    now = (await (await console.signed_in()).get("/api/v1/now")).json()
    assert (now["ledger_lag_seconds"], now["ledger_lag_known"], now["problems"]) == (0.0, True, [])


async def test_clocks_that_differ_are_said(tmp_path: Path) -> None:
    console = await open_console(tmp_path, [recent(1, ago=-300)])
    now = (await (await console.signed_in()).get("/api/v1/now")).json()
    assert [one["text"] for one in now["problems"]] == ["Log times are 5 min ahead of this machine's clock"]
    assert now["ledger_lag_seconds"] == 0.0


# ---- now -------------------------------------------------------------------------------------------------------------


async def test_now_says_what_is_wrong_the_gravest_first(tmp_path: Path) -> None:
    made = [recent(n, ago=1_500 - n, outcome=HOLD if n % 3 == 0 else ALLOW, took_ms=30_000) for n in range(60)]
    made += [recent(100 + n, ago=200 + n, took_ms=30_000) for n in range(10)]
    console = await open_console(tmp_path, made, [letter(1, ago=30)])
    console.rooms.rooms = [
        RoomNow(room="aggregator", ready=True, lag_seconds=90.0),
        RoomNow(room="classification.relay", ready=True, halted="FUSE_TRIPPED"),
        RoomNow(room="perceptual_hashing", ready=False, why="NO_BANKS: none is loaded", clock_ahead_seconds=-9.0),
        RoomNow(room="prompt_scoring", ready=None, why="Connection refused: it is gone"),
    ]
    await console.state.watch.look()
    now = (await (await console.signed_in()).get("/api/v1/now")).json()
    said = [(one["level"], one["text"]) for one in now["problems"]]
    # How long it is depends on the bounds that latencies are counted by.
    level, slow = said.pop(6)
    assert level == "warning" and slow.startswith("1 decision in 100 takes longer than ")
    assert said == [
        ("critical", "aggregator is 90 s behind"),
        ("critical", "classification.relay stands still: FUSE_TRIPPED"),
        ("critical", "perceptual_hashing is not ready: NO_BANKS: none is loaded"),
        ("critical", "prompt_scoring does not answer"),
        ("critical", "29% of the last hour's decisions are holds"),
        ("warning", "The clock of perceptual_hashing is 9.0 s behind this one's"),
        ("warning", "1 dead letter in the last hour"),
    ]
    meanings = [one["meaning"] for one in now["problems"]]
    assert "`seawall banks stat`" in meanings[2] and "Connection refused" in meanings[3]
    assert now["open_holds"] == 20


async def test_an_old_list_is_said(tmp_path: Path) -> None:
    old = recent(23, ago=20 * 86_400, outcome=decision_pb2.OUTCOME_BLOCK_AND_REPORT)
    console = await open_console(tmp_path, [old, recent(1, ago=5)])
    client = await console.signed_in()
    now = (await client.get("/api/v1/now")).json()
    assert [one["text"] for one in now["problems"]] == ["List demo has not changed for 20 days"]
    artefacts = (await client.get("/api/v1/artefacts")).json()["artefacts"]
    assert {one["name"]: one["kind"] for one in artefacts}["demo"] == "list"


async def test_policies_count_rules_and_what_shadow_said(console: Console) -> None:
    found = (await (await console.signed_in()).get("/api/v1/policies?hours=2")).json()
    (bundle,) = found["bundles"]
    assert {rule["rule_id"]: rule["decisions"] for rule in bundle["rules"]}["known-hash"] == 4
    (shadow,) = found["shadows"]
    assert (shadow["name"], shadow["agreement"], shadow["decisions"]) == ("next", 0.0, 4)


async def test_dead_letters_show_their_kind_and_not_what_they_hold(console: Console) -> None:
    client = await console.signed_in()
    page = (await client.get("/dead-letters?room=classification.relay&reason=UNDECODABLE")).text
    assert page.count("dead_letters.v1/0/") == 3
    assert "sealed original" not in page
    assert "There is none like that" in (await client.get("/dead-letters?room=another")).text


async def test_a_dead_letter_that_was_dealt_with_is_not_listed_as_left(tmp_path: Path) -> None:
    mark = letter(0, ago=5)
    mark.resolution, mark.resolved_by = dead_letter_pb2.RESOLUTION_REDRIVEN, "night-shift"
    console = await open_console(tmp_path, an_hour(40), [letter(0, ago=60), letter(1, ago=50), mark])
    client = await console.signed_in()
    left = (await client.get("/api/v1/dead-letters")).json()
    assert [one["source"] for one in left["letters"]] == ["generations.v1/0/1"]
    assert [one["letters"] for one in left["counts"]] == [1]
    assert (await client.get("/api/v1/now")).json()["dead_letters"] == 1
    (done,) = (await client.get("/api/v1/dead-letters?resolved=true")).json()["letters"]
    assert (done["source"], done["became"], done["by"]) == ("generations.v1/0/0", "redriven", "night-shift")
    page = (await client.get("/dead-letters?resolved=true")).text
    assert "redriven" in page and "night-shift" in page
    await console.close()


async def test_a_bug_is_an_answer_that_tells_nothing(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a value that nobody may read")

    monkeypatch.setattr("seawall.console.tables.policies", broken)
    client = await console.signed_in()
    for path in ("/policies", "/api/v1/policies"):
        answer = await client.get(path)
        assert answer.status_code == 500
        assert "nobody may read" not in answer.text
        assert answer.headers["content-security-policy"] == CSP
