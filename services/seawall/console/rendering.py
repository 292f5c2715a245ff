"""Pages from templates: everything is escaped unless a drawing made it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from seawall.console import access, drawing
from seawall.console.access import Permission
from seawall.console.problems import duration

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"
#: (path, name, key after "g", permission)
PAGES: Final = (
    ("/", "Now", "n", Permission.FIGURES),
    ("/decisions", "Decisions", "d", Permission.DECISIONS),
    ("/dead-letters", "Dead letters", "l", Permission.DEAD_LETTERS),
    ("/policies", "Policies", "p", Permission.FIGURES),
    ("/artefacts", "Models and lists", "m", Permission.FIGURES),
)
_THEMES: Final = ("light", "dark")
_NAMES: Final = {
    "HOLD": "Hold",
    "ALLOW": "Allow",
    "REVIEW": "Review",
    "BLOCK": "Block",
    "BLOCK_AND_REPORT": "Block & report",
}


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    """A whole page, or, for htmx, the same page of which it takes a part."""
    user = access.user_of(request)
    theme = request.cookies.get("theme")
    html = (
        environment()
        .get_template(template)
        .render(
            user=user,
            pages=[one for one in PAGES if user is not None and user.may(one[3])],
            path=request.url.path,
            csrf=access.csrf_of(request),
            theme=theme if theme in _THEMES else None,
            **context,
        )
    )
    return HTMLResponse(html, status)


@cache
def environment() -> Environment:
    """The templates; a name that a template misses is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(asset=_asset, draw=drawing, outcome=lambda name: _NAMES.get(name, name))
    filters: dict[str, Callable[..., str]] = {
        "duration": duration,
        "ms": _ms,
        "clock": _clock,
        "iso": _iso,
        "number": lambda value: f"{value:,}",
        "percent": _percent,
        "segment": lambda value: quote(str(value), safe=""),
    }
    made.filters.update(filters)
    return made


@cache
def _asset(name: str) -> str:
    """A static file's address, with its digest: it may be kept for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?{digest}"


def _ms(value: float | None) -> str:
    return "–" if value is None else duration(value / 1000)


def _clock(value: datetime) -> str:
    return value.strftime("%Y-%m-%d %H:%M:%S")


def _iso(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _percent(value: float) -> str:
    """With as many digits as tell it from 0 and from 100."""
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    if value > 0.9995:
        return ">99.9 %"
    return f"{value * 100:.1f} %" if value >= 0.001 else "<0.1 %"
