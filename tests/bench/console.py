"""The console at five million decisions: pages over HTTP and searches by every index, on SQLite and on PostgreSQL.

The rows are made in the database, by one statement a table, their indices afterwards: the writer's rate is `ledger`'s.
A week of them, of twenty tenants and fifty thousand actors; every fifth has a picture.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from alembic.migration import MigrationContext
from alembic.operations import Operations
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, Table, bindparam, insert, select, text

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
from seawall.ledger.rows import Rows
from seawall.ledger.settings import DatabaseSettings
from seawall.ledger.tables import artefact_sets, contents, decisions
from seawall.runtime.memory import InMemoryBroker
from tests.bench.harness import Report, say
from tests.support import postgresql
from tests.support.console import REPORT, Rooms, csrf_of, recent
from tests.support.ledger_rows import ALLOW, BLOCK, NANOS, record
from tests.support.records import DECISIONS

COUNT = int(os.environ.get("SEAWALL_BENCH_CONSOLE_DECISIONS", "5000000"))
DATABASES = os.environ.get("SEAWALL_BENCH_CONSOLE_DATABASES", "sqlite postgresql").split()
REPEATS = 30
WEEK = 7 * 86_400 * NANOS
TENANTS, ACTORS, SETS = 20, 50_000, 40
#: What differs between the two: numbers from 1 to COUNT, hex digits of chance, a day, an integer's part of a week.
_SQL = {
    "sqlite": {
        "numbers": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})",
        "from": "n",
        "hex32": "lower(hex(randomblob(16)))",
        "hex64": "lower(hex(randomblob(32)))",
        "day": "date({at} / 1000000000, 'unixepoch')",
        "false": "0",
    },
    "postgresql": {
        "numbers": "",
        "from": "generate_series(1, {count}) AS n(i)",
        "hex32": "md5(i::text)",
        "hex64": "encode(sha256(i::text::bytea), 'hex')",
        "day": "(to_timestamp({at} / 1000000000) AT TIME ZONE 'UTC')::date",
        "false": "false",
    },
}


async def run(report: Report) -> None:
    """Each database by itself."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        if "sqlite" in DATABASES:
            await asyncio.to_thread(_measure, report, "sqlite", f"sqlite:///{folder}/ledger.db", Path(folder))
            (Path(folder) / "ledger.db").unlink()
        if "postgresql" in DATABASES:
            with postgresql.server(Path(folder) / "pg") as address:
                fresh = postgresql.fresh(address)
                await asyncio.to_thread(_measure, report, "postgresql", fresh, Path(folder))


def _measure(report: Report, name: str, address: str, folder: Path) -> None:
    owner = database.connect(DatabaseSettings(url=SecretStr(address), timeout_seconds=3_600))
    database.migrate(owner)
    last = time.time_ns() - 2 * NANOS
    began = time.perf_counter()
    say(f"{name}: making {COUNT:,} decisions")
    _fill(owner, name, last)
    report.add(f"{name}: decisions", COUNT)
    report.add(f"{name}: made in", time.perf_counter() - began, unit="s")
    with owner.connect() as connection:
        middle = (
            connection.execute(select(decisions).where(decisions.c.generation_id == f"g-{COUNT // 2}")).mappings().one()
        )
        content = connection.execute(select(contents.c.sha256).limit(1)).scalar_one()
    owner.dispose()
    settings = DatabaseSettings(url=SecretStr(address), timeout_seconds=5.0)
    db = database.connect(settings, bound_statements=True)
    for what, wanted, after in _searches(middle, content, last):
        took = _p95(lambda wanted=wanted, after=after: queries.find(db, wanted, after=after)[0])  # type: ignore[misc]
        report.add(f"{name}: search by {what}, p95", took, 300, "<=", "ms")
    with _served(settings, db, folder) as client:
        for path in _pages(middle):
            took = _p95(lambda path=path: _asked(client, path))  # type: ignore[misc]
            report.add(f"{name}: {path[:44]}, p95", took, 150, "<=", "ms")
    db.dispose()


# ---- rows ------------------------------------------------------------------------------------------------------------


def _fill(db: Engine, name: str, last: int) -> None:
    """A week's decisions, the newest at ``last``."""
    rows = Rows()
    for number in range(SETS):
        made = recent(number, ago=1, outcome=REPORT if number == 0 else ALLOW)
        made.signals[1].signal.artefacts[0].version = str(number)
        rows.add_decision(record(number, made.SerializeToString()))
    template = rows.decisions[0]
    sets = list(rows.artefact_sets)
    words = _SQL[name]
    at = f"({last - WEEK} + i * {WEEK // COUNT})"
    columns = {
        "day": words["day"].format(at=at),
        "decision_id": words["hex32"],
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
        "trace_id": words["hex32"],
        "generation_partition": "i % 12",
        "generation_offset": "i / 12",
        "partition": "i % 12",
        "offset": "i / 12",
        "rescanned": words["false"],
        "artefact_set": "CASE i * {sets} / {count} {cases} ELSE '{last}' END".format(
            sets=SETS,
            count=COUNT + 1,
            cases=" ".join(f"WHEN {number} THEN '{key}'" for number, key in enumerate(sets)),
            last=sets[-1],
        ),
    }
    with db.begin() as connection:
        if name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size=-400000")
        database.make_days(connection, _days(last))
        for table in (decisions, contents):
            _drop_indices(connection, table)
        _insert(connection, decisions, words, columns, template)
        picture = {
            "day": columns["day"],
            "sha256": words["hex64"],
            "decision_id": words["hex32"],
            "item_id": "'output/0'",
        }
        if name == "sqlite":
            # Chance gives other ids here: those of the decisions themselves.
            connection.exec_driver_sql(
                "INSERT INTO contents (day, sha256, decision_id, item_id) "
                "SELECT day, lower(hex(randomblob(32))), decision_id, 'output/0' FROM decisions WHERE rowid % 5 = 0"
            )
        else:
            picture = {"day": columns["day"], "sha256": words["hex64"], "decision_id": words["hex32"]}
            _insert(connection, contents, words, {**picture, "item_id": "'output/0'"}, {}, where="WHERE i % 5 = 0")
        connection.execute(insert(artefact_sets), [row for key in sets for row in rows.artefact_sets[key]])
        for table in (decisions, contents):
            for index in sorted(table.indexes, key=lambda index: str(index.name)):
                index.create(connection)
        # As the migration counts what it finds.
        with Operations.context(MigrationContext.configure(connection)):
            import_module("seawall.ledger.migrations.versions.0002_counts")._fill()
    with db.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")


def _days(last: int) -> set[Any]:
    return {queries._day(last - WEEK + number * 86_400 * NANOS) for number in range(9)}


def _drop_indices(connection: Connection, table: Table) -> None:
    for index in table.indexes:
        connection.exec_driver_sql(f"DROP INDEX {index.name}")


def _insert(
    connection: Connection, table: Table, words: dict[str, str], columns: dict[str, str], template: Any, where: str = ""
) -> None:
    names = [column.name for column in table.columns]
    values = [columns.get(name, f":{name}") for name in names]
    quoted = ", ".join(f'"{name}"' for name in names)
    numbers, source = (words[part].format(count=COUNT) for part in ("numbers", "from"))
    statement = text(
        f"INSERT INTO {table.name} ({quoted}) {numbers} SELECT {', '.join(values)} FROM {source} {where}"  # noqa: S608
    )
    same = [name for name in names if name not in columns]
    typed = [bindparam(name, template[name], type_=table.c[name].type) for name in same]
    connection.execute(statement.bindparams(*typed))


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
        ("tenant, rule and time", Filter(tenant_id="tenant-3", rule_id="known-hash", since=last - WEEK // 2), None),
    ]


def _pages(middle: Any) -> list[str]:
    half = f"after={middle['decided_unix_nano']}.{middle['decision_id']}"
    searches = ("", "outcome=BLOCK", "rule=known-hash", f"actor={middle['actor_id']}", "tenant=tenant-3&since=1h", half)
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
        records = DecisionRecords(broker, DECISIONS, record_seconds=2.0, scan_seconds=5.0)
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
