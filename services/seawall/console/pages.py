"""The pages. What the database lacks is said on the page; the rest of it is there."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from seawall.console import access, audit, now, search, tables, views
from seawall.console.access import DeadLettersUser, DecisionsUser, ExportUser, FiguresUser, Permission
from seawall.console.drawing import waterfall
from seawall.console.rendering import page
from seawall.console.shapes import OUTCOMES
from seawall.console.state import state_of
from seawall.core.errors import Poison, SeawallError

router = APIRouter(include_in_schema=False)

_EXPORT_SECONDS: Final = 120.0
_Hours = Annotated[int, Query(ge=1, le=24 * 14)]
_Text = Annotated[str, Query(max_length=search.MAX_VALUE)]


@router.get("/")
def now_page(request: Request, user: FiguresUser) -> Response:
    """What is wrong, at one look."""
    state = state_of(request)
    try:
        seen = now.look(state.db, state.watch, state.settings.limits, user.tenant)
    except SeawallError as error:
        return page(request, "now.html", status=503, now=None, rooms=state.watch.rooms, trouble=error)
    return page(request, "now.html", now=seen, limits=state.settings.limits, trouble=None)


@router.get("/decisions")
def decisions_page(request: Request, user: DecisionsUser, after: str = "") -> Response:
    """Search."""
    state = state_of(request)
    asked = search.understand(request.query_params, user.tenant)
    context: dict[str, Any] = {
        **{
            "search": asked,
            "outcomes": OUTCOMES,
            "built_in": views.BUILT_IN,
            "may_export": user.may(Permission.EXPORT),
        },
        **{"rows": [], "more": None, "first": not after, "saved": [], "trouble": None, "behind": state.behind()},
        "all_tenants": user.tenant is None,
    }
    status = 400 if asked.errors else 200
    try:
        context["saved"] = views.of(state.db, user.subject)
        if not asked.errors:
            rows, more = search.find(state.db, asked, limit=search.PAGE_ROWS, after=search.cursor_of(after))
            context |= {"rows": search.listed(state.db, rows), "more": search.told_cursor(more)}
            audit.record("search", user, query=asked.query, found=len(rows))
    except SeawallError as error:
        context["trouble"], status = error, 503
    return page(request, "decisions.html", status=status, **context)


@router.get("/decisions.csv")
def export(request: Request, user: ExportUser) -> Response:
    """The search's decisions as CSV."""
    state = state_of(request)
    asked = search.understand(request.query_params, user.tenant)
    if asked.errors:
        return RedirectResponse(f"/decisions?{request.url.query}", 303)
    audit.record("export", user, query=asked.query, at_most=state.settings.export_rows)
    lines = search.export(state.db, asked.wanted, state.settings.export_rows, seconds=_EXPORT_SECONDS)
    headers = {"Content-Disposition": 'attachment; filename="decisions.csv"'}
    return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/decisions/{generation_id}")
async def decision_page(request: Request, generation_id: str, user: DecisionsUser) -> Response:
    """Why, on one screen."""
    state = state_of(request)
    audit.record("look", user, generation_id=generation_id[:160])
    try:
        found = await state.look_up.explain(generation_id, user.tenant, state.behind)
    except SeawallError as error:
        return page(request, "decision.html", status=503, found=None, generation_id=generation_id, trouble=error)
    if found is None:
        return page(request, "decision.html", status=404, found=None, generation_id=generation_id, trouble=None)
    return page(
        request,
        "decision.html",
        found=found,
        generation_id=generation_id,
        falls={one.decision_id: waterfall(one.stages, one.took_ms or 0.0) for one in found.decisions if one.stages},
        links=state.settings.links,
        link=state.link,
        trouble=None,
    )


@router.get("/dead-letters")
def dead_letters_page(
    request: Request, user: DeadLettersUser, room: _Text = "", reason: _Text = "", resolved: bool = False
) -> Response:
    """What rooms set aside."""
    state = state_of(request)
    context: dict[str, Any] = {"room": room, "reason": reason, "resolved": resolved, "behind": state.behind()}
    try:
        found = tables.dead_letters(state.db, room or None, reason or None, 100, resolved=resolved)
    except SeawallError as error:
        return page(request, "dead_letters.html", status=503, found=None, reasons=[], trouble=error, **context)
    return page(request, "dead_letters.html", found=found, reasons=tables.by_reason(found), trouble=None, **context)


@router.get("/policies")
def policies_page(request: Request, user: FiguresUser, hours: _Hours = 24) -> Response:
    """What decided, and what was tried in shadow."""
    state = state_of(request)
    context: dict[str, Any] = {"hours": hours, "behind": state.behind()}
    try:
        found = tables.policies(state.db, hours, user.tenant)
    except SeawallError as error:
        return page(request, "policies.html", status=503, found=None, trouble=error, **context)
    return page(request, "policies.html", found=found, trouble=None, **context)


@router.get("/artefacts")
def artefacts_page(request: Request, user: FiguresUser) -> Response:
    """Models, lists and term packs that decisions rested on."""
    state = state_of(request)
    limits, behind = state.settings.limits, state.behind()
    try:
        found = state.artefacts()
    except SeawallError as error:
        return page(request, "artefacts.html", status=503, found=None, trouble=error, limits=limits, behind=behind)
    return page(request, "artefacts.html", found=found, trouble=None, limits=limits, behind=behind)


@router.post("/views", dependencies=[Depends(access.check_csrf)])
def save_view(
    request: Request,
    user: DecisionsUser,
    name: Annotated[str, Form(max_length=views.MAX_NAME)],
    query: Annotated[str, Form(max_length=4_000)] = "",
) -> Response:
    """Keep a search under a name."""
    asked = search.understand(dict(parse_qsl(query)), user.tenant)
    try:
        views.save(state_of(request).db, user.subject, views.View(name, asked.query))
    except Poison as error:
        return page(request, "problem.html", status=400, title="That view was not saved", detail=error.detail)
    return RedirectResponse(f"/decisions?{asked.query}", 303)


@router.post("/views/delete", dependencies=[Depends(access.check_csrf)])
def delete_view(
    request: Request, user: DecisionsUser, name: Annotated[str, Form(max_length=views.MAX_NAME)]
) -> Response:
    """Forget a kept search."""
    views.forget(state_of(request).db, user.subject, name)
    return RedirectResponse("/decisions", 303)
