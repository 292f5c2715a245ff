"""``seawall ledger`` and ``seawall find``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine, RowMapping

from seawall.api.decision.v1 import decision_pb2
from seawall.cli.terminal import console, print_json
from seawall.cli.why import OUTCOME_STYLE
from seawall.core.errors import Fatal
from seawall.ledger import database, queries
from seawall.ledger.instants import instant
from seawall.ledger.settings import LedgerSettings
from seawall.runtime.settings import load_settings

_NANOS: Final = 1_000_000_000


def migrate() -> None:
    """Bring the tables to this version."""
    with _database() as db:
        revision = database.migrate(db)
    console().print(f"the ledger is at revision {revision}")


def rebuild(*, yes: bool) -> None:
    """Empty the ledger; the room fills it again from the topics."""
    if not yes:
        raise Fatal(
            "NOT_CONFIRMED",
            "every row is deleted, and the topics are read again as far as they reach back: stop the ledger, "
            "add --yes, start it",
        )
    with _ledger() as db:
        database.empty(db)
    console().print("the ledger is empty: it is filled again when the room starts")


def stat(*, json_output: bool) -> None:
    """How far the ledger has come, and what it could not read."""
    with _ledger() as db:
        found = queries.state(db)
    now = time.time()
    partitions = {
        name: {"next_offset": offset, "seconds_behind": round(max(now - log / _NANOS, 0.0), 1), "missed": missed}
        for name, (offset, log, missed) in sorted(found.positions.items())
    }
    if json_output:
        print_json({"partitions": partitions, "unreadable": found.unreadable})
        return
    table = Table("partition", "next offset", "last record", "missed", box=None)
    for name, one in partitions.items():
        table.add_row(name, str(one["next_offset"]), f"{one['seconds_behind']} s ago", str(one["missed"]))
    console().print(table)
    if found.unreadable:
        console().print(Text(f"{found.unreadable} records could not be read: see the table unreadable", "red"))


def find(
    *,
    tenant: str | None,
    actor: str | None,
    outcome: str | None,
    rule: str | None,
    trace: str | None,
    content: str | None,
    artefact: str | None,
    since: str | None,
    until: str | None,
    overridden: bool,
    limit: int,
    json_output: bool,
) -> None:
    """Search decisions, newest first."""
    name, _, version = (artefact or "").partition("@")
    wanted = queries.Filter(
        tenant_id=tenant,
        actor_id=actor,
        outcome=_outcome(outcome),
        rule_id=rule,
        trace_id=trace,
        content=content.removeprefix("sha256:").lower() if content else None,
        artefact=name or None,
        artefact_version=version or None,
        since=_instant("--since", since),
        until=_instant("--until", until),
        overridden=overridden,
    )
    with _ledger() as db:
        rows, cursor = queries.find(db, wanted, limit=limit)
        said = queries.overrides_of(db, {row["generation_id"] for row in rows})
    if json_output:
        print_json(
            {"decisions": [_document(row, said.get(row["generation_id"])) for row in rows], "more": cursor is not None}
        )
        return
    table = Table("decided", "outcome", "generation", "rule", "actor", "a person's word", box=None)
    for row in rows:
        name = _outcome_name(row["outcome"])
        table.add_row(
            _time(row["decided_unix_nano"]),
            Text(name, OUTCOME_STYLE.get(name, "")),
            f"{row['generation_id']} #{row['attempt']}",
            row["rule_id"],
            row["actor_id"],
            _word(said.get(row["generation_id"])),
        )
    console().print(table)
    console().print(Text(f"{len(rows)} decisions{', and more' if cursor else ''}", "dim"))


def generations(content: bool, value: str, most: int) -> list[str]:
    """Ids of the generations with that content digest, or that trace id, the newest first; none without a ledger.

    Raises SeawallError if there is one that cannot be asked.
    """
    settings = load_settings(LedgerSettings, "ledger").database
    if settings.url is None and not Path(settings.address.removeprefix("sqlite:///")).exists():
        return []
    wanted = queries.Filter(content=value) if content else queries.Filter(trace_id=value)
    with _ledger() as db:
        rows, _ = queries.find(db, wanted, limit=most)
    return list(dict.fromkeys(row["generation_id"] for row in rows))


@contextmanager
def _database() -> Iterator[Engine]:
    db = database.connect(load_settings(LedgerSettings, "ledger").database)
    try:
        yield db
    finally:
        db.dispose()


@contextmanager
def _ledger() -> Iterator[Engine]:
    """The database, its tables being those of this version."""
    with _database() as db:
        database.check_migrated(db)
        yield db


def _outcome(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return int(decision_pb2.Outcome.Value(f"OUTCOME_{name.upper()}"))
    except ValueError:
        known = ", ".join(value.removeprefix("OUTCOME_") for value in decision_pb2.Outcome.keys()[1:])
        raise Fatal("BAD_OUTCOME", f"--outcome {name} is none: one of {known}") from None


def _outcome_name(number: int) -> str:
    return decision_pb2.Outcome.Name(decision_pb2.Outcome.ValueType(number)).removeprefix("OUTCOME_")


def _instant(option: str, given: str | None) -> int | None:
    """Unix nanoseconds of what a person wrote."""
    if given is None:
        return None
    try:
        return instant(given)
    except Fatal as error:
        raise Fatal(error.reason, f"{option} {given}: {error.detail}") from None


def _time(nanos: int) -> str:
    return datetime.fromtimestamp(nanos / _NANOS, UTC).isoformat(timespec="milliseconds")


def _word(said: RowMapping | None) -> Text:
    """What a person said of the generation; nothing if it was taken back."""
    if said is None or said["outcome"] == queries.WITHDRAWN:
        return Text("")
    name = _outcome_name(said["outcome"])
    return Text.assemble((name, OUTCOME_STYLE.get(name, "")), f" by {said['made_by']} ({said['reason_code']})")


def _document(row: RowMapping, said: RowMapping | None) -> dict[str, Any]:
    return {
        **{key: row[key] for key in ("decision_id", "generation_id", "attempt", "tenant_id", "actor_id", "model")},
        "outcome": _outcome_name(row["outcome"]),
        **{key: row[key] for key in ("rule_id", "reason_code", "policy_digest", "trace_id", "summary")},
        "decided": _time(row["decided_unix_nano"]),
        "record": {"partition": row["partition"], "offset": row["offset"]},
        "override": None if said is None else _override(said),
    }


def _override(said: RowMapping) -> dict[str, Any]:
    outcome = said["outcome"]
    return {
        "outcome": None if outcome == queries.WITHDRAWN else _outcome_name(outcome),
        "outcome_before": _outcome_name(said["outcome_before"]),
        "by": said["made_by"],
        "reason_code": said["reason_code"],
        "made": _time(said["made_unix_nano"]),
        "decision_ids": said["decision_ids"],
    }
