"""The page *Now*: figures of the last hour, and what is wrong with them."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from sqlalchemy import Engine

from seawall.api.signal.v1 import signal_pb2
from seawall.console.problems import problems
from seawall.console.settings import LimitSettings
from seawall.console.shapes import OUTCOMES, Artefact, Now, OutcomeShare, instant
from seawall.console.watch import Watch
from seawall.ledger import figures, queries

_NANOS: Final = 1_000_000_000
_HOUR: Final = 60
#: Of p99 and of the rate: long enough to have something in it, short enough to be now.
_RECENT: Final = 5
_DAY_SECONDS: Final = 86_400.0
_KINDS: Final = {
    signal_pb2.ARTEFACT_KIND_MODEL: "model",
    signal_pb2.ARTEFACT_KIND_BANK: "list",
    signal_pb2.ARTEFACT_KIND_TERM_PACK: "term pack",
}


def look(
    db: Engine, watch: Watch, limits: LimitSettings, tenant_id: str | None, *, unix_nano: int | None = None
) -> Now:
    """Everything at once.

    Args:
        tenant_id: count this tenant's decisions alone; what belongs to no tenant (rooms, lists) is told all the same,
            dead letters are not.

    Raises Retryable and Fatal as `ledger.database.retryable`.
    """
    at = time.time_ns() if unix_nano is None else unix_nano
    last = figures.minute_of(at)
    minutes = figures.minutes(db, last - _HOUR, last, tenant_id)
    # The minute that has just begun would always look like a fall.
    whole, recent = minutes[:-1], minutes[-1 - _RECENT : -1]
    latencies: Counter[int] = sum((minute.latencies for minute in recent), Counter())
    outcomes: Counter[int] = sum((minute.outcomes for minute in minutes), Counter())
    total = outcomes.total()
    holds = figures.open_holds(db, at - int(_DAY_SECONDS) * _NANOS, tenant_id)
    letters = None if tenant_id is not None else figures.dead_letters_since(db, at - _HOUR * 60 * _NANOS)
    read = queries.state(db)
    lag, known = ledger_lag(read, watch, at)
    ahead = max((log - at for _, log, _ in read.positions.values()), default=0) / _NANOS
    state = Now(
        at=instant(at),
        problems=[],
        decisions_by_minute=[minute.decisions for minute in whole],
        p99_ms_by_minute=[figures.quantile(minute.latencies, 0.99) for minute in whole],
        p99_ms=figures.quantile(latencies, 0.99),
        p50_ms=figures.quantile(latencies, 0.5),
        decisions_per_minute=sum(minute.decisions for minute in recent) / _RECENT,
        outcomes=[
            OutcomeShare(
                outcome=name,
                decisions=outcomes[number],
                share=outcomes[number] / total if total else 0.0,
                by_minute=[minute.outcomes[number] for minute in whole],
            )
            for number, name in enumerate(OUTCOMES, 1)
        ],
        open_holds=len(holds),
        oldest_hold=instant(min(row["decided_unix_nano"] for row in holds)) if holds else None,
        dead_letters=None if letters is None else sum(one.letters for one in letters),
        dead_letters_truncated=sum(one.letters for one in letters or ()) >= figures.MAX_DEAD_LETTERS,
        ledger_lag_seconds=lag,
        ledger_lag_known=known,
        rooms=list(watch.rooms),
        artefacts=artefacts(db, at),
    )
    return state.model_copy(update={"problems": problems(state, limits, kafka=watch.ends is not None, ahead=ahead)})


def ledger_lag(state: queries.State, watch: Watch, unix_nano: int) -> tuple[float | None, bool]:
    """How far the ledger is behind, seconds, and whether Kafka said so.

    While Kafka does not say where the topics end, the age of the last record written is all there is, and means nothing
    where nothing comes. A partition that was never read counts from the newest record that was; None: nothing was ever
    read.
    """
    ages = {key: max(unix_nano - log, 0) / _NANOS for key, (_, log, _) in state.positions.items()}
    ends = watch.ends
    if ends is None:
        return min(ages.values(), default=None), False
    if not ages:
        return (None if any(ends.values()) else 0.0), True
    behind = [
        ages.get(name, max(ages.values()))
        for partition, end in ends.items()
        if end > state.positions.get(name := f"{partition.topic}/{partition.partition}", (0, 0, 0))[0]
    ]
    return max(behind, default=0.0), True


def artefacts(db: Engine, unix_nano: int) -> list[Artefact]:
    """Versions of models, lists and packs, newest use first."""
    rows = figures.versions(db)
    newest: dict[tuple[int, str], int] = {}
    for row in rows:
        key = row["kind"], row["name"]
        newest[key] = max(newest.get(key, 0), row["first_unix_nano"])
    return [
        Artefact(
            kind=_KINDS.get(row["kind"], "other"),  # type: ignore[arg-type]
            name=row["name"],
            version=row["version"],
            sha256=row["sha256"],
            first_seen=instant(row["first_unix_nano"]),
            last_seen=instant(row["last_unix_nano"]),
            current=row["first_unix_nano"] == newest[row["kind"], row["name"]],
            age_days=max(unix_nano - newest[row["kind"], row["name"]], 0) / _NANOS / _DAY_SECONDS,
        )
        for row in rows
    ]
