"""The database: connecting, migrating, days.

Errors of a database that may be well again in a moment are Retryable("LEDGER_UNAVAILABLE"); its messages stay out of
ours, since drivers quote addresses and values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from datetime import UTC, date, datetime, time, timedelta
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import to_json
from sqlalchemy import Connection, Engine, Table, create_engine, delete, event, exc, inspect, make_url, text

from seawall.core.errors import Fatal, Retryable
from seawall.ledger.counts import HOUR_NANOS, MINUTE_NANOS
from seawall.ledger.settings import DatabaseSettings
from seawall.ledger.tables import (
    DAILY,
    FILLED,
    decision_counts,
    decision_totals,
    overrides,
    verdict_counts,
    verdict_totals,
)

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: When a transaction's time is up (monotonic seconds), in its connection's notes.
_UNTIL: Final = "seawall.until"
#: Minutes' counts are kept of today and so many days before: no page asks for more than a day of them, and by tenant
#: and latency they come near to a row a decision.
_MINUTES_KEPT_DAYS: Final = 2
#: What a writer of SQLite keeps in memory, KiB, and writes to the log before it goes into the file, pages of 4 KiB. Ids
#: are by chance: with SQLite's own 2,000 and 1,000 nearly every row of a large ledger is a read and a write of a page.
_WRITER_CACHE_KIB, _WRITER_LOG_PAGES = 131_072, 16_384
#: Of SQLite's virtual machine; a look costs a microsecond, so many instructions some hundred.
_INSTRUCTIONS_BETWEEN_LOOKS: Final = 20_000


def connect(settings: DatabaseSettings, *, bound_statements: bool = False) -> Engine:
    """An engine; nothing is asked of the database yet.

    Args:
        bound_statements: on SQLite too a transaction may take ``settings.timeout_seconds`` at most, as a statement
            may on PostgreSQL. For whoever only asks: a migration may take longer.

    Raises:
        Fatal: BAD_SETTINGS (an address that is none, or a driver that is not installed).
    """
    try:
        url = make_url(settings.address)
        if url.get_backend_name() == "sqlite":
            return _sqlite(url.database, settings, bound_statements=bound_statements)
        if url.get_backend_name() == "postgresql":
            seconds = int(settings.timeout_seconds)
            # No JIT: compiling a plan over many partitions takes seconds, and a question of ours a few milliseconds.
            options = (
                f"-c statement_timeout={seconds * 1000} -c lock_timeout={seconds * 1000} -c timezone=UTC -c jit=off"
            )
            return create_engine(
                url,
                json_serializer=_json,
                pool_pre_ping=True,
                pool_timeout=settings.timeout_seconds,
                connect_args={"connect_timeout": max(2, seconds), "options": options},
            )
    except exc.ArgumentError as error:
        raise Fatal("BAD_SETTINGS", "database.url is no SQLAlchemy address: see LedgerSettings") from error
    except ModuleNotFoundError as error:
        raise Fatal(
            "BAD_SETTINGS", f"database.url needs the package {error.name}: pip install 'seawall[postgresql]'"
        ) from error
    raise Fatal("BAD_SETTINGS", f"database.url names {url.get_backend_name()}: use sqlite or postgresql")


def _sqlite(file: str | None, settings: DatabaseSettings, *, bound_statements: bool) -> Engine:
    if not file or file == ":memory:":
        raise Fatal("BAD_SETTINGS", "database.url must name a file: rows in memory would not outlive the process")
    Path(file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(
        f"sqlite:///{file}", connect_args={"timeout": settings.timeout_seconds}, json_serializer=_json
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        # Readers are not held up by the writer; what a power cut takes is read from the topics again.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        # Begun by hand below: the driver begins only at the first write, after the reads it should protect.
        connection.isolation_level = None
        if bound_statements:
            connection.set_progress_handler(
                lambda: monotonic() > record.info.get(_UNTIL, inf), _INSTRUCTIONS_BETWEEN_LOOKS
            )
        else:
            connection.execute(f"PRAGMA cache_size=-{_WRITER_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint={_WRITER_LOG_PAGES}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.info[_UNTIL] = monotonic() + settings.timeout_seconds
        connection.exec_driver_sql("BEGIN")

    return engine


def _json(value: object) -> str:
    return to_json(value).decode()


@contextlib.contextmanager
def retryable(doing: str) -> Iterator[None]:
    """Turns the database's errors into ours.

    Raises:
        Retryable: LEDGER_UNAVAILABLE; LEDGER_TOO_SLOW (a statement was cut short at its time limit).
        Fatal: LEDGER_NOT_MIGRATED (a table or column is missing).
    """
    try:
        yield
    except exc.SQLAlchemyError as error:
        if _was_cut_short(error):
            raise Retryable(
                "LEDGER_TOO_SLOW", f"the ledger's database took too long to {doing}: ask for less, by time, actor or id"
            ) from error
        if _lacks_tables(error):
            raise Fatal(
                "LEDGER_NOT_MIGRATED", "the ledger's tables are not those of this version: run `seawall ledger migrate`"
            ) from error
        raise Retryable(
            "LEDGER_UNAVAILABLE", f"the ledger's database did not let us {doing} ({type(error).__name__})"
        ) from error


def _lacks_tables(error: exc.SQLAlchemyError) -> bool:
    """Whether a table or column is missing: SQLite says so in words, PostgreSQL by its state's class."""
    original = getattr(error, "orig", None)
    return str(original).startswith(("no such table", "no such column")) or (
        getattr(original, "sqlstate", None) in ("42P01", "42703")
    )


def _was_cut_short(error: exc.SQLAlchemyError) -> bool:
    original = getattr(error, "orig", None)
    return str(original) == "interrupted" or getattr(original, "sqlstate", None) == "57014"


def migrate(engine: Engine, revision: str = "head") -> str:
    """Bring the tables to this version, or up to an earlier one. Returns the revision.

    Safe to run from several processes at once. Raises Retryable and Fatal as `retryable`.
    """
    with retryable("migrate"), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # One at a time; freed with the transaction.
            connection.execute(text("SELECT pg_advisory_xact_lock(5346247)"))
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        return MigrationContext.configure(connection).get_current_revision() or ""


def check_migrated(engine: Engine) -> None:
    """Raise Fatal("LEDGER_NOT_MIGRATED") unless the tables are those of this version; Retryable as `retryable`."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    wanted = ScriptDirectory.from_config(config).get_current_head()
    with retryable("read its revision"), engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found != wanted:
        raise Fatal(
            "LEDGER_NOT_MIGRATED",
            f"the ledger is at revision {found}, this version needs {wanted}: run `seawall ledger migrate`",
        )


def make_days(connection: Connection, days: Collection[date]) -> None:
    """Make the partitions for these days; nothing to do on SQLite."""
    if connection.dialect.name != "postgresql":
        return
    for day in days:
        for table in DAILY:
            connection.execute(
                text(
                    f"CREATE TABLE IF NOT EXISTS {_partition(table, day)} PARTITION OF {table.name} "
                    f"FOR VALUES FROM ('{day.isoformat()}') TO ('{(day + timedelta(days=1)).isoformat()}')"
                )
            )


def forget_days(engine: Engine, keep_days: int, today: date | None = None) -> int:
    """Delete days older than ``keep_days``. Returns how many days there were of each table, together."""
    today = today or datetime.now(UTC).date()
    first = today - timedelta(days=keep_days)
    gone = 0
    with retryable("delete old days"), engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            for table in DAILY:
                prefix = f"{table.name}_"
                for name in inspect(connection).get_table_names():
                    if name.startswith(prefix) and (day := _day_of(name.removeprefix(prefix))) and day < first:
                        connection.execute(text(f"DROP TABLE {name}"))
                        gone += 1
        else:
            for table in DAILY:
                gone += connection.execute(delete(table).where(table.c.day < first)).rowcount > 0
        connection.execute(delete(overrides).where(overrides.c.day < first))
        for hours in (verdict_counts, verdict_totals):
            connection.execute(delete(hours).where(hours.c.hour < _begin(first) // HOUR_NANOS))
        counted = max(first, today - timedelta(days=_MINUTES_KEPT_DAYS))
        for minutes in (decision_counts, decision_totals):
            connection.execute(delete(minutes).where(minutes.c.minute < _begin(counted) // MINUTE_NANOS))
    return gone


def _begin(day: date) -> int:
    """Of a UTC day, Unix nanoseconds."""
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1_000_000_000


def empty(engine: Engine) -> None:
    """Delete every row, positions included, so that the topics are read again from their beginning."""
    with retryable("empty its tables"), engine.begin() as connection:
        for table in FILLED:
            connection.execute(delete(table))


def _partition(table: Table, day: date) -> str:
    return f"{table.name}_{day:%Y%m%d}"


def _day_of(suffix: str) -> date | None:
    try:
        return datetime.strptime(suffix, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None
