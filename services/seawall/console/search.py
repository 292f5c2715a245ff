"""Searches: from what somebody typed to the ledger's filter, and back to rows. Nothing typed reaches SQL as text."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import Engine, RowMapping

from seawall.api.decision.v1 import decision_pb2
from seawall.console.shapes import OUTCOMES, DecisionRow, instant, outcome_name
from seawall.core.errors import Fatal, SeawallError
from seawall.ledger import queries
from seawall.ledger.instants import instant as parse_instant
from seawall.ledger.queries import Cursor, Filter

#: Names of the search form's fields, in its order.
FIELDS: Final = ("id", "actor", "outcome", "rule", "artefact", "tenant", "since", "until", "overridden")
#: Of the field of that name: those on which a person has the last word.
OVERRIDDEN: Final = "yes"
PAGE_ROWS: Final = 50
MAX_VALUE: Final = 200
_HEX: Final = re.compile(r"(?:sha256:)?([0-9a-fA-F]{32}|[0-9a-fA-F]{64})\Z")
#: A page's place: the decision before it.
CURSOR: Final = r"^([0-9]{1,19})\.([0-9a-f]{32})$"
#: What a spreadsheet would take for a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@dataclass
class Search:
    """A search as it was typed, what it means, and what about it means nothing."""

    values: dict[str, str]
    wanted: Filter
    #: By field: why it was not understood.
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """As a query string."""
        return urlencode({name: value for name, value in self.values.items() if value})


def understand(given: Mapping[str, str], tenant_id: str | None) -> Search:
    """What somebody searches for.

    Args:
        given: by FIELDS; others are left out.
        tenant_id: who sees one tenant searches it, whatever was typed.
    """
    values = {name: given.get(name, "").strip() for name in FIELDS}
    errors = {name: f"longer than {MAX_VALUE} characters" for name, value in values.items() if len(value) > MAX_VALUE}
    errors |= {name: "holds characters that cannot be printed" for name in values if not values[name].isprintable()}
    values = {name: "" if name in errors else value for name, value in values.items()}
    wanted: dict[str, Any] = {"tenant_id": values["tenant"] or None}
    for name, column in (("actor", "actor_id"), ("rule", "rule_id")):
        wanted[column] = values[name] or None
    wanted.update(_by_id(values["id"]))
    if values["outcome"]:
        name = values["outcome"].upper().replace(" ", "_")
        if name in OUTCOMES:
            values["outcome"], wanted["outcome"] = name, OUTCOMES.index(name) + 1
        else:
            errors["outcome"] = f"one of {', '.join(OUTCOMES)}"
    if values["overridden"] not in ("", OVERRIDDEN):
        errors["overridden"] = f"{OVERRIDDEN}, or nothing"
    wanted["overridden"] = values["overridden"] == OVERRIDDEN
    artefact, _, version = values["artefact"].partition("@")
    wanted.update(artefact=artefact or None, artefact_version=version or None)
    for name in ("since", "until"):
        try:
            wanted[name] = parse_instant(values[name]) if values[name] else None
        except Fatal as error:
            errors[name] = error.detail
    if tenant_id is not None:
        wanted["tenant_id"], values["tenant"] = tenant_id, ""
    return Search(values, Filter(**wanted), errors)


def _by_id(value: str) -> dict[str, str]:
    """A generation's id, a trace id (32 hex digits), or the SHA-256 of a file (64)."""
    if not value:
        return {}
    if found := _HEX.match(value):
        return {"content" if len(found[1]) == 64 else "trace_id": found[1].lower()}
    return {"generation_id": value}


def find(db: Engine, search: Search, *, limit: int, after: Cursor | None) -> tuple[Sequence[RowMapping], Cursor | None]:
    """As `queries.find`. 32 hex digits may be a trace, or a generation whose platform names them so."""
    found = queries.find(db, search.wanted, limit=limit, after=after, with_summary=False)
    if not found[0] and search.wanted.trace_id is not None:
        wanted = replace(search.wanted, trace_id=None, generation_id=search.values["id"])
        return queries.find(db, wanted, limit=limit, after=after, with_summary=False)
    return found


def cursor_of(text: str) -> Cursor | None:
    """The place that `told_cursor` told; None where it is none: then the first page."""
    found = re.fullmatch(CURSOR, text)
    return Cursor(int(found[1]), found[2]) if found and int(found[1]) < 2**63 else None


def told_cursor(cursor: Cursor | None) -> str | None:
    """A cursor as a page's address carries it."""
    return f"{cursor.decided_unix_nano}.{cursor.decision_id}" if cursor else None


def listed(db: Engine, rows: Sequence[RowMapping]) -> list[DecisionRow]:
    """Rows as they are listed, with what a person said of their generations. Raises as `queries.find`."""
    said = queries.overrides_of(db, {row["generation_id"] for row in rows})
    return [_row_of(row, said.get(row["generation_id"])) for row in rows]


def _row_of(row: RowMapping, said: RowMapping | None) -> DecisionRow:
    # A late signal's decision names no tenant, and two tenants may name a generation alike.
    theirs = said is not None and row["tenant_id"] in ("", said["tenant_id"])
    word = said if said is not None and theirs and said["outcome"] != queries.WITHDRAWN else None
    generated = row["generated_unix_nano"]
    return DecisionRow(
        decided=instant(row["decided_unix_nano"]),
        outcome=outcome_name(row["outcome"]),
        late=row["kind"] == decision_pb2.DECISION_KIND_AMENDMENT,
        took_ms=max(row["decided_unix_nano"] - generated, 0) / 1e6 if generated else None,
        override=outcome_name(word["outcome"]) if word else "",
        override_by=word["made_by"] if word else "",
        **{
            name: row[name]
            for name in (
                *("generation_id", "attempt", "rule_id", "reason_code", "severity", "tenant_id", "actor_id", "model"),
                *("trace_id", "decision_id"),
            )
        },
    )


def export(db: Engine, wanted: Filter, most: int, *, seconds: float) -> Iterator[str]:
    """The decisions as CSV, newest first, piece by piece.

    Its last line says so if it does not hold all: at ``most`` rows, after ``seconds``, or where the ledger failed.
    """
    names = list(DecisionRow.model_fields)
    yield _line(names)
    until, after, written = time.monotonic() + seconds, None, 0
    while True:
        try:
            limit = min(queries.MAX_PAGE, most - written)
            rows, after = queries.find(db, wanted, limit=limit, after=after, with_summary=False)
            found = listed(db, rows)
        except SeawallError as error:
            yield _line(["# incomplete", error.reason])
            return
        yield "".join(_line(_cells(row, names)) for row in found)
        written += len(rows)
        if after is None:
            return
        if written >= most or time.monotonic() > until:
            yield _line(["# incomplete", f"the first {written} decisions: search for less"])
            return


def _cells(row: DecisionRow, names: Iterable[str]) -> list[str]:
    cells = []
    for name in names:
        value = getattr(row, name)
        text = "" if value is None else value.isoformat() if name == "decided" else str(value)
        cells.append(f"'{text}" if text.startswith(_FORMULA) else text)
    return cells


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()
