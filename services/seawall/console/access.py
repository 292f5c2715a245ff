"""Who somebody is, what they may do, and how a session says so.

The session is a cookie: signed, HttpOnly, SameSite=Lax, kept to TLS where there is any. It holds no secret but the CSRF
token, which every form repeats. It ends after a time without requests, and after a longer one in any case.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

from fastapi import Depends, Form, Request

from seawall.console.settings import SessionSettings


class Role(StrEnum):
    """What somebody is to the console."""

    VIEWER = "viewer"
    ON_CALL = "on-call"
    REVIEWER = "reviewer"
    ADMIN = "admin"


class Permission(StrEnum):
    """What a page asks for."""

    FIGURES = "figures"
    DECISIONS = "decisions"
    EXPORT = "export"
    DEAD_LETTERS = "dead letters"


#: Figures name nobody; decisions name actors; dead letters belong to no tenant.
GRANTS: Final = {
    Role.VIEWER: frozenset({Permission.FIGURES}),
    Role.REVIEWER: frozenset({Permission.FIGURES, Permission.DECISIONS}),
    Role.ON_CALL: frozenset({Permission.FIGURES, Permission.DECISIONS, Permission.DEAD_LETTERS}),
    Role.ADMIN: frozenset(Permission),
}
#: A session's last sign of life is written at most so often.
_TOUCH_SECONDS: Final = 60.0


class SignInNeeded(Exception):
    """Nobody is signed in, or not any more."""


class NotAllowed(Exception):
    """Somebody is, and their role does not reach."""


class BadToken(Exception):
    """A form without the session's CSRF token."""


@dataclass(frozen=True)
class User:
    """Somebody who is signed in."""

    subject: str
    name: str
    roles: tuple[Role, ...]
    #: None: every tenant.
    tenant: str | None

    def may(self, permission: Permission) -> bool:
        """Whether one of the roles grants it. What belongs to no tenant is for those alone who see all of them."""
        if permission is Permission.DEAD_LETTERS and self.tenant is not None:
            return False
        return any(permission in GRANTS[role] for role in self.roles)


def sign_in(request: Request, user: User, settings: SessionSettings) -> None:
    """Begin a session, a new one: what was in the old one is forgotten."""
    now = time.time()
    request.session.clear()
    request.session.update(
        subject=user.subject,
        name=user.name,
        roles=list(user.roles),
        tenant=user.tenant,
        seen=now,
        until=now + settings.longest_seconds,
        csrf=secrets.token_urlsafe(24),
    )


def user_of(request: Request) -> User | None:
    """Who is signed in, if anybody is."""
    session, settings = request.session, request.app.state.settings.session
    now = time.time()
    seen, until = session.get("seen"), session.get("until")
    if not isinstance(seen, float) or not isinstance(until, float):
        return None
    # A clock that was set back must not make a session last.
    if not now - settings.idle_seconds <= seen <= now + _TOUCH_SECONDS or now > until:
        return None
    if now - seen > _TOUCH_SECONDS:
        session["seen"] = now
    return User(session["subject"], session["name"], tuple(map(Role, session["roles"])), session["tenant"])


def roles_of(values: Iterable[Any], mapped: dict[str, str]) -> tuple[Role, ...]:
    """Our roles for the values of a claim, each once; what is not mapped gives none."""
    return tuple(sorted({Role(mapped[value]) for value in values if isinstance(value, str) and value in mapped}))


def needs(permission: Permission) -> Callable[[Request], User]:
    """A dependency that gives the user, or raises SignInNeeded or NotAllowed."""

    def check(request: Request) -> User:
        user = user_of(request)
        if user is None:
            raise SignInNeeded
        request.state.user = user
        if not user.may(permission):
            raise NotAllowed
        return user

    return check


FiguresUser = Annotated[User, Depends(needs(Permission.FIGURES))]
DecisionsUser = Annotated[User, Depends(needs(Permission.DECISIONS))]
ExportUser = Annotated[User, Depends(needs(Permission.EXPORT))]
DeadLettersUser = Annotated[User, Depends(needs(Permission.DEAD_LETTERS))]


def csrf_of(request: Request) -> str:
    """The session's token, for a form."""
    return str(request.session.setdefault("csrf", secrets.token_urlsafe(24)))


def check_csrf(request: Request, csrf: Annotated[str, Form(max_length=200)] = "") -> None:
    """A dependency of everything that changes something. Raises BadToken."""
    wanted = request.session.get("csrf")
    if not isinstance(wanted, str) or not hmac.compare_digest(wanted.encode(), csrf.encode()):
        raise BadToken
