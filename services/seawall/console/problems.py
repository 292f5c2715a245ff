"""What is wrong, from the figures: the first thing that the page *Now* says. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from seawall.console.settings import LimitSettings
from seawall.console.shapes import Now, Problem

#: Log times that are further ahead of this machine's clock: one of the clocks is wrong.
_SKEW_SECONDS: Final = 30.0
#: Shares of fewer decisions than these say nothing.
_FEWEST: Final = 20
_ORDER: Final = {"critical": 0, "warning": 1}


def problems(now: Now, limits: LimitSettings, *, kafka: bool, ahead: float) -> list[Problem]:
    """The gravest first.

    Args:
        kafka: whether Kafka answered.
        ahead: how far the newest log time is ahead of this machine's clock, seconds.
    """
    found = [*_ledger(now, limits, kafka=kafka, ahead=ahead), *_rooms(now, limits), *_decisions(now, limits)]
    return sorted(found, key=lambda one: _ORDER[one.level])


def _ledger(now: Now, limits: LimitSettings, *, kafka: bool, ahead: float) -> Iterator[Problem]:
    if not kafka:
        yield Problem(
            level="warning",
            text="Kafka does not answer the console",
            meaning="Lag is not known, and a decision's record cannot be shown. If the rooms have the same trouble, "
            "nothing is being decided.",
            command="seawall topics check",
        )
    if now.ledger_lag_known and now.ledger_lag_seconds is None:
        yield Problem(
            level="critical",
            text="The ledger has read nothing yet",
            meaning="Decisions are made, and these pages cannot show them: it was not started, or was emptied.",
            command="seawall run ledger",
        )
    if now.ledger_lag_known and (now.ledger_lag_seconds or 0.0) > limits.lag_seconds:
        yield Problem(
            level="critical",
            text=f"The ledger is {duration(now.ledger_lag_seconds or 0.0)} behind",
            meaning="These pages show the past. Decisions go on; `seawall why` reads Kafka and is not late.",
            command="seawall ledger stat",
        )
    if ahead > _SKEW_SECONDS:
        yield Problem(
            level="warning",
            text=f"Log times are {duration(ahead)} ahead of this machine's clock",
            meaning="One of the clocks is wrong: ages and lag on this page are not to be trusted.",
            command="seawall doctor",
        )


def _rooms(now: Now, limits: LimitSettings) -> Iterator[Problem]:
    for room in now.rooms:
        if room.halted:
            yield Problem(
                level="critical",
                text=f"{room.room} stands still: {room.halted}",
                meaning="It goes on when a person has looked: too many records in a row could not be processed.",
                command="seawall dlq list",
                link="/dead-letters",
            )
            continue
        if not room.ready:
            said = "does not answer" if room.ready is None else "is not ready"
            meaning = "It is gone, or hangs: see its log." if room.ready is None else "Its own status says why."
            yield Problem(level="critical", text=f"{room.room} {said}", meaning=meaning, command="seawall status")
        if (room.lag_seconds or 0.0) > limits.lag_seconds:
            yield Problem(
                level="critical",
                text=f"{room.room} is {duration(room.lag_seconds or 0.0)} behind",
                meaning="Generations wait for it: more replicas, or a record that takes long.",
                command="seawall status",
            )


def _decisions(now: Now, limits: LimitSettings) -> Iterator[Problem]:
    quiet = int(limits.silence_seconds // 60)
    by_minute = now.decisions_by_minute
    is_late = now.ledger_lag_known and (now.ledger_lag_seconds or 0.0) > limits.lag_seconds
    if not is_late and quiet and sum(by_minute[:-quiet]) >= _FEWEST and not sum(by_minute[-quiet:]):
        yield Problem(
            level="critical",
            text=f"Nothing was decided for {duration(limits.silence_seconds)}",
            meaning="The hour before had decisions: either nothing comes in, or the aggregator stands still.",
            command="seawall status",
        )
    if now.p99_ms is not None and now.p99_ms > limits.p99_seconds * 1000:
        yield Problem(
            level="warning",
            text=f"1 decision in 100 takes longer than {duration(now.p99_ms / 1000)}",
            meaning=f"Over the last five minutes; the limit is {duration(limits.p99_seconds)}. A decision's page shows "
            "where its time went.",
            link="/decisions",
        )
    shares = {one.outcome: one for one in now.outcomes}
    held, total = shares["HOLD"], sum(one.decisions for one in now.outcomes)
    if total >= _FEWEST and held.share > limits.hold_share:
        yield Problem(
            level="critical",
            text=f"{held.share:.0%} of the last hour's decisions are holds",
            meaning="A stage is silent, or its evidence is broken: the holds' reasons say which.",
            command="seawall hold list",
            link="/decisions?outcome=HOLD&since=1h",
        )
    if now.dead_letters is not None and now.dead_letters > limits.dead_letters:
        count = f"{now.dead_letters:,}{' or more' if now.dead_letters_truncated else ''}"
        yield Problem(
            level="warning",
            text=f"{count} dead letter{'' if now.dead_letters == 1 else 's'} in the last hour",
            meaning="Records that a room could not process were set aside, sealed.",
            command="seawall dlq list",
            link="/dead-letters",
        )
    old = [one for one in now.artefacts if one.kind == "list" and one.current and one.age_days > limits.list_age_days]
    for one in old:
        yield Problem(
            level="warning",
            text=f"List {one.name} has not changed for {one.age_days:.0f} days",
            meaning="What was listed since does not match: is the exchange still pulled?",
            command="seawall banks stat",
            link="/artefacts",
        )


def duration(seconds: float) -> str:
    """About how long, for a person: "850 ms", "42 s", "1 h 5 min", "3 d 2 h"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 10 else f"{days} d"
