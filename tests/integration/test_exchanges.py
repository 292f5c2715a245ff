"""NCMEC's exchange against a local fake of it, faults included. Every listed hash is that of nothing."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal, Poison, Retryable, SeawallError
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.exchanges import credentials, ncmec, pull
from seawall.perceptual_hashing.exchanges.ncmec import NcmecExchange
from seawall.perceptual_hashing.exchanges.pull import Pull, PullReport
from seawall.perceptual_hashing.exchanges.settings import ExchangeSettings
from seawall.perceptual_hashing.exchanges.transport import BoundedSession, HttpSettings, check_url
from tests.support.ncmec import PASSWORD, USER, Answer, Entry, FakeNcmec, Request, fake_ncmec, utc

BANK = "ncmec-test"
#: Fixed: where ranges are halved follows from it, and an entry at such a place stands in both halves.
NOW = 1_790_000_000


def now() -> float:
    """The clock of every pull that names no other: it stands still, however long the suite took to come here."""
    return float(NOW)


SETTINGS = ExchangeSettings.model_validate(
    {
        "kind": "ncmec",
        "environment": "test_NGO_Generative_AI",
        "bank": {"name": BANK, "source": "a fake", "category": "stand-in", "licence": "CC0-1.0"},
    }
)
HTTP = HttpSettings(timeout_seconds=5, attempts=4, pause_seconds=0.01, max_pause_seconds=0.02)


def hex_of(number: int, length: int) -> str:
    return number.to_bytes(length, "big").hex()


def entry(number: int, at: int | None = None, **more: Any) -> Entry:
    """A listed picture with three hashes of a number."""
    prints = {"md5": hex_of(number, 16), "sha1": hex_of(number, 20), "pdq": hex_of(number, 32)}
    return Entry(f"image{number}", NOW - 86_400 + number if at is None else at, prints, **more)


class Puller:
    """Pulls from the fake into a store."""

    def __init__(self, fake: FakeNcmec, folder: Path) -> None:
        self.fake = fake
        self.folder = folder
        self.store = BankStore(folder / "store")
        self.slept: list[float] = []
        self.http = HTTP
        self.last: PullReport | None = None

    def exchange(self, now: Callable[[], float] = now, **more: Any) -> NcmecExchange:
        return NcmecExchange(
            {"user": SecretStr(USER), "password": SecretStr(PASSWORD)},
            "test_NGO_Generative_AI",
            session=lambda url: BoundedSession(self.http, url, sleep=self.slept.append),
            base_url=self.fake.base_url,
            now=now,
            **more,
        )

    def pull(self, now: Callable[[], float] = now, **more: Any) -> PullReport:
        one = Pull("test", SETTINGS, self.exchange(now), self.store, self.folder / "aside", **more)
        self.last = one.report
        return one.run()

    def listed(self) -> dict[str, dict[str, str]]:
        """Hashes of the entries that match, by id without the member."""
        return {
            found.entry_id.partition(".")[2]: {one.hash_type: one.value.hex() for one in found.hashes}
            for found in self.store.entries(BANK)
            if found.state in bank_changes.MATCHED_STATES
        }

    def notes(self) -> list[dict[str, str]]:
        path = self.folder / "aside" / "test.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def fake() -> Iterator[FakeNcmec]:
    with fake_ncmec() as one:
        yield one


@pytest.fixture
def puller(fake: FakeNcmec, tmp_path: Path) -> Iterator[Puller]:
    one = Puller(fake, tmp_path)
    yield one
    one.store.close()


# ---- what is listed ------------------------------------------------------------------------------------------------


def test_every_page_is_pulled_and_every_hash_that_a_bank_can_hold(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(number) for number in range(1, 36)]
    fake.entries.append(Entry("video1", NOW - 500, {"md5": hex_of(99, 16), "tmk_pdqf": "x"}, kind="video"))
    fake.entries.append(Entry("licensed", NOW - 500, {"pdna": "1,2,3"}))
    report = puller.pull()
    assert report.complete
    assert (report.pages, report.listed, report.unsupported, report.set_aside) == (4, 36, 1, {})
    listed = puller.listed()
    assert len(listed) == 36
    assert listed["image7"] == {"md5": hex_of(7, 16), "sha1": hex_of(7, 20), "pdq": hex_of(7, 32)}
    assert listed["video1"] == {"md5": hex_of(99, 16)}
    card = puller.store.card(BANK)
    assert card is not None
    assert (card.source, card.category, card.pipeline, card.radius) == ("a fake", "stand-in", "full", 31)


def test_a_second_pull_asks_for_what_is_new_and_finds_nothing_new_in_what_overlaps(
    fake: FakeNcmec, puller: Puller
) -> None:
    fake.entries = [entry(1), entry(2, at=NOW - 20)]
    puller.pull()
    before = puller.store.sequence
    report = puller.pull(now=lambda: NOW + 60.0)
    assert (report.listed, report.unchanged) == (0, 1), "the newest is asked for twice, and known"
    assert puller.store.sequence == before
    assert fake.entry_requests()[-1].query["from"] > utc(NOW - 3600)


def test_deletions_are_honoured_and_an_update_replaces(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(1), entry(2), entry(3)]
    puller.pull()
    fake.entries = [
        entry(1, at=NOW + 10, deleted=True),
        Entry("image2", NOW + 10, {"md5": hex_of(20, 16)}),
        Entry("never-seen", NOW + 10, {}, deleted=True),
    ]
    report = puller.pull(now=lambda: NOW + 60.0)
    assert (report.withdrawn, report.listed, report.unchanged) == (1, 1, 1)
    assert puller.listed() == {
        "image2": {"md5": hex_of(20, 16)},
        "image3": {"md5": hex_of(3, 16), "sha1": hex_of(3, 20), "pdq": hex_of(3, 32)},
    }
    gone = puller.store.entry(BANK, "42.image1")
    assert gone is not None
    assert gone.state == bank_pb2.ENTRY_STATE_REMOVED
    assert not gone.hashes, "a withdrawn hash is not kept"


def test_what_a_person_disabled_stays_so(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(1), entry(2)]
    puller.pull()
    for number, state in ((1, bank_pb2.ENTRY_STATE_DISABLED), (2, bank_pb2.ENTRY_STATE_QUARANTINED)):
        hashes = {"md5": bytes.fromhex(hex_of(number, 16))}
        change = bank_changes.listed(BANK, f"42.image{number}", hashes, origin="person", state=state, reason="benign")
        puller.store.apply([change])
    fake.entries = [entry(1, at=NOW + 10), entry(2, at=NOW + 10)]
    puller.pull(now=lambda: NOW + 60.0)
    states = {found.entry_id: (found.state, found.provenance.reason) for found in puller.store.entries(BANK)}
    assert states == {
        "42.image1": (bank_pb2.ENTRY_STATE_DISABLED, "benign"),
        "42.image2": (bank_pb2.ENTRY_STATE_QUARANTINED, "benign"),
    }


def test_only_the_members_that_were_asked_for(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(1), entry(2, member=7)]
    exchange = puller.exchange(members=frozenset({7}))
    Pull("test", SETTINGS, exchange, puller.store, puller.folder).run()
    assert set(puller.listed()) == {"image2"}


def test_ids_of_any_shape_are_kept_reversibly(fake: FakeNcmec, puller: Puller) -> None:
    strange = "a b/ü~1.%:x"
    fake.entries = [Entry(strange, NOW - 50, {"md5": hex_of(1, 16)})]
    puller.pull()
    (found,) = puller.store.entries(BANK)
    pull.vote(puller.exchange(), puller.store, BANK, found.entry_id, up=True)
    assert fake.votes == {("42", strange, "MD5"): "affirmative"}


def test_times_are_sent_in_utc_wherever_the_machine_is(
    fake: FakeNcmec, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        puller.pull(now=lambda: 1_700_000_005.0)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert fake.entry_requests()[0].query == {"from": "1970-01-01T00:00:00Z", "to": "2023-11-14T22:13:20Z"}


def test_a_dry_run_changes_nothing(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(number) for number in range(1, 15)]
    fake.entries[3].raw = "<image><id>nobody</id></image>"
    report = puller.pull(dry_run=True)
    assert (report.listed, report.set_aside) == (13, {"record BAD_RECORD": 1})
    assert puller.store.sequence == 0
    assert puller.store.checkpoint("exchange:test") is None
    assert puller.notes() == []


# ---- what is broken ------------------------------------------------------------------------------------------------


def test_bad_records_are_set_aside_by_digest_and_the_rest_is_listed(
    fake: FakeNcmec, puller: Puller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    short = hex_of(77, 15)
    fake.entries = [
        entry(1),
        Entry("short-md5", NOW - 50, {"md5": short, "sha1": hex_of(5, 20)}),
        Entry("only-bad", NOW - 50, {"pdq": "zz" * 32}),
        Entry("", NOW - 50, {"md5": hex_of(6, 16)}),
        Entry("x" * 200, NOW - 50, {"md5": hex_of(6, 16)}),
        Entry("raw", NOW - 50, {}, raw="<image><id>no-member</id><fingerprints/></image>"),
        Entry("raw", NOW - 50, {}, raw="<picture><member id='1'/><id>of-no-kind</id></picture>"),
        entry(2),
    ]
    report = puller.pull()
    assert report.complete
    assert set(puller.listed()) == {"image1", "short-md5", "image2"}
    assert puller.listed()["short-md5"] == {"sha1": hex_of(5, 20)}
    assert report.set_aside == {
        "hash BAD_LENGTH": 1,
        "hash NOT_HEX": 1,
        "record BAD_RECORD": 3,
        "record BAD_ID": 1,
    }
    notes = json.dumps(puller.notes())
    assert "42.short-md5 md5" in notes
    assert short not in notes, "a hash is not noted"
    assert short not in caplog.text
    assert PASSWORD not in caplog.text


def test_what_only_bad_hashes_are_said_of_keeps_what_was_known(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(1)]
    puller.pull()
    fake.entries = [Entry("image1", NOW + 10, {"md5": "00"})]
    report = puller.pull(now=lambda: NOW + 60.0)
    assert report.set_aside == {"hash BAD_LENGTH": 1}
    assert set(puller.listed()) == {"image1"}


def test_of_an_id_that_comes_twice_the_newer_word_counts(fake: FakeNcmec, puller: Puller) -> None:
    newer = Entry("twice", NOW - 40, {"md5": hex_of(2, 16)})
    older = Entry("twice", NOW - 50, {"md5": hex_of(1, 16)})
    fake.entries = [newer, older, Entry("gone", NOW - 40, {}, deleted=True), Entry("gone", NOW - 50, {"md5": "1"})]
    puller.pull()
    assert puller.listed() == {"twice": {"md5": hex_of(2, 16)}}


def truncated(body: bytes) -> bytes:
    return body[: len(body) // 2]


def test_a_page_that_is_broken_once_is_asked_for_again(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(number) for number in range(1, 25)]
    fake.script = [
        Answer(spoil=truncated),
        Answer(short_by=10),
        Answer(spoil=lambda body: b"<html>busy</html>"),
        Answer(),
        Answer(spoil=lambda body: b'<!DOCTYPE x [<!ENTITY a "b">]>' + body),
    ]
    report = puller.pull()
    assert report.complete
    assert report.set_aside == {}
    assert len(puller.listed()) == 24


def test_a_page_that_stays_broken_is_set_aside_alone_and_mended_by_a_later_pull(
    fake: FakeNcmec, puller: Puller
) -> None:
    """Whatever holds the bad entry's bytes cannot be read, at any place of any range."""
    fake.entries = [entry(number, at=NOW - 1_000_000 + number * 3_000) for number in range(1, 200)]
    bad = fake.entries[120]
    assert bad.entry_id == "image121"

    def fault(request: Request) -> Answer | None:
        return Answer(spoil=lambda body: truncated(body) if b">image121<" in body else body)

    fake.fault = fault
    report = puller.pull()
    assert report.complete
    assert set(puller.listed()) == {one.entry_id for one in fake.entries} - {"image121"}
    assert report.set_aside == {"page BAD_XML": 1}
    (note,) = puller.notes()
    start, _, stop = note["where"].partition("..")
    assert utc(bad.at - 60) <= start <= utc(bad.at) <= stop <= utc(bad.at + 60), "the note says when, to the minute"

    again = puller.pull()
    assert again.complete, "still broken: asked for once more, and set aside once more"
    assert again.set_aside == {"page BAD_XML": 1}
    fake.fault = lambda request: None
    assert puller.pull().set_aside == {}
    assert "image121" in puller.listed()
    checkpoint = json.loads(puller.store.checkpoint("exchange:test") or "")
    assert checkpoint["ranges"] == checkpoint["again"] == []


def test_behind_a_broken_page_of_one_minute_the_next_is_read(fake: FakeNcmec, puller: Puller) -> None:
    """A range that cannot be halved any more: its cursors count, so the page behind the broken one is known."""
    fake.entries = [entry(number, at=NOW - 50_000) for number in range(1, 36)]
    fake.fault = lambda request: Answer(spoil=lambda body: truncated(body) if b">image15<" in body else body)
    report = puller.pull()
    assert report.complete
    assert set(puller.listed()) == {f"image{number}" for number in (*range(1, 11), *range(21, 36))}
    assert report.set_aside == {"page BAD_XML": 1}


def test_an_exchange_that_is_all_broken_ends_the_pull(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(number, at=NOW - number * 100_000) for number in range(1, 60)]
    fake.fault = lambda request: Answer(spoil=lambda body: truncated(body) if b"<images" in body else body)
    with pytest.raises(Fatal, match="EXCHANGE_BROKEN"):
        puller.pull()
    assert len(puller.notes()) <= ncmec.MAX_SET_ASIDE + 1
    assert len(fake.requests) < 3_000


def test_a_cursor_to_another_place_is_not_followed(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(number, at=NOW - 50_000) for number in range(1, 25)]
    fake.fault = lambda request: Answer(spoil=lambda body: body.replace(b"/v2/entries?", b"@elsewhere.example/x?"))
    report = puller.pull()
    assert report.set_aside == {"page BAD_CURSOR": 1}
    assert all(request.path == "/hashsharing/v2/entries" for request in fake.requests)


# ---- what is away --------------------------------------------------------------------------------------------------


def test_what_the_exchange_asks_to_wait_is_waited(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(1)]
    soon = email.utils.formatdate(time.time() + 90, usegmt=True)
    fake.script = [
        Answer(429, {"Retry-After": "7"}),
        Answer(503, {"Retry-After": soon}),
        Answer(429, {"Retry-After": "next week"}),
    ]
    assert puller.pull().listed == 1
    first, second, third = puller.slept
    assert first == 7
    assert 60 < second <= 90
    assert 0 < third <= 0.02, "nonsense counts as nothing said"


@pytest.mark.parametrize(
    "after", ["301", "99999999999999999999", email.utils.formatdate(time.time() + 4_000, usegmt=True)]
)
def test_a_wait_beyond_the_bound_ends_the_pull_and_says_so(fake: FakeNcmec, puller: Puller, after: str) -> None:
    fake.entries = [entry(number) for number in range(1, 15)]
    fake.script = [Answer(), Answer(429, {"Retry-After": after})]
    with pytest.raises(Retryable, match="RATE_LIMITED"):
        puller.pull()
    assert puller.slept == []
    assert len(puller.listed()) == 10, "what was read is kept"
    puller.pull()
    assert len(puller.listed()) == 14


def test_errors_of_the_exchange_are_tried_again_and_then_told(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(number) for number in range(1, 25)]
    fake.script = [Answer(500), Answer(), *[Answer(502)] * 4]
    with pytest.raises(Retryable, match="EXCHANGE_UNAVAILABLE") as raised:
        puller.pull()
    assert "127.0.0.1: answered 502, 4 times" in raised.value.detail
    assert puller.last is not None
    assert (puller.last.pages, puller.last.complete) == (1, False)
    asked = len(fake.requests)
    assert puller.pull().complete
    assert len(puller.listed()) == 24
    assert "start" in fake.requests[asked].query, "it goes on with the second page"


def test_an_exchange_that_does_not_answer_is_given_up_in_time(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(1)]
    puller.http = HTTP.model_copy(update={"timeout_seconds": 0.1, "attempts": 2})
    hold = threading.Event()
    fake.script = [Answer(hold=hold), Answer(hold=hold)]
    with pytest.raises(Retryable, match="EXCHANGE_UNAVAILABLE"):
        puller.pull()
    hold.set()
    puller.http = HTTP
    assert puller.pull().listed == 1


def test_an_answer_larger_than_allowed_is_not_read(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(number, at=NOW - 50_000) for number in range(1, 9)]
    puller.http = HTTP.model_copy(update={"max_answer_bytes": 1_000})
    report = puller.pull()
    assert report.set_aside == {"page ANSWER_TOO_LARGE": 1}


@pytest.mark.parametrize("status", [401, 403])
def test_expired_credentials_end_the_pull_with_the_mend(fake: FakeNcmec, puller: Puller, status: int) -> None:
    fake.entries = [entry(number) for number in range(1, 15)]
    fake.script = [Answer(), Answer(status)]
    with pytest.raises(Fatal, match="EXCHANGE_CREDENTIALS") as raised:
        puller.pull()
    assert "renew" in raised.value.detail
    assert_no_secret(raised.value)
    assert len(puller.listed()) == 10
    fake.password = PASSWORD[::-1]
    with pytest.raises(Fatal, match="EXCHANGE_CREDENTIALS"):
        puller.pull()
    assert len(fake.requests) == 3, "not tried again and again"


def test_a_redirect_is_not_followed(fake: FakeNcmec, puller: Puller) -> None:
    fake.script = [Answer(302, {"Location": "http://elsewhere.example/"})]
    with pytest.raises(Fatal, match="EXCHANGE_REFUSED"):
        puller.pull()
    assert len(fake.requests) == 1


def assert_no_secret(error: BaseException) -> None:
    seen: BaseException | None = error
    while seen is not None:
        assert PASSWORD not in str(seen)
        assert USER not in str(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


@pytest.mark.parametrize(
    "url", ["http://exchange.example/x", "ftp://127.0.0.1/", "https://user:pass@exchange.example/", "http://10.0.0.1"]
)
def test_an_address_without_tls_is_refused(url: str) -> None:
    with pytest.raises(Fatal) as raised:
        check_url(url)
    assert "pass" not in raised.value.detail


def test_this_machine_needs_no_tls() -> None:
    assert [check_url(url) for url in ("http://127.0.0.1:1/a/", "http://[::1]/", "https://x.example/")] == [
        "http://127.0.0.1:1/a",
        "http://[::1]",
        "https://x.example",
    ]


# ---- votes ---------------------------------------------------------------------------------------------------------


def test_votes_go_back_for_every_fingerprint(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [entry(1)]
    puller.pull()
    exchange = puller.exchange()
    pull.vote(exchange, puller.store, BANK, "42.image1", up=True)
    assert fake.votes == {("42", "image1", kind): "affirmative" for kind in ("MD5", "SHA1", "PDQ")}
    pull.vote(exchange, puller.store, BANK, "42.image1", up=False, reason="Wrong hash")
    assert fake.votes == {("42", "image1", kind): "guid-2" for kind in ("MD5", "SHA1", "PDQ")}
    with pytest.raises(Poison, match="Not illegal, Wrong hash"):
        pull.vote(exchange, puller.store, BANK, "42.image1", up=False)
    with pytest.raises(Poison, match="NO_ENTRY"):
        pull.vote(exchange, puller.store, BANK, "42.nothing", up=True)


def test_a_vote_is_sent_again_when_the_exchange_was_away(fake: FakeNcmec, puller: Puller) -> None:
    fake.entries = [Entry("image1", NOW - 50, {"md5": hex_of(1, 16)})]
    puller.pull()
    fake.script = [Answer(503), Answer(429, {"Retry-After": "1"})]
    pull.vote(puller.exchange(), puller.store, BANK, "42.image1", up=True)
    assert fake.votes == {("42", "image1", "MD5"): "affirmative"}
    assert 1 in puller.slept


def test_two_pulls_at_once_are_refused(fake: FakeNcmec, puller: Puller) -> None:
    held: list[SeawallError] = []

    def meanwhile(report: PullReport) -> None:
        with pytest.raises(Fatal) as raised:
            puller.pull()
        held.append(raised.value)

    fake.entries = [entry(1)]
    puller.pull(progress=meanwhile)
    assert [error.reason for error in held] == ["ALREADY_PULLING"]


# ---- the command ---------------------------------------------------------------------------------------------------


class Command:
    """`seawall banks …` as processes on a home folder, with the fake as its one exchange."""

    def __init__(self, fake: FakeNcmec, home: Path) -> None:
        home.mkdir()
        secret = home / "credentials"
        secret.write_text(f"user={USER}\npassword={PASSWORD}\n")
        secret.chmod(0o600)
        self.home = home
        source = {
            **SETTINGS.model_dump(mode="json", exclude={"credentials_file", "http", "members"}),
            "base_url": fake.base_url,
            "credentials_file": str(secret),
            "http": {"attempts": 2, "pause_seconds": 0.01, "timeout_seconds": 20},
        }
        self.environment = {**os.environ, "SEAWALL_HOME": str(home), "SEAWALL_SOURCES": json.dumps({"test": source})}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "seawall.cli", "banks", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, out + err
        assert PASSWORD not in out + err
        return out

    def listed(self) -> set[str]:
        store = BankStore(self.home / "bank_store")
        try:
            return {one.entry_id for one in store.entries(BANK) if one.state in bank_changes.MATCHED_STATES}
        finally:
            store.close()


@pytest.fixture
def command(fake: FakeNcmec, tmp_path: Path) -> Command:
    return Command(fake, tmp_path / "home")


def test_a_pull_that_is_killed_goes_on_where_it_was_and_is_complete(fake: FakeNcmec, command: Command) -> None:
    fake.entries = [entry(number, at=NOW - 50_000) for number in range(1, 56)]
    reached, release = threading.Event(), threading.Event()

    def fault(request: Request) -> Answer | None:
        if request.query.get("start") != "30":
            return None
        reached.set()
        return Answer(hold=release)

    fake.fault = fault
    process = command.start("pull", "--json")
    try:
        assert reached.wait(30)
    finally:
        process.kill()
        process.communicate()
    release.set()
    assert process.returncode == -signal.SIGKILL
    assert len(command.listed()) == 30, "what came before is there"
    fake.fault = lambda request: None
    asked = len(fake.requests)
    result = json.loads(command.run("pull", "--json"))["exchanges"][0]
    assert (result["complete"], result["listed"], result["unchanged"], result["error"]) == (True, 25, 0, None)
    assert fake.requests[asked].query["start"] == "30"
    assert command.listed() == {f"42.image{number}" for number in range(1, 56)}


def test_the_exit_status_tells_what_was_set_aside_and_what_failed(fake: FakeNcmec, command: Command) -> None:
    fake.entries = [entry(1), Entry("bad", NOW - 50, {"md5": "00"})]
    out = command.run("pull", status=3)
    assert "set aside: 1 hash BAD_LENGTH" in out
    command.run("vote", "test", "42.image1", "--up")
    assert fake.votes["42", "image1", "MD5"] == "affirmative"
    fake.password = PASSWORD[::-1]
    result = json.loads(command.run("pull", "--json", "test", status=1))
    assert result["exchanges"][0]["error"]["reason"] == "EXCHANGE_CREDENTIALS"


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (f"user={USER}\npassword={PASSWORD}", 0o644, "BAD_CREDENTIALS"),
        (f"user={USER}", 0o600, "BAD_CREDENTIALS"),
        (f"{USER}:{PASSWORD}", 0o600, "BAD_CREDENTIALS"),
        (json.dumps({"user": USER, "password": PASSWORD, "token": PASSWORD}), 0o600, "BAD_CREDENTIALS"),
        ("", 0o600, "NO_CREDENTIALS"),
    ],
)
def test_credentials_that_will_not_do(tmp_path: Path, content: str, mode: int, reason: str) -> None:
    path = tmp_path / "secret"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(Fatal) as raised:
        credentials.load("test", ("user", "password"), file=path, variable=None)
    assert raised.value.reason == reason
    assert_no_secret(raised.value)


def test_credentials_come_from_the_environment_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", json.dumps({"user": USER, "password": PASSWORD}))
    found = credentials.load("test", ("user", "password"), optional=("more",), file=None, variable="STAND_IN")
    assert {key: value.get_secret_value() for key, value in found.items()} == {"user": USER, "password": PASSWORD}
    assert PASSWORD not in repr(found)
