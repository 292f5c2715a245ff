"""The ledger: decisions per second into SQLite and PostgreSQL, empty and half a million decisions large; and how long a
search takes.

The ceiling is the same rows in the same statements, made beforehand: no parsing, no positions.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Engine as Database

from seawall.ledger import database, queries, service
from seawall.ledger.queries import Filter
from seawall.ledger.rows import Rows
from seawall.ledger.settings import DatabaseSettings
from seawall.ledger.writer import Position, Writer
from seawall.runtime.broker import Record, TopicPartition
from tests.bench import console
from tests.bench.harness import Report, say
from tests.support import postgresql
from tests.support.ledger_rows import BEGIN, BLOCK, NANOS, decision, record
from tests.support.records import DECISIONS

#: Decisions that are written for the rate, and how many of one transaction.
DECISIONS_WRITTEN = int(os.environ.get("SEAWALL_BENCH_LEDGER_DECISIONS", "40000"))
#: Decisions of the ledger that is large already, and how many are written into it.
LARGE = int(os.environ.get("SEAWALL_BENCH_LEDGER_LARGE", "500000"))
WRITTEN_INTO_LARGE = 20_000
BATCH = 1_000
SEARCHES = 40
MS = 1_000_000
PARTITION = TopicPartition(DECISIONS, 0)


async def run(report: Report) -> None:
    """SQLite, then PostgreSQL from a wheel, both on this machine's disk."""
    service.collect_rarely()
    say(f"making {DECISIONS_WRITTEN:,} decisions")
    records = [_record(number) for number in range(DECISIONS_WRITTEN)]
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        _measure(report, "sqlite", f"sqlite:///{folder}/ledger.db", records, 5_000)
        _measure_large(report, "sqlite", f"sqlite:///{folder}/large.db")
        with postgresql.server(Path(folder) / "pg") as address:
            _measure(report, "postgresql", postgresql.fresh(address), records, 3_000)
            _measure_large(report, "postgresql", postgresql.fresh(address))


def _record(number: int) -> Record:
    made = decision(number, seconds=number / 20, **({"outcome": BLOCK} if number % 50 == 0 else {}))
    made.actor_id = f"actor-{number % 5_000}"
    return record(number, made.SerializeToString())


def _measure(report: Report, name: str, address: str, records: list[Record], target: int) -> None:
    db = database.connect(DatabaseSettings(url=SecretStr(address), timeout_seconds=60))
    database.migrate(db)
    say(f"writing to {name}")
    batches = [records[start : start + BATCH] for start in range(0, len(records), BATCH)]
    took = 0.0
    for batch in batches:
        # Made beforehand, but not all at once: the collector of garbage would go through them again and again.
        rows = _rows(batch)
        began = time.perf_counter()
        Writer(db).write(rows, {})
        took += time.perf_counter() - began
    ceiling = len(records) / took
    database.empty(db)
    rate = _rate(db, batches)
    report.add(f"{name}: decisions written", rate, target, unit="per second")
    report.add(f"{name}: of the bare rows' rate", rate / ceiling)
    for what, wanted in _searches(len(records)).items():
        report.add(f"{name}: search by {what}, p95", _p95(db, wanted), 300, "<=", "ms")
    db.dispose()


def _rate(db: Database, batches: list[list[Record]]) -> float:
    writer = Writer(db)
    began = time.perf_counter()
    for batch in batches:
        writer.write(_rows(batch), {PARTITION: Position(batch[-1].offset + 1, BEGIN)})
    return sum(map(len, batches)) / (time.perf_counter() - began)


def _measure_large(report: Report, name: str, address: str) -> None:
    """Today's decisions into a ledger that holds a week's: ids, actors and traces fall anywhere in its indices."""
    console.make(name, address, LARGE)
    db = database.connect(DatabaseSettings(url=SecretStr(address), timeout_seconds=60))
    records = []
    for number in range(WRITTEN_INTO_LARGE):
        made = decision(LARGE + number)
        made.decided_unix_nano = time.time_ns()
        made.generation_log_unix_nano = made.decided_unix_nano - 250 * MS
        made.traceparent = f"00-{made.decision_id}-{number + 1:016x}-01"
        made.actor_id = f"actor-{number * 7919 % console.ACTORS}"
        records.append(record(number, made.SerializeToString()))
    batches = [records[start : start + BATCH] for start in range(0, len(records), BATCH)]
    report.add(f"{name}: decisions written into {LARGE:,}", _rate(db, batches), unit="per second")
    db.dispose()


def _rows(records: list[Record]) -> Rows:
    rows = Rows()
    for one in records:
        rows.add_decision(one)
    return rows


def _searches(count: int) -> dict[str, Filter]:
    middle = count // 2
    return {
        "id": Filter(generation_id=f"g-{middle}"),
        "actor": Filter(actor_id="actor-77"),
        "outcome": Filter(outcome=BLOCK),
        "rule": Filter(rule_id="known-hash"),
        "time": Filter(since=BEGIN, until=BEGIN + int(middle / 20) * NANOS),
        "model": Filter(artefact="classification-model", artefact_version="1"),
        "content": Filter(content=middle.to_bytes(32, "big").hex()),
        "trace": Filter(trace_id=f"{middle + 1:032x}"),
    }


def _p95(db: Database, wanted: Filter) -> float:
    took = []
    for _ in range(SEARCHES):
        began = time.perf_counter()
        rows, _ = queries.find(db, wanted)
        took.append(time.perf_counter() - began)
        if not rows:
            raise AssertionError("a search of the benchmark found nothing: it measures nothing")
    return sorted(took)[int(len(took) * 0.95)] * 1000
