"""The console at five million decisions: pages over HTTP and searches by every index, on SQLite and on PostgreSQL.

The rows are made in the database, by one statement a table, their indices afterwards: the writer's rate is `ledger`'s,
and a test shows that they are what the ledger would have written. A week of them, of twenty tenants and fifty thousand
actors; every fifth has a picture. SEAWALL_BENCH_CONSOLE_FOLDER keeps them for the next run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import httpx2
import uvicorn
from alembic.migration import MigrationContext
from alembic.operations import Operations
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, bindparam, event, func, insert, select, text

from seawall.api.decision.v1 import decision_pb2
from seawall.console import api
from seawall.console.app import application
from seawall.console.lookup import LookUp
from seawall.console.records import DecisionRecords, Ends
from seawall.console.settings import ConsoleSettings
from seawall.console.sign_in import OneTimeToken
from seawall.console.state import State
from seawall.console.watch import Watch
from seawall.ledger import database, queries
from seawall.ledger.queries import Cursor, Filter
from seawall.ledger.rows import Row, Rows
from seawall.ledger.settings import DatabaseSettings
from seawall.ledger.tables import artefact_sets, contents, decisions, overrides
from seawall.runtime import logging
from seawall.runtime.memory import InMemoryBroker
from seawall.runtime.settings import TelemetrySettings
from tests.bench.harness import Report, say
from tests.support import postgresql
from tests.support.console import REPORT, Rooms, csrf_of, recent
from tests.support.ledger_rows import BLOCK, NANOS, record
from tests.support.records import DECISIONS, OVERRIDES

COUNT = int(os.environ.get("SEAWALL_BENCH_CONSOLE_DECISIONS", "5000000"))
DATABASES = os.environ.get("SEAWALL_BENCH_CONSOLE_DATABASES", "sqlite postgresql").split()
REPEATS = 30
WEEK = 7 * 86_400 * NANOS
TENANTS, ACTORS, SETS = 20, 50_000, 40
#: What differs between the two: a column of numbers, ids and digests by chance, the UTC day of an instant.
_SQL = {
    "sqlite": {
        "numbers": "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n WHERE i < {end})",
        "from": "n",
        "id": "lower(hex(randomblob(16)))",
        "digest": "lower(hex(randomblob(32)))",
        "day": "date({at} / 1000000000, 'unixepoch')",
    },
    "postgresql": {
        "numbers": "",
        "from": "generate_series({first}::bigint, {end}) AS n(i)",
        "id": "md5(i::text)",
        "digest": "encode(sha256(decision_id::bytea), 'hex')",
        "day": "(to_timestamp({at} / 1000000000) AT TIME ZONE 'UTC')::date",
    },
}


async def run(report: Report) -> None:
    """Each database by itself."""
    # Each request is a line of the audit.
    logging.setup(TelemetrySettings(log_level="warning"), "console", "bench")
    with contextlib.ExitStack() as stack:
        kept = os.environ.get("SEAWALL_BENCH_CONSOLE_FOLDER")
        folder = Path(kept or stack.enter_context(tempfile.TemporaryDirectory(prefix="seawall-bench-")))
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        if "sqlite" in DATABASES:
            await asyncio.to_thread(_measure, report, "sqlite", f"sqlite:///{folder}/ledger.db", folder)
        if "postgresql" in DATABASES:
            with postgresql.server(folder / "pg") as address:
                made = (folder / f"postgresql.{COUNT}").exists()
                address = postgresql.dialect(address) if made else postgresql.fresh(address)
                await asyncio.to_thread(_measure, report, "postgresql", address, folder)


def _measure(report: Report, name: str, address: str, folder: Path) -> None:
    marker = folder / f"{name}.{COUNT}"
    if not marker.exists():
        make(name, address, COUNT)
        marker.touch()
    _migrate(address)
    settings = DatabaseSettings(url=SecretStr(address), timeout_seconds=5.0)
    db = database.connect(settings, bound_statements=True)
    wanted = Filter(generation_id=f"g-{COUNT // 2}")
    (middle,), _ = queries.find(db, wanted)
    with db.connect() as connection:
        content = connection.execute(select(contents.c.sha256).limit(1)).scalar_one()
        last = int(connection.execute(select(func.max(decisions.c.decided_unix_nano))).scalar_one())
    report.add(f"{name}: decisions", COUNT)
    for what, wanted, after in _searches(middle, content, last):
        took = _p95(lambda wanted=wanted, after=after: queries.find(db, wanted, after=after)[0])  # type: ignore[misc]
        report.add(f"{name}: search by {what}, p95", took, 300, "<=", "ms")
    with _clock_set_to(last), _served(settings, db, folder) as client:
        for path in _pages(middle, last):
            took = _p95(lambda path=path: _asked(client, path))  # type: ignore[misc]
            report.add(f"{name}: {path[:44]}, p95", took, 150, "<=", "ms")
    db.dispose()


@contextmanager
def _clock_set_to(last: int) -> Iterator[None]:
    """Kept rows grow old: to the console the newest of them was decided a moment ago, always."""
    real, old = time.time_ns, time.time_ns() - last - 2 * NANOS
    with mock.patch("time.time_ns", lambda: real() - old):
        yield


# ---- rows ------------------------------------------------------------------------------------------------------------


def _migrate(address: str) -> Engine:
    db = database.connect(DatabaseSettings(url=SecretStr(address), timeout_seconds=3_600))
    database.migrate(db)
    db.dispose()
    return db


@cache
def template(number: int) -> decision_pb2.Decision:
    """What the decisions of one artefact set have in common."""
    made = recent(number, ago=1, outcome=REPORT)
    # Rows do not know of a bundle, and what they are counted by here is rows.
    made.policy_version = made.bundle_digest = ""
    made.signals[1].signal.artefacts[0].version = str(number)
    return made


def make(name: str, address: str, count: int) -> None:
    """A week's decisions, the newest a moment ago."""
    say(f"{name}: making {count:,} decisions")
    db = _migrate(address)
    if name == "sqlite":
        # Written once, not to a log and then again: nothing of it need survive a crash.
        event.listen(db, "connect", _hurry)
    last = time.time_ns() - 2 * NANOS
    rows = Rows()
    for number in range(SETS):
        rows.add_decision(record(number, template(number).SerializeToString()))
    with db.begin() as connection:
        database.make_days(connection, {queries.day_of(last - WEEK + number * 86_400 * NANOS) for number in range(9)})
        for table in (decisions, contents):
            for index in table.indexes:
                connection.exec_driver_sql(f"DROP INDEX {index.name}")
        for number, rows_of_set in enumerate(rows.artefact_sets.values()):
            connection.execute(insert(artefact_sets), rows_of_set)
            first, end = (count * part // SETS for part in (number, number + 1))
            _insert(connection, _SQL[name], range(first + 1, end + 1), last, WEEK // count, rows.decisions[number])
        fields, fifth = "day, {digest}, decision_id, 'output/0'", "generation_offset % 5 = 0"
        pictures = f"SELECT {fields} FROM decisions WHERE {fifth}".format(**_SQL[name])  # noqa: S608
        connection.execute(text(f"INSERT INTO contents (day, sha256, decision_id, item_id) {pictures}"))
        # A person has looked at a tenth of what was not allowed, and allowed it.
        said = "generation_id, decision_id, tenant_id, actor_id, 2, outcome, 'FALSE_POSITIVE', 'ada', decided_unix_nano"
        where = """day, decision_id, decided_unix_nano, '[]', 0, "offset" FROM decisions"""
        seen = "outcome > 2 AND generation_offset % 10 = 0"
        names = ", ".join(f'"{column.name}"' for column in overrides.columns)
        connection.execute(text(f"INSERT INTO overrides ({names}) SELECT {said}, {where} WHERE {seen}"))
        for table in (decisions, contents):
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                index.create(connection)
        # As the migrations count what they find.
        with Operations.context(MigrationContext.configure(connection)):
            import_module("seawall.ledger.migrations.versions.0002_counts")._fill()
            import_module("seawall.ledger.migrations.versions.0003_totals_and_resolutions").total()
    with db.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")
    db.dispose()


def _insert(connection: Connection, words: dict[str, str], which: range, last: int, apart: int, same: Row) -> None:
    at = f"({last - WEEK} + i * {apart})"
    columns = {
        "day": words["day"].format(at=at),
        "decision_id": words["id"],
        "generation_id": "'g-' || i",
        "outcome": "CASE WHEN i % 499 = 0 THEN 5 WHEN i % 199 = 1 THEN 4 WHEN i % 53 = 2 THEN 3 "
        "WHEN i % 101 = 3 THEN 1 ELSE 2 END",
        "rule_id": "CASE WHEN i % 499 = 0 THEN 'known-hash' WHEN i % 199 = 1 THEN 'attempt-in-prompt' "
        "WHEN i % 53 = 2 THEN 'prompt-needs-review' WHEN i % 101 = 3 THEN 'engine/incomplete-evidence' "
        "ELSE 'engine/no-rule-matched' END",
        "tenant_id": f"'tenant-' || (i / 3 % {TENANTS})",
        "actor_id": f"'actor-' || (i * 7919 % {ACTORS})",
        "generated_unix_nano": f"{at} - (20 + i % 400) * 1000000",
        "decided_unix_nano": at,
        "trace_id": words["id"],
        "generation_partition": "i % 12",
        "generation_offset": "i / 12",
        "partition": "i % 12",
        "offset": "i / 12",
    }
    names = [column.name for column in decisions.columns]
    quoted = ", ".join(f'"{name}"' for name in names)
    numbers, source = (words[part].format(first=which[0], end=which[-1]) for part in ("numbers", "from"))
    values = ", ".join(columns.get(name, f":{name}") for name in names)
    statement = text(f"INSERT INTO decisions ({quoted}) {numbers} SELECT {values} FROM {source}")  # noqa: S608
    given = [bindparam(name, same[name], type_=decisions.c[name].type) for name in names if name not in columns]
    connection.execute(statement.bindparams(*given))


def _hurry(connection: Any, _: Any) -> None:
    for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-400000", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")


# ---- questions -------------------------------------------------------------------------------------------------------


def _searches(middle: Any, content: str, last: int) -> list[tuple[str, Filter, Cursor | None]]:
    half = Cursor(middle["decided_unix_nano"], middle["decision_id"])
    return [
        ("nothing: the newest", Filter(), None),
        ("nothing: from the middle on", Filter(), half),
        ("id", Filter(generation_id=middle["generation_id"]), None),
        ("trace", Filter(trace_id=middle["trace_id"]), None),
        ("content", Filter(content=content), None),
        ("actor", Filter(actor_id=middle["actor_id"]), None),
        ("outcome", Filter(outcome=BLOCK), None),
        ("outcome, from the middle on", Filter(outcome=BLOCK), half),
        ("rule", Filter(rule_id="known-hash"), None),
        ("tenant", Filter(tenant_id="tenant-3"), None),
        ("time", Filter(since=last - WEEK // 2, until=last - WEEK // 2 + 60 * NANOS), None),
        ("model", Filter(artefact="classification-model"), None),
        ("list's version", Filter(artefact="perceptual_hashing-model", artefact_version="7"), None),
        ("tenant and outcome", Filter(tenant_id="tenant-3", outcome=BLOCK), None),
        ("a person's word", Filter(overridden=True), None),
        ("a person's word and outcome", Filter(overridden=True, outcome=BLOCK), None),
        ("a person's word and tenant, from the middle on", Filter(overridden=True, tenant_id="tenant-3"), half),
        ("tenant, rule and time", Filter(tenant_id="tenant-3", rule_id="known-hash", since=last - WEEK // 2), None),
    ]


def _pages(middle: Any, last: int) -> list[str]:
    half = f"after={middle['decided_unix_nano']}.{middle['decision_id']}"
    hour = datetime.fromtimestamp(last // NANOS - 3_600, UTC).isoformat().replace("+00:00", "Z")
    actor = f"actor={middle['actor_id']}"
    searches = ("", "outcome=BLOCK", "rule=known-hash", actor, f"tenant=tenant-3&since={hour}", half, "overridden=yes")
    return [
        "/",
        *(f"/decisions?{query}" for query in searches),
        f"/decisions/{middle['generation_id']}",
        "/dead-letters",
        "/policies?hours=24",
        "/policies?hours=168",
        "/artefacts",
        f"{api.PREFIX}/now",
        f"{api.PREFIX}/decisions?limit=500",
    ]


def _asked(client: httpx2.Client, path: str) -> str:
    answer = client.get(path)
    if answer.status_code != 200:
        raise AssertionError(f"{path}: {answer.status_code}")
    return answer.text


def _p95(ask: Callable[[], Any]) -> float:
    """Milliseconds. The first time, which fills the database's own cache, counts too."""
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        found = ask()
        took.append(time.perf_counter() - began)
        if not found:
            raise AssertionError("a question of the benchmark found nothing: it measures nothing")
    return sorted(took)[int(len(took) * 0.95)] * 1000


@contextmanager
def _served(settings: DatabaseSettings, db: Engine, folder: Path) -> Iterator[httpx2.Client]:
    """A client of the console on this database, signed in."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        broker = InMemoryBroker()
        records = DecisionRecords(broker, DECISIONS, OVERRIDES, record_seconds=2.0, scan_seconds=5.0)
        watch = Watch(Rooms(), Ends(broker, ()), every=60.0, timeout=1.0)
        state = State(ConsoleSettings(database=settings), db, watch, LookUp(db, records))
        token = OneTimeToken(address, folder / "console.link")
        app = application(state, token=token)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            with httpx2.Client(base_url=address, timeout=30) as client:
                form = {"csrf": csrf_of(client.get("/login").text), "token": token.link.partition("token=")[2]}
                client.post("/login", data=form)
                yield client
        finally:
            server.should_exit = True
            thread.join(10)
