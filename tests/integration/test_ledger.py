"""The ledger on SQLite and on a real PostgreSQL: nothing lost, nothing twice, everything found, nobody else's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from pydantic import SecretStr
from sqlalchemy import Engine as Database
from sqlalchemy import delete, func, insert, select, text
from typer.testing import CliRunner

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.cli.app import app
from seawall.core.errors import Fatal, Retryable
from seawall.ledger import database, figures, queries
from seawall.ledger.counts import LATENCY_BOUNDS, Role
from seawall.ledger.engine import Add, Engine
from seawall.ledger.queries import Filter
from seawall.ledger.rows import Rows
from seawall.ledger.settings import DatabaseSettings, LedgerSettings
from seawall.ledger.tables import (
    FILLED,
    artefact_set_uses,
    artefacts,
    contents,
    dead_letters,
    decision_counts,
    decision_totals,
    decisions,
    metadata,
    overrides,
    positions,
    unreadable,
    verdict_counts,
    verdict_totals,
)
from seawall.ledger.writer import Position, Writer
from seawall.relay.observe import StreamObserver
from seawall.runtime import topics
from seawall.runtime.broker import Broker, Output, TopicPartition, TopicSpec
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.memory import InMemoryBroker, InMemoryRecord
from tests.support import postgresql
from tests.support.kafka import client_settings, embedded_kafka
from tests.support.ledger_rows import ALLOW, BEGIN, BLOCK, HOLD, NANOS, REVIEW, WITHDRAWN, decision, record, word
from tests.support.records import DECISIONS

PATIENCE_SECONDS = 60.0
MINUTE = BEGIN // (60 * NANOS)
COUNTS = (decision_counts, decision_totals, verdict_counts, verdict_totals)
P0 = TopicPartition(DECISIONS, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgresql.server(tmp_path_factory.mktemp("pg")) as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return postgresql.fresh(request.getfixturevalue("server"))


@pytest.fixture
def db(address: str) -> Iterator[Database]:
    made = database.connect(DatabaseSettings(url=SecretStr(address)))
    database.migrate(made)
    yield made
    made.dispose()


def count(db: Database, table: object) -> int:
    with db.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]


def fill(db: Database, *made: decision_pb2.Decision, begin: int = 0) -> None:
    rows = Rows()
    for offset, one in enumerate(made, begin):
        rows.add_decision(record(offset, one.SerializeToString()))
    Writer(db).write(rows, {P0: Position(begin + len(made), BEGIN)})


def found(db: Database, wanted: Filter) -> list[str]:
    return [row["generation_id"] for row in queries.find(db, wanted)[0]]


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_means(db: Database) -> None:
    with db.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert database.migrate(db) == "0004"
    database.check_migrated(db)


def test_a_database_that_was_not_migrated_is_refused(address: str) -> None:
    db = database.connect(DatabaseSettings(url=SecretStr(address)))
    with pytest.raises(Fatal, match="seawall ledger migrate"):
        database.check_migrated(db)
    with pytest.raises(Fatal, match="seawall ledger migrate"):
        queries.state(db)
    db.dispose()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "no address"])
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(Fatal, match=r"database\.url"):
        database.connect(DatabaseSettings(url=SecretStr(url)))


def test_a_database_that_is_away_is_retryable_and_its_address_is_not_told(tmp_path: Path) -> None:
    away = f"postgresql+psycopg://someone:secret-word@/x?host={tmp_path}"
    db = database.connect(DatabaseSettings(url=SecretStr(away)))
    with pytest.raises(Retryable) as error:
        database.migrate(db)
    assert "secret-word" not in str(error.value)


def test_a_ledger_of_the_first_revision_is_counted_when_it_is_migrated(db: Database) -> None:
    """The counts that a migration makes of rows are those that the writer would have made."""
    fill(db, *(decision(n, seconds=n * 40.0, outcome=BLOCK if n % 3 == 0 else ALLOW) for n in range(12)))

    def counted() -> list[set[tuple[object, ...]]]:
        # Rows know neither the bundle's version nor its digest: what the migration makes of them lacks both.
        rules = select(verdict_counts.c.rule_id, verdict_counts.c.outcome, func.sum(verdict_counts.c.decisions))
        by_rule = rules.group_by("rule_id", "outcome")
        asked = (
            select(decision_counts),
            select(decision_totals),
            select(artefacts),
            by_rule,
            select(artefact_set_uses),
        )
        with db.connect() as connection:
            return [{tuple(row) for row in connection.execute(query)} for query in asked]

    before = counted()
    assert before[3] == {("known-hash", BLOCK, 4), ("allow", ALLOW, 8)}
    with db.begin() as connection:
        for table in (*COUNTS, artefacts, artefact_set_uses):
            connection.execute(delete(table))
        with Operations.context(MigrationContext.configure(connection)):
            import_module("seawall.ledger.migrations.versions.0002_counts")._fill()
            import_module("seawall.ledger.migrations.versions.0003_totals_and_resolutions").total()
    assert counted() == before


def test_a_ledger_of_the_second_revision_keeps_its_counts_and_letters(address: str) -> None:
    db = database.connect(DatabaseSettings(url=SecretStr(address)))
    assert database.migrate(db, "0002") == "0002"
    two_tenants = [(tenant, MINUTE + ago, ALLOW, 50, 7) for tenant in ("a", "b") for ago in (0, -5_000)]
    verdict = (MINUTE // 60, Role.DECIDED, "default", "1", "d" * 64, "allow", ALLOW, ALLOW)
    with db.begin() as connection:
        for row in two_tenants:
            values = dict(zip(("tenant_id", "minute", "outcome", "within_ms", "decisions"), row, strict=True))
            connection.execute(insert(decision_counts).values(values))
        for tenant in ("a", "b"):
            keys = [column.name for column in verdict_counts.columns]
            connection.execute(insert(verdict_counts).values(dict(zip(keys, (tenant, *verdict, 3), strict=True))))
        connection.execute(
            text(
                "INSERT INTO dead_letters (dead_letter_id, room, reason, detail, error_class, source_topic, "
                'source_partition, source_offset, partition, "offset", create_unix_nano, original_size_bytes) '
                "VALUES ('x', 'aggregator', 'BAD_ID', '', 1, 'signals.v1', 0, 0, 0, 9, 5, 0)"
            )
        )
    assert database.migrate(db) == "0004"
    assert [dict(one.outcomes) for one in figures.minutes(db, MINUTE, MINUTE)] == [{ALLOW: 14}]
    assert [dict(one.outcomes) for one in figures.minutes(db, MINUTE, MINUTE, "b")] == [{ALLOW: 7}]
    # Older than any page asks for.
    assert count(db, decision_counts) == 2
    assert [row["decisions"] for row in figures.verdicts(db, BEGIN)] == [6]
    assert [(row["last_offset"], row["resolution"]) for row in queries.find_dead_letters(db)] == [(9, 0)]
    db.dispose()


# ---- counting --------------------------------------------------------------------------------------------------------


def test_what_comes_twice_is_counted_once(db: Database) -> None:
    made = [decision(n, seconds=n * 20.0, tenant_id="a" if n < 2 else "b") for n in range(6)]
    made[4].outcome = BLOCK
    fill(db, *made, made[0])
    fill(db, *made[:3], decision(6, seconds=100.0), begin=7)
    counted = figures.minutes(db, MINUTE, MINUTE + 2)
    assert [dict(minute.outcomes) for minute in counted] == [{ALLOW: 3}, {ALLOW: 3, BLOCK: 1}, {}]
    assert [minute.decisions for minute in figures.minutes(db, MINUTE, MINUTE + 1, "a")] == [2, 0]
    # Made at once, after 20, and after 40 seconds.
    assert counted[0].latencies == {1: 1, 20_000: 1, 60_000: 1}
    with pytest.raises(ValueError):
        figures.minutes(db, MINUTE, MINUTE + figures.MAX_MINUTES)


def test_two_writers_of_the_same_records_count_them_once(db: Database) -> None:
    """A member that lost its partition writes late, at the same time as the one that has it now."""
    rows = Rows()
    for n in range(400):
        rows.add_decision(record(n, decision(n).SerializeToString()))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(Writer(db).write, rows, {P0: Position(400, BEGIN)}) for _ in range(4)]:
            done.result()
    assert figures.minutes(db, MINUTE, MINUTE)[0].decisions == 400 == count(db, decisions)


def test_shadow_verdicts_are_counted_beside_what_was_decided(db: Database) -> None:
    shadowed = decision(1, outcome=ALLOW, policy_version="1.0", bundle_digest="d" * 64)
    shadowed.shadow_hits.add(rule_id="stricter", outcome=REVIEW)
    next_bundle = shadowed.shadows.add(policy_name="next", policy_version="2", bundle_digest="e" * 64)
    next_bundle.rule_id, next_bundle.outcome = "known-hash", BLOCK
    fill(db, shadowed, decision(2, tenant_id="other"))
    names = ("role", "policy_name", "rule_id", "outcome", "decided_outcome")
    rows = figures.verdicts(db, BEGIN, "tenant")
    said = {tuple(row[name] for name in names): row["decisions"] for row in rows}
    assert said == {
        (Role.DECIDED, "default", "allow", ALLOW, ALLOW): 1,
        (Role.SHADOW_RULE, "default", "stricter", REVIEW, ALLOW): 1,
        (Role.SHADOW_BUNDLE, "next", "known-hash", BLOCK, ALLOW): 1,
    }
    of_all = [(row["rule_id"], row["decisions"]) for row in figures.verdicts(db, BEGIN)]
    assert sorted(of_all) == [("allow", 1), ("allow", 1), ("known-hash", 1), ("stricter", 1)]
    assert figures.verdicts(db, BEGIN + 3_600 * NANOS) == []


def test_versions_are_known_from_their_first_use_to_their_last(db: Database) -> None:
    fill(db, decision(1, seconds=50.0), decision(2, seconds=10.0))
    later = decision(3, seconds=90.0)
    later.signals[0].signal.artefacts[0].version = "2"
    fill(db, later, begin=2)
    spans = {
        (row["name"], row["version"]): (row["first_unix_nano"], row["last_unix_nano"]) for row in figures.versions(db)
    }
    assert spans["prompt_scoring-model", "1"] == (BEGIN + 10 * NANOS, BEGIN + 50 * NANOS)
    assert spans["prompt_scoring-model", "2"] == (BEGIN + 90 * NANOS, BEGIN + 90 * NANOS)
    assert spans["classification-model", "1"] == (BEGIN + 10 * NANOS, BEGIN + 90 * NANOS)


def test_a_search_by_artefact_goes_through_its_versions_in_time(db: Database) -> None:
    made = []
    for number in range(24):
        one = decision(number, seconds=number)
        one.signals[0].signal.artefacts[0].version = str(number // 6 % 3)
        made.append(one)
    fill(db, *made)
    wanted = Filter(artefact="prompt_scoring-model")
    pages, after = [], None
    while True:
        rows, after = queries.find(db, wanted, limit=5, after=after)
        pages += [row["generation_id"] for row in rows]
        if after is None:
            break
    assert pages == [f"g-{n}" for n in reversed(range(24))]
    first = Filter(artefact="prompt_scoring-model", artefact_version="0", until=BEGIN + 19 * NANOS)
    assert found(db, first) == ["g-18", *(f"g-{n}" for n in (5, 4, 3, 2, 1, 0))]
    assert found(db, Filter(artefact="prompt_scoring-model", artefact_version="1", since=BEGIN + 12 * NANOS)) == []


def test_holds_are_open_until_something_is_decided(db: Database) -> None:
    fill(
        db, *(decision(n, outcome=HOLD, seconds=n) for n in range(3)), decision(1, outcome=ALLOW, seconds=9, attempt=2)
    )
    assert [row["generation_id"] for row in figures.open_holds(db, BEGIN)] == ["g-2", "g-0"]
    assert figures.open_holds(db, BEGIN, "another") == []


def test_old_counts_go_with_their_days(db: Database) -> None:
    fill(db, decision(1), decision(2, seconds=86_400.0))
    database.forget_days(db, 0, datetime.fromtimestamp(BEGIN / NANOS, UTC).date() + timedelta(days=1))
    assert [count(db, table) for table in (decisions, *COUNTS)] == [1, 1, 1, 1, 1]
    # Minutes sooner than that.
    database.forget_days(db, 30, datetime.fromtimestamp(BEGIN / NANOS, UTC).date() + timedelta(days=4))
    assert [count(db, table) for table in (decisions, *COUNTS)] == [1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("latencies", "share", "expected"),
    [
        ({}, 0.99, None),
        ({10: 100}, 0.5, 7.5),
        ({10: 99, 1_000: 1}, 0.99, 10.0),
        ({1: 1, LATENCY_BOUNDS[-1]: 9}, 0.99, 300_000),
    ],
)
def test_quantiles_lie_between_their_bounds(latencies: dict[int, int], share: float, expected: float | None) -> None:
    assert figures.quantile(latencies, share) == expected


def test_a_search_that_takes_too_long_is_cut_short(address: str) -> None:
    slow = database.connect(DatabaseSettings(url=SecretStr(address), timeout_seconds=1), bound_statements=True)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500000000) SELECT max(i) FROM n"
    with pytest.raises(Retryable) as error, database.retryable("count"), slow.connect() as connection:
        connection.execute(text(numbers))
    assert error.value.reason == "LEDGER_TOO_SLOW"
    slow.dispose()


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_what_comes_twice_is_there_once(db: Database) -> None:
    made = [decision(number) for number in range(20)]
    fill(db, *made)
    fill(db, *made)
    assert count(db, decisions) == 20
    assert count(db, contents) == 20
    assert queries.state(db).positions == {"decisions.v1/0": (20, BEGIN, 0)}


def test_rows_and_position_are_written_together_or_not_at_all(db: Database) -> None:
    rows = Rows()
    rows.add_decision(record(0, decision(0).SerializeToString()))
    rows.dead_letters.append({"dead_letter_id": "no room, no reason"})
    with pytest.raises(Retryable):
        Writer(db).write(rows, {P0: Position(1, BEGIN)})
    assert [count(db, table) for table in FILLED] == [0] * len(FILLED)
    # The same writer goes on: it does not believe that it wrote the artefact set.
    rows.dead_letters.clear()
    Writer(db).write(rows, {P0: Position(1, BEGIN)})
    assert count(db, decisions) == 1


def test_a_late_writer_does_not_take_a_position_back(db: Database) -> None:
    writer = Writer(db)
    writer.write(Rows(), {P0: Position(50, BEGIN, missed=2)})
    writer.write(Rows(), {P0: Position(20, BEGIN - 1, missed=5)})
    assert queries.state(db).positions["decisions.v1/0"] == (50, BEGIN, 2)
    assert writer.positions([P0, TopicPartition(DECISIONS, 1)]) == {P0: 50}


def test_what_cannot_be_read_is_visible_and_the_rest_goes_on(db: Database) -> None:
    rows = Rows()
    nameless = decision(1)
    nameless.decision_id = ""
    timeless = decision(2)
    timeless.decided_unix_nano = 2**64 - 1
    for offset, value in enumerate(
        (b"\xff\xff", nameless.SerializeToString(), timeless.SerializeToString(), decision(3).SerializeToString())
    ):
        rows.add_decision(record(offset, value))
    rows.add_dead_letter(record(9, b"\xff", topic="dead_letters.v1"))
    Writer(db).write(rows, {P0: Position(4, BEGIN)})
    with db.connect() as connection:
        said = connection.execute(select(unreadable.c.offset, unreadable.c.reason).order_by(unreadable.c.offset)).all()
    assert [tuple(row) for row in said] == [
        (0, "UNDECODABLE"),
        (1, "INCOMPLETE"),
        (2, "BAD_TIME"),
        (9, "UNDECODABLE"),
    ]
    assert found(db, Filter()) == ["g-3"]
    assert queries.state(db).unreadable == 4


def test_hostile_text_does_not_hold_the_ledger_up(db: Database) -> None:
    hostile = decision(1, actor_id="x\x00'; DROP TABLE decisions; --" + "y" * 500, rule_id="\x00" * 5_000)
    hostile.model.name = "\x00\U0001f600"
    fill(db, hostile)
    (row,) = queries.find(db, Filter())[0]
    assert "\x00" not in row["actor_id"] + row["rule_id"] + row["model"]
    assert len(row["actor_id"]) == 160


def test_dead_letters_are_found_by_room_and_reason(db: Database) -> None:
    rows = Rows()
    for number in range(6):
        letter = dead_letter_pb2.DeadLetter(
            dead_letter_id=f"{number:032x}",
            room="classification" if number % 2 else "aggregator",
            reason="UNDECODABLE" if number < 4 else "BAD_ID",
            detail="the value is not a Generation",
            sealed_value=b"sealed original",
            create_unix_nano=BEGIN + number,
        )
        rows.add_dead_letter(record(number, letter.SerializeToString(), topic="dead_letters.v1"))
    Writer(db).write(rows, {})
    by_room = queries.find_dead_letters(db, room="classification")
    assert [row["offset"] for row in by_room] == [5, 3, 1]
    assert [row["offset"] for row in queries.find_dead_letters(db, room="aggregator", reason="BAD_ID")] == [4]
    with db.connect() as connection:
        assert "sealed original" not in str(connection.execute(select(dead_letters)).all())


def letter(number: int = 1, **fields: Any) -> dead_letter_pb2.DeadLetter:
    return dead_letter_pb2.DeadLetter(dead_letter_id=f"{number:032x}", room="aggregator", reason="BAD_ID", **fields)


def test_a_letter_that_was_dealt_with_is_listed_as_such_until_it_comes_again(db: Database) -> None:
    marked: dict[str, Any] = {"resolution": dead_letter_pb2.RESOLUTION_REDRIVEN, "resolved_by": "night-shift"}
    topic = [letter(), letter(**marked), letter(), letter(**marked), letter(2, **marked)]

    def read(*offsets: int) -> None:
        rows = Rows()
        for offset in offsets:
            rows.add_dead_letter(record(offset, topic[offset].SerializeToString(), topic="dead_letters.v1"))
        Writer(db).write(rows, {})

    def open_and_closed() -> list[list[str]]:
        return [
            [row["resolved_by"] for row in queries.find_dead_letters(db, resolved=resolved)]
            for resolved in (False, True)
        ]

    read(0)
    assert open_and_closed() == [[""], []]
    read(1)
    assert open_and_closed() == [[], ["night-shift"]]
    # A batch that is read again changes nothing, whatever of it.
    read(0)
    read(0, 1)
    assert open_and_closed() == [[], ["night-shift"]]
    assert figures.dead_letters_since(db, 0) == []
    # It was set aside once more.
    read(1, 2)
    assert open_and_closed() == [[""], []]
    assert [one.letters for one in figures.dead_letters_since(db, 0)] == [1]
    # The mark of a letter that retention has taken says nothing.
    read(3, 4)
    assert open_and_closed() == [[], ["night-shift"]]
    database.empty(db)
    read(*range(len(topic)))
    assert open_and_closed() == [[], ["night-shift"]]


def test_old_days_go(db: Database) -> None:
    day = 86_400.0
    fill(db, *(decision(number, seconds=number * day) for number in range(5)))
    today = datetime.fromtimestamp(BEGIN / NANOS, UTC).date() + timedelta(days=4)
    assert database.forget_days(db, 1, today) > 0
    assert sorted(found(db, Filter())) == ["g-3", "g-4"]
    assert count(db, contents) == 2
    assert database.forget_days(db, 1, today) == 0


def test_each_day_has_its_partition_on_postgresql(server: str) -> None:
    db = database.connect(DatabaseSettings(url=SecretStr(postgresql.fresh(server))))
    database.migrate(db)
    fill(db, decision(1), decision(2, seconds=86_400))
    with db.connect() as connection:
        names = connection.execute(
            text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY 1")
        ).scalars()
        assert list(names) == [
            f"{table}_{date(2026, 11, 20) + timedelta(days=n):%Y%m%d}"
            for table in ("contents", "decisions")
            for n in (0, 1)
        ]
    db.dispose()


# ---- a person's word -------------------------------------------------------------------------------------------------


def say(db: Database, *said: Override, begin: int = 0) -> None:
    rows = Rows()
    for offset, one in enumerate(said, begin):
        rows.add_override(record(offset, one.SerializeToString(), topic="overrides.v1"))
    Writer(db).write(rows, {})


def words(db: Database) -> list[tuple[Any, ...]]:
    with db.connect() as connection:
        rows = connection.execute(select(overrides).order_by(overrides.c.generation_id)).mappings()
        return [(row["generation_id"], row["outcome"], row["made_by"], row["offset"]) for row in rows]


def test_the_last_word_stands_however_it_is_read(db: Database) -> None:
    of = decision(1, outcome=BLOCK)
    topic = [word(of, ALLOW), word(of, REVIEW, by="grace"), word(decision(2), BLOCK), word(of, WITHDRAWN, by="grace")]
    say(db, *topic[:2])
    assert words(db) == [("g-1", REVIEW, "grace", 1)]
    # A batch that is read again changes nothing, whatever of it.
    say(db, topic[0])
    say(db, *topic[:2])
    assert words(db) == [("g-1", REVIEW, "grace", 1)]
    say(db, *topic[2:], begin=2)
    ends = [("g-1", WITHDRAWN, "grace", 3), ("g-2", BLOCK, "ada", 2)]
    assert words(db) == ends
    database.empty(db)
    # Compacted, the topic has but the last of each.
    say(db, *topic[2:], begin=2)
    assert words(db) == ends


def test_what_a_person_has_the_last_word_on_is_found(db: Database) -> None:
    made = [decision(n, seconds=n, outcome=BLOCK if n % 2 else REVIEW, tenant_id="ab"[n % 2]) for n in range(8)]
    # Said before the decisions are read: another topic, another time.
    say(db, *(word(one, ALLOW) for one in made[:6]))
    assert found(db, Filter(overridden=True)) == []
    fill(db, *made)
    assert found(db, Filter(overridden=True)) == [f"g-{n}" for n in (5, 4, 3, 2, 1, 0)]
    assert found(db, Filter(overridden=True, outcome=BLOCK, since=BEGIN + 2 * NANOS)) == ["g-5", "g-3"]
    assert found(db, Filter(overridden=True, until=BEGIN + 2 * NANOS)) == ["g-1", "g-0"]
    assert found(db, Filter(overridden=True, content=(3).to_bytes(32, "big").hex())) == ["g-3"]
    assert found(db, Filter(overridden=True, artefact="classification-model")) == [f"g-{n}" for n in (5, 4, 3, 2, 1, 0)]
    assert found(db, Filter(overridden=True, tenant_id="a")) == ["g-4", "g-2", "g-0"]
    pages: list[str] = []
    after = None
    while len(pages) < 6:
        rows, after = queries.find(db, Filter(overridden=True), limit=2, after=after)
        pages += [row["generation_id"] for row in rows]
    assert pages == [f"g-{n}" for n in (5, 4, 3, 2, 1, 0)]
    say(db, word(made[5], WITHDRAWN), begin=10)
    assert found(db, Filter(overridden=True)) == [f"g-{n}" for n in (4, 3, 2, 1, 0)]
    assert queries.overrides_of(db, ["g-5", "g-7"])["g-5"]["outcome"] == WITHDRAWN


@pytest.mark.parametrize("wanted", [Filter(), Filter(outcome=BLOCK), Filter(actor_id="a"), Filter(tenant_id="a")])
def test_the_few_words_are_gone_through_and_not_the_many_decisions(tmp_path: Path, wanted: Filter) -> None:
    db = database.connect(DatabaseSettings(url=SecretStr(f"sqlite:///{tmp_path / 'ledger.db'}")))
    database.migrate(db)
    query = queries._query(replace(wanted, overridden=True), None, with_summary=False).limit(50)
    asked = query.compile(db, compile_kwargs={"literal_binds": True})
    with db.connect() as connection:
        first, *_ = connection.execute(text(f"EXPLAIN QUERY PLAN {asked}")).all()
    assert "overrides USING INDEX overrides_by_time" in first[3]
    db.dispose()


def test_a_word_on_a_late_signal_is_the_tenants_whose_generation_it_is(db: Database) -> None:
    late = decision(1, outcome=BLOCK, kind=decision_pb2.DECISION_KIND_AMENDMENT, tenant_id="")
    fill(db, late)
    say(db, word(late, ALLOW, tenant_id="a"))
    assert found(db, Filter(overridden=True, tenant_id="a")) == ["g-1"]
    assert found(db, Filter(overridden=True, tenant_id="b")) == []


def test_a_word_that_cannot_be_read_is_visible(db: Database) -> None:
    rows = Rows()
    rows.add_override(record(0, b"\xff\xff", topic="overrides.v1"))
    rows.add_override(record(1, b"", topic="overrides.v1"))
    hostile = word(decision(1), ALLOW, reason_code="\x00" * 99, by="\x00" * 999, decided_unix_nano=2**64 - 1)
    rows.add_override(record(2, hostile.SerializeToString(), topic="overrides.v1"))
    Writer(db).write(rows, {})
    assert (count(db, unreadable), count(db, overrides)) == (2, 1)


class Compacted(InMemoryBroker):
    """Of each partition the second record has gone."""

    def read(self, partition: TopicPartition, offset: int, limit: int) -> list[InMemoryRecord]:
        return [one for one in super().read(partition, offset, limit) if one.offset != 1]


async def test_what_a_compacted_topic_has_dropped_is_not_missed(db: Database) -> None:
    broker = Compacted()
    await broker.admin().create([TopicSpec("overrides.v1", 1, {})], 1)
    producer = broker.producer()
    await producer.start()
    said = [word(decision(n), ALLOW).SerializeToString() for n in range(3)]
    await producer.send([Output("overrides.v1", 0, b"k", value) for value in said])
    Writer(db).write(Rows(), {TopicPartition("overrides.v1", 0): Position(1, BEGIN)})
    running = engine(broker, Writer(db), topic="overrides.v1", add=Rows.add_override, compacted=True)
    task = asyncio.create_task(running.run())
    await until_position(db, 3)
    running.stop()
    await task
    assert [row[0] for row in words(db)] == ["g-2"]
    assert [missed for _, _, missed in queries.state(db).positions.values()] == [0]


def test_old_words_go_with_their_days(db: Database) -> None:
    say(db, word(decision(1), ALLOW), word(decision(2, seconds=3 * 86_400.0), ALLOW))
    database.forget_days(db, 1, datetime.fromtimestamp(BEGIN / NANOS, UTC).date() + timedelta(days=4))
    assert [row[0] for row in words(db)] == ["g-2"]


# ---- searching -------------------------------------------------------------------------------------------------------


def test_a_page_begins_where_the_last_ended(db: Database) -> None:
    """Also within one instant."""
    fill(db, *(decision(n, seconds=n // 4) for n in range(20)))
    pages, after = [], None
    while True:
        rows, after = queries.find(db, Filter(), limit=3, after=after)
        pages.append([row["generation_id"] for row in rows])
        if after is None:
            break
    assert [len(page) for page in pages] == [3] * 6 + [2]
    assert sorted(chain.from_iterable(pages)) == sorted(f"g-{n}" for n in range(20))


def test_decisions_are_found_by_what_on_call_knows(db: Database) -> None:
    fill(
        db,
        decision(1, seconds=1, tenant_id="a"),
        decision(2, seconds=2, tenant_id="b", outcome=BLOCK),
        decision(3, seconds=3, tenant_id="b", outcome=REVIEW, rule_id="apparent-minor"),
        decision(9, seconds=4, tenant_id="b"),
    )
    assert found(db, Filter()) == ["g-9", "g-3", "g-2", "g-1"]
    assert found(db, Filter(generation_id="g-2")) == ["g-2"]
    assert found(db, Filter(outcome=BLOCK)) == ["g-2"]
    assert found(db, Filter(rule_id="apparent-minor")) == ["g-3"]
    assert found(db, Filter(actor_id="actor-2")) == ["g-9", "g-2"]
    assert found(db, Filter(trace_id=f"{4:032x}")) == ["g-3"]
    assert found(db, Filter(content=(2).to_bytes(32, "big").hex())) == ["g-2"]
    assert found(db, Filter(artefact="classification-model")) == ["g-9", "g-3", "g-2", "g-1"]
    assert found(db, Filter(artefact="classification-model", artefact_version="2")) == []
    assert found(db, Filter(since=BEGIN + 2 * NANOS, until=BEGIN + 4 * NANOS)) == ["g-3", "g-2"]


def test_another_tenants_decision_is_not_found(db: Database) -> None:
    fill(db, decision(1, tenant_id="a"), decision(2, tenant_id="b"))
    assert found(db, Filter(tenant_id="a")) == ["g-1"]
    assert found(db, Filter(tenant_id="a", generation_id="g-2")) == []
    assert found(db, Filter(tenant_id="a", content=(2).to_bytes(32, "big").hex())) == []


@pytest.mark.parametrize("hostile", ["' OR 1=1 --", "%", "_-1", "g-1\x00", "\U0001f600" * 200])
def test_a_hostile_search_finds_nothing(db: Database, hostile: str) -> None:
    fill(db, decision(1))
    try:
        assert found(db, Filter(generation_id=hostile)) == []
    except Retryable as error:
        # PostgreSQL's driver takes no NUL at all.
        assert "\x00" in hostile
        assert hostile not in str(error)


def test_pages_hold_every_decision_once(db: Database) -> None:
    # Many of one instant: the time alone does not order them.
    fill(db, *(decision(number, seconds=number // 40) for number in range(130)))
    seen: list[str] = []
    cursor = None
    for _ in range(20):
        rows, cursor = queries.find(db, Filter(), limit=7, after=cursor)
        seen += [row["generation_id"] for row in rows]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 130
    assert len(queries.find(db, Filter(), limit=10**9)[0]) == 130


# ---- the engine ------------------------------------------------------------------------------------------------------


def engine(
    broker: Broker, writer: Writer, *, topic: str = DECISIONS, add: Add = Rows.add_decision, compacted: bool = False
) -> Engine:
    return Engine(
        broker=broker,
        topic=topic,
        group="ledger",
        member=None,
        add=add,
        compacted=compacted,
        writer=writer,
        settings=LedgerSettings(batch_records=16, poll_seconds=0.05, max_retry_seconds=0.05),
        observer=StreamObserver("ledger"),
    )


async def until_position(db: Database, offset: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        # Rows are written in a thread, and nothing announces them.
        while sum(position[0] for position in queries.state(db).positions.values()) < offset:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def topic_with(numbers: range) -> InMemoryBroker:
    broker = InMemoryBroker()
    broker.create([TopicSpec(DECISIONS, 1, {})])
    await send(broker, numbers)
    return broker


async def send(broker: Broker, numbers: range) -> None:
    producer = broker.producer()
    await producer.start()
    await producer.send([Output(DECISIONS, 0, b"k", decision(number).SerializeToString()) for number in numbers])
    await producer.stop()


async def test_a_restart_goes_on_where_the_database_says(db: Database) -> None:
    broker = await topic_with(range(40))
    for upto in (40, 75):
        running = engine(broker, Writer(db))
        task = asyncio.create_task(running.run())
        await until_position(db, upto)
        running.stop()
        await task
        assert running.written == (40 if upto == 40 else 35)
        await send(broker, range(40, 75))
    assert count(db, decisions) == 75


async def test_a_database_that_is_away_loses_no_record(db: Database) -> None:
    class Away(Writer):
        failures = 3

        def write(self, rows: Rows, read: object) -> None:
            if self.failures:
                self.failures -= 1
                raise Retryable("LEDGER_UNAVAILABLE", "told to fail")
            super().write(rows, read)  # type: ignore[arg-type]

    broker = await topic_with(range(50))
    running = engine(broker, Away(db))
    task = asyncio.create_task(running.run())
    await until_position(db, 50)
    running.stop()
    await task
    assert count(db, decisions) == 50


async def test_an_emptied_ledger_is_filled_again_with_the_same_rows(db: Database) -> None:
    broker = await topic_with(range(30))

    async def rows() -> list[tuple[object, ...]]:
        running = engine(broker, Writer(db))
        task = asyncio.create_task(running.run())
        await until_position(db, 30)
        running.stop()
        await task
        with db.connect() as connection:
            return [tuple(row) for row in connection.execute(select(decisions).order_by(decisions.c.decision_id))]

    before = await rows()
    database.empty(db)
    assert count(db, positions) == 0
    assert await rows() == before


async def test_the_room_killed_in_a_backlog_ends_with_every_row_once(tmp_path: Path) -> None:
    """The real process and broker, kill -9 twice."""
    with embedded_kafka(tmp_path / "kafka") as kafka:
        settings = client_settings(kafka.bootstrap_servers)
        broker = KafkaBroker(settings)
        await topics.apply(broker, settings, topics.TopicSettings(partitions=2))
        producer = broker.producer()
        await producer.start()
        total = 3_000
        made = [decision(number).SerializeToString() for number in range(total)]
        await producer.send([Output(DECISIONS, number % 2, b"k", value) for number, value in enumerate(made)])
        await producer.stop()
        db = database.connect(DatabaseSettings(url=SecretStr(f"sqlite:///{tmp_path / 'ledger.db'}")))
        database.migrate(db)
        environment = {
            **os.environ,
            "SEAWALL_HOME": str(tmp_path),
            "SEAWALL_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "SEAWALL_KAFKA__INSTANCE": "ledger-0",
            "SEAWALL_DATABASE__URL": f"sqlite:///{tmp_path / 'ledger.db'}",
            "SEAWALL_BATCH_RECORDS": "50",
        }
        for target in (1, total // 2, total):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "seawall.cli", "run", "ledger", env=environment
            )
            try:
                await until_position(db, target)
                process.send_signal(signal.SIGKILL if target < total else signal.SIGTERM)
                assert await process.wait() == (-signal.SIGKILL if target < total else 0)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        assert count(db, decisions) == total
        assert count(db, contents) == total
        db.dispose()


# ---- the commands ----------------------------------------------------------------------------------------------------


def seawall(address: str, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], env={"SEAWALL_DATABASE__URL": address})


def test_find_and_stat_answer_scripts(address: str, db: Database) -> None:
    fill(db, decision(1), decision(2, seconds=1, outcome=BLOCK))
    result = seawall(address, "find", "--outcome", "block", "--json")
    assert result.exit_code == 0
    (one,) = json.loads(result.output)["decisions"]
    assert (one["generation_id"], one["outcome"], one["decided"]) == ("g-2", "BLOCK", "2026-11-20T00:00:01.000+00:00")
    assert one["summary"]["signals"]["classification"]["scores"] == {"explicit": 0.1}
    assert one["override"] is None
    say(db, word(decision(2, seconds=1, outcome=BLOCK), ALLOW))
    (one,) = json.loads(seawall(address, "find", "--overridden", "--json").output)["decisions"]
    said = one["override"]
    assert (one["outcome"], said["outcome"], said["outcome_before"], said["by"]) == ("BLOCK", "ALLOW", "BLOCK", "ada")
    assert "ALLOW by ada (FALSE_POSITIVE)" in seawall(address, "find", "--overridden").output
    stat = json.loads(seawall(address, "ledger", "stat", "--json").output)
    assert stat["partitions"]["decisions.v1/0"]["next_offset"] == 2
    assert stat["unreadable"] == 0


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (("find", "--outcome", "MAYBE"), "BLOCK_AND_REPORT"),
        (("find", "--since", "yesterday"), "15m, 2h, 3d"),
        (("ledger", "rebuild"), "--yes"),
    ],
)
def test_a_wrong_command_says_what_would_be_right(
    address: str, db: Database, arguments: tuple[str, ...], mend: str
) -> None:
    result = seawall(address, *arguments)
    assert isinstance(result.exception, Fatal)
    assert mend in result.exception.detail
    assert count(db, decisions) == 0


def test_rebuild_empties_the_ledger(address: str, db: Database) -> None:
    fill(db, decision(1))
    assert seawall(address, "ledger", "rebuild", "--yes").exit_code == 0
    assert [count(db, table) for table in FILLED] == [0] * len(FILLED)
