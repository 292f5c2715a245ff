"""Searches that somebody keeps under a name."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import Engine, delete, func, insert, select

from seawall.core.errors import Poison
from seawall.ledger.database import retryable
from seawall.ledger.tables import saved_views

MAX_VIEWS: Final = 50
MAX_NAME: Final = 80


class View(NamedTuple):
    """A name and a query string of the search page."""

    name: str
    query: str


#: Everybody's.
BUILT_IN: Final = (
    View("Blocked and to be reported, a day", "outcome=BLOCK_AND_REPORT&since=24h"),
    View("Held, an hour", "outcome=HOLD&since=1h"),
    View("For review, a day", "outcome=REVIEW&since=24h"),
    View("Overridden by a person, a week", "since=7d&overridden=yes"),
)


def of(db: Engine, owner: str) -> list[View]:
    """The owner's views by name. Raises as `ledger.database.retryable`."""
    query = select(saved_views.c.name, saved_views.c.query).where(saved_views.c.owner == owner)
    with retryable("read saved views"), db.connect() as connection:
        return [View(*row) for row in connection.execute(query.order_by(saved_views.c.name).limit(MAX_VIEWS))]


def save(db: Engine, owner: str, view: View) -> None:
    """Keep a view; one of the same name is replaced.

    Raises:
        Poison: BAD_VIEW (no name, or too many views).
        Retryable, Fatal: as `ledger.database.retryable`.
    """
    name = view.name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise Poison("BAD_VIEW", f"a view needs a name of 1 to {MAX_NAME} printable characters")
    mine = saved_views.c.owner == owner
    with retryable("save a view"), db.begin() as connection:
        connection.execute(delete(saved_views).where(mine, saved_views.c.name == name))
        if connection.execute(select(func.count()).select_from(saved_views).where(mine)).scalar_one() >= MAX_VIEWS:
            raise Poison("BAD_VIEW", f"you keep {MAX_VIEWS} views already: delete one")
        connection.execute(insert(saved_views).values(owner=owner, name=name, query=view.query))


def forget(db: Engine, owner: str, name: str) -> None:
    """Delete a view; nothing happens if there is none. Raises as `save`."""
    with retryable("delete a view"), db.begin() as connection:
        connection.execute(delete(saved_views).where(saved_views.c.owner == owner, saved_views.c.name == name))
