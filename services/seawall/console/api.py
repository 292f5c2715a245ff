"""The JSON interface: what the pages show, for programs. Signed in as the pages are, by the session's cookie."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Request, Security
from fastapi.openapi.utils import get_openapi
from fastapi.security import APIKeyCookie

from seawall import __version__
from seawall.console import audit, now, search, tables
from seawall.console.access import DeadLettersUser, DecisionsUser, FiguresUser
from seawall.console.shapes import (
    Artefacts,
    DeadLetterPage,
    DecisionPage,
    Explained,
    Failure,
    Now,
    Policies,
)
from seawall.console.state import state_of
from seawall.core.errors import Poison

PREFIX: Final = "/api/v1"
SESSION_COOKIE: Final = "seawall_session"

_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "A field means nothing."},
    401: {"model": Failure, "description": "Nobody is signed in."},
    403: {"model": Failure, "description": "The role does not reach."},
    422: {"model": Failure, "description": "A parameter has the wrong form."},
    503: {"model": Failure, "description": "The ledger, or Kafka, does not answer."},
}
# For the description alone: who is signed in is checked by each question's own dependency.
_cookie = APIKeyCookie(name=SESSION_COOKIE, auto_error=False)
router = APIRouter(prefix=PREFIX, responses=_FAILURES, dependencies=[Security(_cookie)])


class NotFound(Exception):
    """No such generation, or not of this tenant: nobody can tell which."""


_Text = Annotated[str | None, Query(max_length=search.MAX_VALUE)]
_Outcome = Literal["HOLD", "ALLOW", "REVIEW", "BLOCK", "BLOCK_AND_REPORT"]


@router.get("/now")
def get_now(request: Request, user: FiguresUser) -> Now:
    """Figures of the last hour, and what is wrong."""
    state = state_of(request)
    return now.look(state.db, state.watch, state.settings.limits, user.tenant)


@router.get("/decisions")
def find_decisions(
    request: Request,
    user: DecisionsUser,
    id: Annotated[_Text, Query(description="A generation's id, a trace id, or the SHA-256 of a file.")] = None,
    actor: _Text = None,
    outcome: _Outcome | None = None,
    rule: _Text = None,
    artefact: Annotated[_Text, Query(description="Name of a model, list or term pack; NAME@VERSION for one.")] = None,
    tenant: _Text = None,
    since: Annotated[_Text, Query(description="An ISO 8601 instant, or a span back from now: 15m, 2h, 3d.")] = None,
    until: _Text = None,
    overridden: Annotated[bool, Query(description="Those on which a person has the last word.")] = False,
    limit: Annotated[int, Query(ge=1, le=500)] = search.PAGE_ROWS,
    after: Annotated[str | None, Query(pattern=search.CURSOR, description="The last page's `after`.")] = None,
) -> DecisionPage:
    """Search, newest first."""
    given = {"id": id, "actor": actor, "outcome": outcome, "rule": rule, "artefact": artefact, "tenant": tenant}
    given |= {"since": since, "until": until, "overridden": search.OVERRIDDEN if overridden else None}
    asked = search.understand({name: value for name, value in given.items() if value is not None}, user.tenant)
    if asked.errors:
        raise Poison("BAD_SEARCH", "; ".join(f"{name}: {why}" for name, why in asked.errors.items()))
    db = state_of(request).db
    rows, more = search.find(db, asked, limit=limit, after=search.cursor_of(after or ""))
    audit.record("search", user, query=asked.query, found=len(rows))
    return DecisionPage(decisions=search.listed(db, rows), after=search.told_cursor(more))


@router.get("/decisions/{generation_id}", responses={404: {"model": Failure, "description": "There is none."}})
async def get_decision(
    request: Request, user: DecisionsUser, generation_id: Annotated[str, Path(max_length=500)]
) -> Explained:
    """Why a generation was decided as it was."""
    state = state_of(request)
    audit.record("look", user, generation_id=generation_id[:160])
    found = await state.look_up.explain(generation_id, user.tenant, state.behind)
    if found is None:
        raise NotFound
    return found


@router.get("/dead-letters")
def find_dead_letters(
    request: Request,
    user: DeadLettersUser,
    room: _Text = None,
    reason: _Text = None,
    resolved: bool = False,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> DeadLetterPage:
    """The newest dead letters that nobody has dealt with, or those that somebody has, and the kinds of those left."""
    return tables.dead_letters(state_of(request).db, room, reason, limit, resolved=resolved)


@router.get("/policies")
def get_policies(request: Request, user: FiguresUser, hours: Annotated[int, Query(ge=1, le=24 * 14)] = 24) -> Policies:
    """What decided in the last hours, and what was said in shadow."""
    return tables.policies(state_of(request).db, hours, user.tenant)


@router.get("/artefacts")
def get_artefacts(request: Request, user: FiguresUser) -> Artefacts:
    """Models, lists and term packs that decisions rested on."""
    return state_of(request).artefacts()


@router.get("/openapi.json", include_in_schema=False)
def describe(request: Request, user: FiguresUser) -> dict[str, Any]:
    """This interface's description."""
    return description(request.app.routes)


def description(routes: Any) -> dict[str, Any]:
    """OpenAPI 3.1."""
    return get_openapi(title="Seawall console", version=__version__, routes=routes)
