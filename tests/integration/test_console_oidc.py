"""Signing in by an OpenID provider: a real one on this machine, honest and not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from joserfc.jwk import RSAKey
from pydantic import SecretStr, ValidationError

from seawall.console.settings import ConsoleSettings, HttpSettings, OidcSettings
from tests.support import oidc
from tests.support.console import Console, open_console, recent
from tests.support.oidc import CLIENT, SECRET, Provider

PUBLIC = "https://console.example"


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with oidc.provider() as made:
        yield made


@pytest.fixture
def provider(running: Provider) -> Provider:
    running.claims = {"groups": ["sw-oncall", "cooks"], "preferred_username": "robin"}
    running.wrong, running.forger = {}, None
    return running


def settings_for(provider: Provider, **fields: Any) -> OidcSettings:
    roles = {"sw-oncall": "on-call", "sw-admin": "admin", "sw-view": "viewer"}
    known = {"metadata_url": provider.metadata_url, "client_id": CLIENT, "client_secret": SecretStr(SECRET)}
    return OidcSettings(**{**known, "roles": roles, **fields})


@pytest.fixture
async def console(provider: Provider, tmp_path: Path) -> AsyncIterator[Console]:
    made = [recent(1, ago=5, tenant_id="ours"), recent(2, ago=5, tenant_id="theirs")]
    oidc_settings = settings_for(provider, tenant_claim="tenant")
    opened = await open_console(tmp_path, made, oidc=oidc_settings, http=HttpSettings(public_url=PUBLIC))
    yield opened
    await opened.close()


def browser(console: Console) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(console.app), base_url=PUBLIC)


async def signed_in(client: httpx2.AsyncClient, path: str = "/") -> httpx2.Response:
    """To the provider and back, as a browser goes."""
    await client.get(path)
    there = await client.get("/login/oidc")
    assert there.status_code == 302, there.text
    async with httpx2.AsyncClient() as outside:
        back = await outside.get(there.headers["location"])
    return await client.get(back.headers["location"])


async def test_a_person_signs_in_and_gets_the_roles_of_their_groups(console: Console, provider: Provider) -> None:
    provider.claims["tenant"] = "*"
    async with browser(console) as client:
        first = await client.get("/decisions")
        await client.get(first.headers["location"])
        answer = await signed_in(client)
        assert (answer.status_code, answer.headers["location"]) == (303, "/decisions")
        page = await client.get("/dead-letters")
        assert page.status_code == 200 and "robin" in page.text
        assert (await client.get("/decisions.csv")).status_code == 403
        (cookie,) = [one for one in client.cookies.jar if one.name == "seawall_session"]
        assert cookie.secure
        assert page.headers["strict-transport-security"]


async def test_somebody_is_sent_on_to_what_they_asked_for(console: Console, provider: Provider) -> None:
    provider.claims["tenant"] = "*"
    async with browser(console) as client:
        asked = await client.get("/decisions?outcome=HOLD")
        answer = await signed_in(client, asked.headers["location"])
        assert answer.headers["location"] == "/decisions?outcome=HOLD"


async def test_a_tenants_person_sees_that_tenant(console: Console, provider: Provider) -> None:
    provider.claims["tenant"] = "ours"
    async with browser(console) as client:
        await signed_in(client)
        found = (await client.get("/api/v1/decisions")).json()["decisions"]
        assert [one["tenant_id"] for one in found] == ["ours"]
        assert (await client.get("/decisions/g-2")).status_code == 404


@pytest.mark.parametrize(
    ("claims", "status", "said"),
    [
        ({"tenant": "ours", "groups": ["cooks"]}, 403, "no role here"),
        ({"tenant": "ours", "groups": None}, 403, "no role here"),
        ({"groups": ["sw-admin"]}, 403, "names no tenant"),
        ({"groups": ["sw-admin"], "tenant": ["*"]}, 403, "names no tenant"),
    ],
)
async def test_who_has_no_role_or_no_tenant_stays_outside(
    console: Console, provider: Provider, claims: dict[str, Any], status: int, said: str
) -> None:
    provider.claims = {"preferred_username": "robin", **claims}
    async with browser(console) as client:
        answer = await signed_in(client)
        assert answer.status_code == status and said in answer.text
        assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": "another"},
        {"aud": "somebody-else"},
        {"iss": "https://evil.example"},
        {"exp": int(time.time()) - 3_600},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
async def test_an_id_token_that_is_wrong_signs_nobody_in(
    console: Console, provider: Provider, wrong: dict[str, Any]
) -> None:
    provider.claims["tenant"] = "*"
    provider.wrong = wrong
    async with browser(console) as client:
        assert (await signed_in(client)).status_code == 401
        assert (await client.get("/")).status_code == 303


async def test_a_forged_signature_signs_nobody_in(console: Console, provider: Provider) -> None:
    provider.claims["tenant"] = "*"
    provider.forger = RSAKey.generate_key(2048, {"kid": "one"})
    async with browser(console) as client:
        assert (await signed_in(client)).status_code == 401
        assert (await client.get("/")).status_code == 303


async def test_an_answer_that_a_browser_did_not_ask_for_signs_nobody_in(console: Console, provider: Provider) -> None:
    provider.claims["tenant"] = "*"
    async with browser(console) as victim, browser(console) as other, httpx2.AsyncClient() as outside:
        there = await other.get("/login/oidc")
        back = (await outside.get(there.headers["location"])).headers["location"]
        assert (await victim.get(back)).status_code == 401
        assert (await victim.get("/login/callback")).status_code == 401
        assert (await victim.get("/")).status_code == 303


async def test_a_provider_that_is_away_is_said(tmp_path: Path, provider: Provider) -> None:
    away = settings_for(provider, metadata_url="http://127.0.0.1:9/none")
    console = await open_console(tmp_path, oidc=away, http=HttpSettings(public_url=PUBLIC))
    async with browser(console) as client:
        answer = await client.get("/login/oidc")
        assert answer.status_code == 502 and "does not answer" in answer.text
        assert "one-time token" not in (await client.get("/login")).text.lower()
        assert (await client.post("/login", data={"token": ""})).status_code == 403
    await console.close()


def test_a_console_open_to_the_network_needs_a_provider() -> None:
    with pytest.raises(ValidationError, match="set oidc"):
        ConsoleSettings(http=HttpSettings(host="192.0.2.1"))
    with pytest.raises(ValidationError, match="name the hosts"):
        HttpSettings(allowed_hosts=["*"])
