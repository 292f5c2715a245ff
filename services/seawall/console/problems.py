"""What is wrong, from the figures: the first thing that the page *Now* says. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from seawall.console.settings import LimitSettings
from seawall.console.shapes import Now, Problem
from seawall.oncall.rooms import mend

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


def _critical(text: str, meaning: str, command: str = "", link: str = "") -> Problem:
    return Problem(level="critical", text=text, meaning=meaning, command=command, link=link)


def _warning(text: str, meaning: str, command: str = "", link: str = "") -> Problem:
    return Problem(level="warning", text=text, meaning=meaning, command=command, link=link)


def _ledger(now: Now, limits: LimitSettings, *, kafka: bool, ahead: float) -> Iterator[Problem]:
    if not kafka:
        yield _warning(
            "Kafka does not answer the console",
            "Lag is not known, and a decision's record cannot be shown. If the rooms have the same trouble, nothing is "
            "being decided.",
            "seawall topics check",
        )
    if now.ledger_lag_known and now.ledger_lag_seconds is None:
        yield _critical(
            "The ledger has read nothing yet",
            "Decisions are made, and these pages cannot show them: it was not started, or was emptied.",
            "seawall run ledger",
        )
    if now.ledger_lag_known and (now.ledger_lag_seconds or 0.0) > limits.lag_seconds:
        yield _critical(
            f"The ledger is {duration(now.ledger_lag_seconds or 0.0)} behind",
            "These pages show the past. Decisions go on; `seawall why` reads Kafka and is not late.",
            "seawall ledger stat",
        )
    if ahead > _SKEW_SECONDS:
        yield _warning(
            f"Log times are {duration(ahead)} ahead of this machine's clock",
            "One of the clocks is wrong: ages and lag on this page are not to be trusted.",
            "seawall doctor",
        )


def _rooms(now: Now, limits: LimitSettings) -> Iterator[Problem]:
    for room in now.rooms:
        if room.halted:
            yield _critical(
                f"{room.room} stands still: {room.halted}",
                "It goes on when a person has looked: too many records in a row could not be processed.",
                "seawall dlq list",
                "/dead-letters",
            )
            continue
        if room.ready is None:
            yield _critical(
                f"{room.room} does not answer",
                f"{room.why or 'It is gone, or hangs'}. Its log says more.",
                "seawall status",
            )
        elif not room.ready:
            said = f"{room.room} is not ready: {room.why}" if room.why else f"{room.room} is not ready"
            yield _critical(said, f"What mends it: {mend(room.why)}.", "seawall status")
        if room.clock_ahead_seconds is not None:
            way = "ahead of" if room.clock_ahead_seconds > 0 else "behind"
            yield _warning(
                f"The clock of {room.room} is {duration(abs(room.clock_ahead_seconds))} {way} this one's",
                "Mend NTP there. Decisions do not depend on it; the times in them do.",
                "seawall doctor",
            )
        if (room.lag_seconds or 0.0) > limits.lag_seconds:
            yield _critical(
                f"{room.room} is {duration(room.lag_seconds or 0.0)} behind",
                "Generations wait for it: more replicas, or a record that takes long.",
                "seawall status",
            )


def _decisions(now: Now, limits: LimitSettings) -> Iterator[Problem]:
    quiet = int(limits.silence_seconds // 60)
    by_minute = now.decisions_by_minute
    is_late = now.ledger_lag_known and (now.ledger_lag_seconds or 0.0) > limits.lag_seconds
    if not is_late and quiet and sum(by_minute[:-quiet]) >= _FEWEST and not sum(by_minute[-quiet:]):
        yield _critical(
            f"Nothing was decided for {duration(limits.silence_seconds)}",
            "The hour before had decisions: either nothing comes in, or the aggregator stands still.",
            "seawall status",
        )
    if now.p99_ms is not None and now.p99_ms > limits.p99_seconds * 1000:
        yield _warning(
            f"1 decision in 100 takes longer than {duration(now.p99_ms / 1000)}",
            f"Over the last five minutes; the limit is {duration(limits.p99_seconds)}. A decision's page shows where "
            "its time went.",
            link="/decisions",
        )
    shares = {one.outcome: one for one in now.outcomes}
    held, total = shares["HOLD"], sum(one.decisions for one in now.outcomes)
    if total >= _FEWEST and held.share > limits.hold_share:
        yield _critical(
            f"{held.share:.0%} of the last hour's decisions are holds",
            "A stage is silent, or its evidence is broken: the holds' reasons say which.",
            "seawall hold list",
            "/decisions?outcome=HOLD&since=1h",
        )
    if now.dead_letters is not None and now.dead_letters > limits.dead_letters:
        count = f"{now.dead_letters:,}{' or more' if now.dead_letters_truncated else ''}"
        yield _warning(
            f"{count} dead letter{'' if now.dead_letters == 1 else 's'} in the last hour",
            "Records that a room could not process were set aside, sealed, and nobody has dealt with them.",
            "seawall dlq list",
            "/dead-letters",
        )
    old = [one for one in now.artefacts if one.kind == "list" and one.current and one.age_days > limits.list_age_days]
    for one in old:
        yield _warning(
            f"List {one.name} has not changed for {one.age_days:.0f} days",
            "What was listed since does not match: is the exchange still pulled?",
            "seawall banks stat",
            "/artefacts",
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
