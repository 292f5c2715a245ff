"""The web application: routes, who may come in, and what becomes of errors."""

from __future__ import annotations

import secrets
import time
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seawall.console import api, pages, sign_in
from seawall.console.access import BadToken, NotAllowed, SignInNeeded
from seawall.console.api import NotFound
from seawall.console.protection import Protection
from seawall.console.rendering import STATIC, page
from seawall.console.settings import ConsoleSettings
from seawall.console.shapes import Failure
from seawall.console.sign_in import OneTimeToken
from seawall.console.state import State
from seawall.core.errors import Fatal, Poison, SeawallError
from seawall.runtime import metrics
from seawall.runtime.logging import get_logger

_log = get_logger(__name__)
_KEPT_FOR_EVER = "public, max-age=31536000, immutable"
_HEALTH = "/healthz"
_METHODS = ("GET", "HEAD", "POST")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def application(state: State, *, token: OneTimeToken | None) -> FastAPI:
    """The application.

    Args:
        token: signs in where there is no OpenID provider.
    """
    settings = state.settings
    # No documentation pages: they would be anonymous, and fetch scripts from elsewhere.
    # FastAPI's own telemetry writes addresses with what was searched for, and exceptions with their messages, which is
    # content; ours is `_Answered`.
    silent = TelemetryConfig(tracing=False, metrics=False, logs=False, operation_spans=False, auto_configure=False)
    app = FastAPI(title="Seawall console", docs_url=None, redoc_url=None, openapi_url=None, telemetry=silent)
    app.state.console = state
    app.state.settings = settings
    app.state.token = token
    app.state.oidc = sign_in.provider(settings.oidc) if settings.oidc else None
    app.add_middleware(_Answered)
    key = settings.session.key.get_secret_value() if settings.session.key else secrets.token_urlsafe(32)
    app.add_middleware(
        SessionMiddleware,
        secret_key=key,
        session_cookie=api.SESSION_COOKIE,
        max_age=int(settings.session.longest_seconds),
        same_site="lax",
        https_only=settings.http.is_https,
    )
    app.add_middleware(_Hosts, allowed_hosts=_hosts(settings), www_redirect=False)
    app.add_middleware(Protection, is_https=settings.http.is_https)
    for router in (sign_in.router, pages.router, api.router):
        app.include_router(router)
    app.add_api_route(_HEALTH, lambda: PlainTextResponse("ok\n"), include_in_schema=False)
    app.mount("/static", _Static(directory=STATIC))
    _handle_errors(app)
    return app


def _hosts(settings: ConsoleSettings) -> list[str]:
    """Names that requests may carry: else a site that points its own name here could have our pages answered to it."""
    public = urlsplit(settings.http.public_url).hostname if settings.http.public_url else None
    return [*_LOCAL_HOSTS, *settings.http.allowed_hosts, *([public] if public else [])]


class _Hosts(TrustedHostMiddleware):
    """A probe names the address that it asks, whatever that is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app if scope.get("path") == _HEALTH else super().__call__)(scope, receive, send)


class _Static(StaticFiles):
    """Files whose address carries their digest."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = _KEPT_FOR_EVER
        return response


class _Answered:
    """ASGI middleware: how long each answer took, and an answer where a page broke. Within the others, so that theirs
    is on that answer too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            _log.error("a page failed", exc_info=error)
            if status:
                raise  # The answer has begun: it can only be cut off.
            broke = _answer(Request(scope), 500, "BUG", "Something broke", "This is a bug: the room's log says where.")
            await broke(scope, receive, noted)
        finally:
            attributes = {
                metrics.HTTP_METHOD: scope["method"] if scope["method"] in _METHODS else "_OTHER",
                metrics.HTTP_ROUTE: getattr(scope.get("route"), "path", "none"),
                metrics.HTTP_STATUS: status,
            }
            metrics.HTTP_SERVER_DURATION.record(time.perf_counter() - began, attributes)


def _answer(request: Request, status: int, reason: str, title: str, detail: str) -> Response:
    if request.url.path.startswith(api.PREFIX):
        return JSONResponse(Failure(reason=reason, detail=detail).model_dump(), status)
    return page(request, "problem.html", status=status, title=title, detail=detail)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(SignInNeeded)
    def sign_in_needed(request: Request, error: SignInNeeded) -> Response:
        if request.url.path.startswith(api.PREFIX):
            return _answer(request, 401, "SIGN_IN", "", "sign in first")
        way = "/login"
        if request.method == "GET":
            way += f"?next={quote(request.url.path + (f'?{request.url.query}' if request.url.query else ''), safe='')}"
        if "hx-request" in request.headers:
            # A part of a page must not become the sign-in page: the browser goes there as a whole.
            return PlainTextResponse("sign in first", 401, headers={"HX-Redirect": way})
        return RedirectResponse(way, 303)

    @app.exception_handler(NotAllowed)
    def not_allowed(request: Request, error: NotAllowed) -> Response:
        detail = "Your role does not reach this page. What you may see stands in the navigation."
        return _answer(request, 403, "NOT_ALLOWED", "Not for your role", detail)

    @app.exception_handler(BadToken)
    def bad_token(request: Request, error: BadToken) -> Response:
        detail = "The form was not this session's, or the session has ended: go back, load the page again, and repeat."
        return _answer(request, 403, "BAD_TOKEN", "That form is not good any more", detail)

    @app.exception_handler(NotFound)
    @app.exception_handler(404)
    def not_found(request: Request, error: Exception) -> Response:
        return _answer(request, 404, "NOT_FOUND", "Not found", "There is nothing at this address.")

    @app.exception_handler(HTTPException)
    def other(request: Request, error: HTTPException) -> Response:
        response = _answer(request, error.status_code, "HTTP", "That did not work", str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    def bad_request(request: Request, error: RequestValidationError) -> Response:
        # What was given is not repeated.
        said = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()[:5])
        return _answer(request, 422, "BAD_REQUEST", "That address means nothing", said)

    @app.exception_handler(SeawallError)
    def ours(request: Request, error: SeawallError) -> Response:
        if isinstance(error, Poison):
            return _answer(request, 400, error.reason, "That means nothing", error.detail)
        if isinstance(error, Fatal):
            _log.error("a page failed", exc_info=error)
        return _answer(request, 503, error.reason, "Not to be had now", error.detail)
