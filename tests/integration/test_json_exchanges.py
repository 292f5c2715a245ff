"""StopNCII and Meta's ThreatExchange against a local server. Every listed hash is that of nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from seawall.core.errors import Fatal, Poison, Retryable
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.exchanges import pull
from seawall.perceptual_hashing.exchanges.meta_threatexchange import MetaThreatExchange
from seawall.perceptual_hashing.exchanges.pull import Pull, PullReport
from seawall.perceptual_hashing.exchanges.records import Exchange
from seawall.perceptual_hashing.exchanges.settings import ExchangeSettings
from seawall.perceptual_hashing.exchanges.stopncii import StopNciiExchange
from seawall.perceptual_hashing.exchanges.transport import BoundedSession, HttpSettings
from tests.support.json_exchanges import Asked, JsonServer, json_server

BANK = "pulled"
TOKEN = "|".join(("12345678", "stand-in-secret-of-no-app"))
HTTP = HttpSettings(timeout_seconds=5, attempts=2, pause_seconds=0.01, max_pause_seconds=0.02)
DAY = 86_400


def value(number: int, length: int = 32) -> str:
    return number.to_bytes(length, "big").hex()


@pytest.fixture
def server() -> Iterator[JsonServer]:
    with json_server() as one:
        yield one


class Puller:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = BankStore(folder / "store")

    def pull(self, exchange: Exchange, **more: Any) -> PullReport:
        kind = {"threatexchange": {"privacy_group": 9}}.get(exchange.kind, {})
        bank = {"name": BANK, "source": "a fake", "category": "stand-in", "licence": "CC0-1.0"}
        settings = ExchangeSettings.model_validate({"kind": exchange.kind, "bank": bank, **kind})
        return Pull("test", settings, exchange, self.store, self.folder / "aside", **more).run()

    def listed(self) -> set[str]:
        return {
            hash_.value.hex()
            for entry in self.store.entries(BANK)
            if entry.state in bank_changes.MATCHED_STATES
            for hash_ in entry.hashes
        }

    def entry_of(self, number: int) -> str:
        return next(
            e.entry_id for e in self.store.entries(BANK) if e.hashes and e.hashes[0].value.hex() == value(number)
        )


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Puller]:
    one = Puller(tmp_path)
    yield one
    one.store.close()


# ---- StopNCII ------------------------------------------------------------------------------------------------------


def stopncii(server: JsonServer, now: float | None = None, **keys: str) -> StopNciiExchange:
    secrets = {"subscription_key": "sub-secret", "fetch_key": "fetch-secret", **keys}
    return StopNciiExchange(
        {name: SecretStr(one) for name, one in secrets.items()},
        session=lambda url: BoundedSession(HTTP, url),
        base_url=server.base_url,
        now=lambda: time.time() if now is None else now,
    )


def record(number: int, status: str = "Active", **more: Any) -> dict[str, Any]:
    fields = {
        "lastModtimestamp": 1,
        "signalType": "ImagePDQ",
        "hashValue": value(number),
        "hashStatus": status,
        "caseNumbers": {"1": status},
        "CSPFeedbacks": [],
    }
    return {**fields, **more}


class Hashes:
    """StopNCII's answers: pages of records, at a time."""

    def __init__(self, *pages: list[dict[str, Any]], at: int = 100) -> None:
        self.pages = pages
        self.at = at
        self.broken: set[int] = set()

    def __call__(self, asked: Asked) -> tuple[int, Any]:
        assert asked.path == "/FetchHashes"
        if asked.headers["x-functions-key"] != "fetch-secret":
            return 401, {}
        number = int(asked.query.get("nextPageToken", "0"))
        if number in self.broken:
            return 200, b'{"hashRecords": ['
        more = number + 1 < len(self.pages)
        page = self.pages[number] if int(asked.query["startTimestamp"]) < self.at else []
        return 200, {
            "count": len(page),
            "hashRecords": page,
            "hasMoreRecords": more,
            "nextPageToken": str(number + 1) if more else None,
            "nextSetTimestamp": self.at,
        }


def test_stopncii_is_pulled_and_withdrawn_hashes_go(server: JsonServer, puller: Puller) -> None:
    server.answer = Hashes(
        [record(1), record(2), record(3, hashValue="short"), record(4, caseNumbers=[])],
        [record(5, signalType="URL", hashValue="x"), {"nonsense": 1}, record(6, hashStatus="New word")],
    )
    report = puller.pull(stopncii(server))
    assert puller.listed() == {value(1), value(2), value(4)}
    assert report.set_aside == {"record BAD_LENGTH": 1, "record BAD_RECORD": 2}
    assert report.complete
    server.answer = Hashes([record(1, "Withdrawn"), record(2, "Deleted"), record(7)], at=200)
    puller.pull(stopncii(server))
    assert puller.listed() == {value(4), value(7)}
    assert server.asked[-1].query["startTimestamp"] == "100"


def test_stopncii_goes_on_with_the_page_where_it_stopped(server: JsonServer, puller: Puller) -> None:
    hashes = Hashes([record(1)], [record(2)], [record(3)])
    hashes.broken = {1}
    server.answer = hashes
    with pytest.raises(Retryable, match="BROKEN_PAGE"):
        puller.pull(stopncii(server))
    assert puller.listed() == {value(1)}
    hashes.broken = set()
    asked = len(server.asked)
    assert puller.pull(stopncii(server)).complete
    assert server.asked[asked].query["nextPageToken"] == "1"
    assert puller.listed() == {value(1), value(2), value(3)}


def test_a_list_not_looked_at_for_long_is_read_afresh_and_swept(server: JsonServer, puller: Puller) -> None:
    start = time.time()
    server.answer = Hashes([record(number) for number in range(1, 11)])
    puller.pull(stopncii(server, start))
    server.answer = Hashes([record(number) for number in range(2, 11)])
    late = start + 31 * DAY
    report = puller.pull(stopncii(server, late))
    assert (report.swept, report.sweep_postponed) == (1, "")
    assert puller.listed() == {value(number) for number in range(2, 11)}
    server.answer = Hashes([record(2)])
    report = puller.pull(stopncii(server, late + 31 * DAY))
    assert (report.swept, len(puller.listed())) == (0, 9), "so much at once is a person's to say"
    assert "8 of 9" in report.sweep_postponed
    report = puller.pull(stopncii(server, late + 31 * DAY), from_start=True, allow_sweep=True)
    assert (report.swept, puller.listed()) == (8, {value(2)})


def test_nothing_is_swept_where_something_could_not_be_read(server: JsonServer, puller: Puller) -> None:
    start = time.time()
    server.answer = Hashes([record(number) for number in range(1, 11)])
    puller.pull(stopncii(server, start))
    server.answer = Hashes([record(number) for number in range(2, 11)], [record(1, hashValue="short")])
    report = puller.pull(stopncii(server, start + 31 * DAY))
    assert (report.swept, report.sweep_postponed) == (0, "something was set aside")
    assert len(puller.listed()) == 10


def test_stopncii_takes_votes(server: JsonServer, puller: Puller) -> None:
    server.answer = Hashes([record(1)])
    puller.pull(stopncii(server))
    with pytest.raises(Fatal, match="feedback_key"):
        pull.vote(stopncii(server), puller.store, BANK, puller.entry_of(1), up=True)
    server.answer = lambda asked: (200, {})
    for up, word in ((True, "Blocked"), (False, "NotBlocked")):
        pull.vote(stopncii(server, feedback_key="fb"), puller.store, BANK, puller.entry_of(1), up=up)
        sent = json.loads(server.asked[-1].body)
        assert server.asked[-1].path == "/SubmitFeedback"
        assert sent["hashFeedbacks"] == [{"tags": [], "feedbackValue": word, "hashValue": value(1)}]


# ---- Meta's ThreatExchange -------------------------------------------------------------------------------------------


def meta(server: JsonServer) -> MetaThreatExchange:
    return MetaThreatExchange(
        {"access_token": SecretStr(TOKEN)}, 9, session=lambda url: BoundedSession(HTTP, url), base_url=server.base_url
    )


def update(number: int, at: int, *, status: str = "MALICIOUS", delete: bool = False, **more: Any) -> dict[str, Any]:
    descriptor = {"id": str(1000 + number), "status": status, "owner": {"id": "77"}, "tags": []}
    fields = {
        "id": str(number),
        "indicator": value(number),
        "type": "HASH_PDQ",
        "last_updated": at,
        "should_delete": delete,
        "descriptors": {"data": [descriptor]},
    }
    return {**fields, **more}


def test_threatexchange_is_pulled_page_by_page_in_order_of_time(server: JsonServer, puller: Puller) -> None:
    def answer(asked: Asked) -> tuple[int, Any]:
        if asked.query["access_token"] != TOKEN:
            return 401, {}
        if "after" in asked.query:
            return 200, {"data": [update(3, 30), update(4, 40, status="NON_MALICIOUS"), {"id": "5"}]}
        url = f"{server.base_url}/9/threat_updates/?access_token={TOKEN}&after=x"
        data = [update(1, 10), update(2, 20), update(6, 20, type="URI", indicator="x")]
        return 200, {"data": data, "paging": {"next": url}}

    server.answer = answer
    report = puller.pull(meta(server))
    assert puller.listed() == {value(1), value(2), value(3)}
    assert report.set_aside == {"record BAD_RECORD": 1}
    server.answer = lambda asked: (200, {"data": [update(1, 50, delete=True), update(2, 50, status="NON_MALICIOUS")]})
    puller.pull(meta(server))
    assert server.asked[-1].query["start_time"] == "40"
    assert puller.listed() == {value(3)}


def test_no_token_is_told_when_threatexchange_fails(server: JsonServer, puller: Puller) -> None:
    for status, reason in ((500, "EXCHANGE_UNAVAILABLE"), (401, "EXCHANGE_CREDENTIALS"), (400, "EXCHANGE_REFUSED")):
        server.answer = lambda asked, status=status: (status, {})  # type: ignore[misc]
        with pytest.raises((Retryable, Fatal), match=reason) as raised:
            puller.pull(meta(server))
        error: BaseException | None = raised.value
        while error is not None:
            assert "secret" not in str(error)
            error = None if error.__suppress_context__ else error.__context__
    elsewhere = {"data": [update(1, 10)], "paging": {"next": "https://elsewhere.example/?access_token=x"}}
    server.answer = lambda asked: (200, elsewhere)
    with pytest.raises(Fatal, match="another host"):
        puller.pull(meta(server))
    assert puller.listed() == {value(1)}, "what came before is kept"


def test_threatexchange_takes_votes_on_what_others_said(server: JsonServer, puller: Puller) -> None:
    server.answer = lambda asked: (200, {"data": [update(1, 10)]})
    puller.pull(meta(server))
    said = [{"id": "1001", "owner": {"id": "77"}}, {"id": "1002", "owner": {"id": "12345678"}}]
    server.answer = lambda asked: (200, {"descriptors": {"data": said}} if asked.method == "GET" else {})
    pull.vote(meta(server), puller.store, BANK, "1", up=False)
    posts = [(asked.path, asked.query.get("reactions")) for asked in server.asked if asked.method == "POST"]
    assert posts == [("/1001/", "NOT_HELPFUL")], "not on what we said ourselves"
    server.answer = lambda asked: (200, {})
    with pytest.raises(Poison, match="BAD_RECORD"):
        pull.vote(meta(server), puller.store, BANK, "1", up=True)


def test_a_token_of_another_shape_is_refused(server: JsonServer) -> None:
    with pytest.raises(Fatal, match="BAD_CREDENTIALS") as raised:
        MetaThreatExchange({"access_token": SecretStr("secret")}, 9, session=lambda url: BoundedSession(HTTP, url))
    assert "secret" not in raised.value.detail.replace("ID|secret", "")
