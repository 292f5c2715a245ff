"""Signing in and out: an OpenID provider, or, on one machine, a token that is good once."""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.starlette_client import OAuth
from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse, Response
from joserfc.errors import JoseError

from seawall.console import access, audit
from seawall.console.access import Role, User
from seawall.console.rendering import page
from seawall.console.settings import OidcSettings

router = APIRouter(include_in_schema=False)

_BOUNDED: Final = Query(max_length=2_000)
_PROVIDER_SECONDS: Final = 5.0
_NOT_MAPPED: Final = "Your account has no role here: ask whoever runs the console to map one of your groups."
_NO_TENANT: Final = "Your account names no tenant: ask whoever runs the console."
_PROVIDER_AWAY: Final = "The sign-in provider does not answer, or refused: try again in a moment."


class OneTimeToken:
    """A token that is good once; the next one stands in a file that its owner alone can read, as an address."""

    def __init__(self, address: str, file: Path) -> None:
        self._address = address
        self._file = file
        self._lock = threading.Lock()
        self._token = ""
        self._renew()

    @property
    def link(self) -> str:
        """The address that signs in."""
        return f"{self._address}/login?token={self._token}"

    def redeem(self, given: str) -> bool:
        """True once for each token."""
        with self._lock:
            if not hmac.compare_digest(self._token.encode(), given.encode()):
                return False
            self._renew()
            return True

    def _renew(self) -> None:
        self._token = secrets.token_urlsafe(32)
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self._file.with_suffix(".tmp")
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{self.link}\n")
        beside.replace(self._file)


def provider(settings: OidcSettings) -> Any:
    """The OpenID client: code flow with PKCE; the id token's signature, issuer, audience and nonce are checked."""
    oauth = OAuth()
    return oauth.register(
        name="oidc",
        server_metadata_url=settings.metadata_url,
        client_id=settings.client_id,
        client_secret=settings.client_secret.get_secret_value(),
        client_kwargs={"scope": settings.scope, "code_challenge_method": "S256", "timeout": _PROVIDER_SECONDS},
    )


@router.get("/login")
def login(request: Request, next: Annotated[str, _BOUNDED] = "/", token: Annotated[str, _BOUNDED] = "") -> Response:
    """The only page that anybody may see."""
    if access.user_of(request) is not None:
        return RedirectResponse(local_path(next), 303)
    request.session["next"] = local_path(next)
    return page(request, "login.html", token=token, oidc=request.app.state.oidc is not None)


@router.post("/login", dependencies=[Depends(access.check_csrf)])
def login_with_token(request: Request, token: Annotated[str, Form(max_length=200)] = "") -> Response:
    """Redeem the one-time token."""
    one_time: OneTimeToken | None = request.app.state.token
    if one_time is None or not one_time.redeem(token.strip()):
        audit.record("sign_in_refused", None, how="token")
        return page(
            request, "login.html", status=401, token="", oidc=one_time is None, problem="That token is not good."
        )
    return _begin(request, User("local", "local admin", (Role.ADMIN,), None))


@router.get("/login/oidc")
async def login_with_provider(request: Request) -> Response:
    """Send the browser to the provider."""
    if request.app.state.oidc is None:
        return RedirectResponse("/login", 303)
    try:
        back: Response = await request.app.state.oidc.authorize_redirect(request, _callback(request))
    except (httpx2.HTTPError, OAuthError, ValueError, KeyError) as error:
        return _refused(request, 502, _PROVIDER_AWAY, type(error).__name__)
    return back


@router.get("/login/callback")
async def callback(request: Request) -> Response:
    """The provider sends the browser back here."""
    client, settings = request.app.state.oidc, request.app.state.settings.oidc
    if client is None:
        return RedirectResponse("/login", 303)
    try:
        claims = (await client.authorize_access_token(request))["userinfo"]
    except (httpx2.HTTPError, OAuthError, JoseError, ValueError, KeyError) as error:
        return _refused(request, 401, _PROVIDER_AWAY, type(error).__name__)
    values = claims.get(settings.roles_claim) or ()
    roles = access.roles_of([values] if isinstance(values, str) else values, settings.roles)
    if not roles:
        return _refused(request, 403, _NOT_MAPPED, "no_role")
    tenant = claims.get(settings.tenant_claim) if settings.tenant_claim else settings.all_tenants
    if not isinstance(tenant, str) or not tenant:
        return _refused(request, 403, _NO_TENANT, "no_tenant")
    name = claims.get("preferred_username") or claims.get("email") or claims["sub"]
    subject = f"{claims['iss']}#{claims['sub']}"[-160:]
    return _begin(request, User(subject, str(name)[:80], roles, None if tenant == settings.all_tenants else tenant))


@router.post("/logout", dependencies=[Depends(access.check_csrf)])
def logout(request: Request) -> Response:
    """End the session in this browser."""
    audit.record("sign_out", access.user_of(request))
    request.session.clear()
    return RedirectResponse("/login", 303)


def local_path(given: str) -> str:
    """A path of ours to go on to; anything else is the first page."""
    parts = urlsplit(given)
    plain = given.startswith("/") and not given.startswith(("//", "/\\")) and given.isprintable()
    return given if plain and not parts.scheme and not parts.netloc else "/"


def _begin(request: Request, user: User) -> Response:
    onward = local_path(str(request.session.get("next", "/")))
    access.sign_in(request, user, request.app.state.settings.session)
    audit.record("sign_in", user)
    return RedirectResponse(onward, 303)


def _refused(request: Request, status: int, problem: str, reason: str) -> Response:
    audit.record("sign_in_refused", None, how="oidc", reason=reason)
    return page(request, "login.html", status=status, token="", oidc=True, problem=problem)


def _callback(request: Request) -> str:
    return f"{request.app.state.settings.http.public_url.rstrip('/')}/login/callback"
