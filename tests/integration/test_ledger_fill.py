"""What the console's benchmark makes in the database by one statement a table is what the ledger would have written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, Table, select

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1 import override_pb2
from seawall.ledger import database
from seawall.ledger.rows import Rows
from seawall.ledger.settings import DatabaseSettings
from seawall.ledger.tables import FILLED, contents, decisions, overrides, positions
from seawall.ledger.writer import Writer
from seawall.runtime.broker import Record
from tests.bench import console as bench
from tests.support import ledger_rows, postgresql
from tests.support.records import OVERRIDES

#: A few of each artefact set, and of each outcome.
COUNT = 600


@pytest.fixture(params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        yield from made(request.param, f"sqlite:///{tmp_path / 'filled.db'}")
        return
    with postgresql.server(tmp_path / "pg") as address:
        yield from made(request.param, postgresql.fresh(address))


def made(name: str, address: str) -> Iterator[Engine]:
    bench.make(name, address, COUNT)
    db = database.connect(DatabaseSettings(url=SecretStr(address)))
    yield db
    db.dispose()


def rows_of(db: Engine, table: Table) -> list[dict[str, Any]]:
    with db.connect() as connection:
        rows = [dict(row) for row in connection.execute(select(table)).mappings()]
    return sorted(rows, key=repr)


def test_a_ledger_filled_at_once_is_what_the_room_writes(filled: Engine, tmp_path: Path) -> None:
    written = database.connect(DatabaseSettings(url=SecretStr(f"sqlite:///{tmp_path / 'written.db'}")))
    database.migrate(written)
    pictures = {row["decision_id"]: row["sha256"] for row in rows_of(filled, contents)}
    made = rows_of(filled, decisions)
    assert len({row["outcome"] for row in made}) == 5
    assert len({row["artefact_set"] for row in made}) == bench.SETS
    templates = {}
    for number in range(bench.SETS):
        one = Rows()
        one.add_decision(ledger_rows.record(0, bench.template(number).SerializeToString()))
        templates[next(iter(one.artefact_sets))] = bench.template(number)
    rows = Rows()
    for row in made:
        rows.add_decision(told(row, templates[row["artefact_set"]], pictures.get(row["decision_id"])))
    words = rows_of(filled, overrides)
    assert words, "bench console searches for what a person overrode"
    for row in words:
        rows.add_override(said(row))
    Writer(written).write(rows, {})
    for table in FILLED:
        if table is not positions:
            assert rows_of(filled, table) == rows_of(written, table), table.name
    written.dispose()


def told(row: dict[str, Any], like: decision_pb2.Decision, picture: str | None) -> Record:
    """The record of decisions.v1 of which this row would come."""
    decision = decision_pb2.Decision.FromString(like.SerializeToString())
    for name in ("decision_id", "generation_id", "outcome", "rule_id", "tenant_id", "actor_id", "decided_unix_nano"):
        setattr(decision, name, row[name])
    decision.generation_log_unix_nano = row["generated_unix_nano"]
    decision.traceparent = f"00-{row['trace_id']}-{1:016x}-01"
    decision.generation_record.partition = row["generation_partition"]
    decision.generation_record.offset = row["generation_offset"]
    for joined in decision.signals:
        for item in joined.signal.items:
            for found in item.hashes:
                found.value = bytes.fromhex(picture or "")
            if picture is None:
                item.ClearField("hashes")
    return ledger_rows.record(row["offset"], decision.SerializeToString(), partition=row["partition"])


def said(row: dict[str, Any]) -> Record:
    """The record of overrides.v1 of which this row would come."""
    word = override_pb2.Override(by=row["made_by"], decision_ids=row["decision_ids"])
    for name in set(word.DESCRIPTOR.fields_by_name) - {"by", "decision_ids"}:
        setattr(word, name, row[name])
    return ledger_rows.record(row["offset"], word.SerializeToString(), topic=OVERRIDES, partition=row["partition"])
