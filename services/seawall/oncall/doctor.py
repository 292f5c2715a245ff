"""Looks a lane over: topics, replicas, versions, clocks, lists and models, certificates, disk. Each finding has a mend.

A check is a function from what was gathered to findings: it asks nobody, and a test can hand it anything.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from seawall import __version__
from seawall.core.errors import Retryable
from seawall.oncall.rooms import Answer, Endpoint, ask, mend
from seawall.oncall.status import LATE_SECONDS, NO_ANSWER, NOT_READY, Overview, RoomLine
from seawall.runtime import topics
from seawall.runtime.broker import Broker, Replicas, TopicPartition
from seawall.runtime.prometheus import scraped

_DAY: Final = 86_400.0
#: A list that has not changed for so long is one that nobody pulls; a model, one that nobody looks after (days).
LIST_DAYS: Final = 7.0
MODEL_DAYS: Final = 180.0
CERTIFICATE_DAYS: Final = 14.0
DISK_FREE_SHARE: Final = 0.10


class Level(Enum):
    """How grave a finding is."""

    BROKEN = "broken"
    SOON = "soon"


class Finding(NamedTuple):
    """What is wrong, and what mends it."""

    level: Level
    check: str
    what: str
    mend: str


def _broken(check: str, what: str, mend: str) -> Finding:
    return Finding(Level.BROKEN, check, what, mend)


def _soon(check: str, what: str, mend: str) -> Finding:
    return Finding(Level.SOON, check, what, mend)


@dataclass
class Gathered:
    """What the checks look at."""

    rooms: Sequence[RoomLine] = ()
    answers: Sequence[Answer] = ()
    problems: Sequence[topics.Problem] = ()
    replicas: Mapping[TopicPartition, Replicas] = field(default_factory=dict)
    kafka_fault: str = ""
    #: Certificate files by setting, and when each ends (Unix seconds) or why it cannot be read.
    certificates: Mapping[str, float | str] = field(default_factory=dict)
    #: Share that is free, by folder.
    disks: Mapping[str, float] = field(default_factory=dict)
    now: float = 0.0


async def gather(
    broker: Broker,
    names: topics.TopicNames,
    endpoints: Sequence[Endpoint],
    overview: Overview,
    certificates: Mapping[str, Path],
    folders: Iterable[Path],
) -> Gathered:
    """Everything the checks need; what cannot be asked is part of it."""
    found = Gathered(rooms=overview.rooms, kafka_fault=overview.kafka_fault, now=time.time())
    found.answers = await ask(endpoints)
    found.certificates = {setting: certificate_ends(path) for setting, path in certificates.items()}
    found.disks = {str(folder): _free(folder) for folder in folders if folder.exists()}
    if found.kafka_fault:
        return found
    try:
        found.problems = await topics.check(broker, names)
        admin = broker.admin()
        await admin.start()
        try:
            found.replicas = await admin.replicas(names.all)
        finally:
            await admin.stop()
    except Retryable as error:
        found.kafka_fault = f"{error.reason}: {error.detail}"
    return found


def examine(found: Gathered) -> list[Finding]:
    """Every check's findings, the gravest first."""
    every = [finding for check in CHECKS for finding in check(found)]
    return sorted(every, key=lambda one: (one.level is not Level.BROKEN, one.check))


def _kafka(found: Gathered) -> Iterator[Finding]:
    if found.kafka_fault:
        yield _broken("kafka", found.kafka_fault, "see whether the brokers are up and reachable from here")
    for problem in found.problems:
        yield _broken("topics", f"{problem.topic} {problem.what}", problem.mend)
    short = [f"{one.topic}/{one.partition}" for one, copies in found.replicas.items() if copies.in_sync < copies.wanted]
    if short:
        yield _broken(
            "replicas",
            f"{len(short)} partitions have copies that are behind or gone: {', '.join(sorted(short)[:5])}",
            "bring the broker back that is missing; below min.insync.replicas nothing is acknowledged, nothing lost",
        )


def _rooms(found: Gathered) -> Iterator[Finding]:
    for line in found.rooms:
        if line.state == NO_ANSWER:
            yield _broken("rooms", f"{line.room} does not answer: {line.why}", "look at its log, then restart it")
        elif line.state == NOT_READY:
            yield _broken("rooms", f"{line.room} is not ready: {line.why or 'it does not say why'}", mend(line.why))
        if line.lag_seconds is not None and line.lag_seconds > LATE_SECONDS:
            yield _broken(
                "lag",
                f"{line.room} is {line.lag_seconds:.0f} s late, {line.lag_records} records",
                "see `seawall status`: if its rate is 0 it is stuck (look at its log), else add replicas",
            )
        if line.spans_dropped:
            yield _soon(
                "telemetry",
                f"{line.room} has dropped {line.spans_dropped:.0f} spans",
                "see whether the collector is up; decisions are the same without it",
            )


def _versions(found: Gathered) -> Iterator[Finding]:
    spoken = {line.room: line.version for line in found.rooms if line.version}
    if len(set(spoken.values()) | {__version__}) > 1:
        listed = ", ".join(f"{room} {version}" for room, version in sorted(spoken.items()) if version != __version__)
        yield _soon(
            "versions",
            f"not of this version ({__version__}): {listed}",
            "finish the rollout, or roll it back",
        )
    digests: dict[tuple[str, str, str], set[str]] = {}
    for line in found.rooms:
        for one in line.rests_on:
            digests.setdefault((line.room, one.get("kind", "policy"), one["name"]), set()).add(one["sha256"])
    for (room, kind, name), found_digests in sorted(digests.items()):
        if len(found_digests) > 1 and kind != "policy":
            yield _soon(
                "digests",
                f"instances of {room} rest on {len(found_digests)} versions of the {kind} {name}",
                "give it a minute; if it stays, `seawall status --json` says which instance has which",
            )


def _clocks(found: Gathered) -> Iterator[Finding]:
    for answer in found.answers:
        if answer.clock_is_off:
            way = "ahead of" if answer.ahead > 0 else "behind"
            yield _soon(
                "clocks",
                f"the clock of {answer.room} ({answer.endpoint.address}) is {abs(answer.ahead):.1f} s {way} this one's",
                "mend NTP there; decisions do not depend on it, the times in `seawall why` do",
            )


def _lists(found: Gathered) -> Iterator[Finding]:
    for answer in found.answers:
        for bank, ends in sorted(answer.by(scraped("moderation.bank.expires_time"), "moderation_bank").items()):
            left = (ends - found.now) / _DAY
            if left < LIST_DAYS:
                what = (
                    f"the bank {bank} has expired: it matches nothing"
                    if left <= 0
                    else f"the bank {bank} expires in {left:.1f} days"
                )
                level = Level.BROKEN if left <= 0 else Level.SOON
                yield Finding(level, "lists", what, "pull or import the list again, then renew `expires` in its card")
        for bank, changed in sorted(answer.by(scraped("moderation.bank.changed_time"), "moderation_bank").items()):
            age = (found.now - changed) / _DAY
            if age > LIST_DAYS:
                yield _soon(
                    "lists",
                    f"the bank {bank} has not changed for {age:.0f} days",
                    "see whether `seawall banks pull` runs",
                )
        for model, loaded in sorted(answer.by(scraped("moderation.model.loaded_time"), "moderation_model").items()):
            age = (found.now - loaded) / _DAY
            if age > MODEL_DAYS:
                yield _soon(
                    "models",
                    f"{model} was loaded {age:.0f} days ago",
                    "evaluate it on what you see now: docs/classification.md",
                )


def _refusals(found: Gathered) -> Iterator[Finding]:
    """What rooms have been given and did not take up, since they started."""
    for answer in found.answers:
        refused = answer.value(scraped("moderation.model.reloads"), moderation_model_reload_result="refused")
        if refused:
            yield _soon(
                "refused",
                f"{answer.room} has refused a changed model, rollout or pack {refused:.0f} times: what served goes on",
                "its log says why; `seawall models check FOLDER`, then install a whole pack again",
            )
        for event in ("policy_refused", "policy_reload_crashed"):
            if answer.value(scraped("moderation.stream.events"), moderation_event=event):
                yield _soon(
                    "refused",
                    f"{answer.room} met {event}: a changed policy is not in force",
                    "its log has line and mend; `seawall policy check FOLDER` says the same",
                )


def _certificates(found: Gathered) -> Iterator[Finding]:
    for setting, ends in sorted(found.certificates.items()):
        if isinstance(ends, str):
            yield _broken("certificates", f"{setting}: {ends}", "name a readable PEM file")
            continue
        left = (ends - found.now) / _DAY
        if left < CERTIFICATE_DAYS:
            when = datetime.fromtimestamp(ends, UTC).date().isoformat()
            what = f"{setting} {'ended' if left <= 0 else 'ends'} on {when}"
            yield Finding(
                Level.BROKEN if left <= 0 else Level.SOON,
                "certificates",
                what,
                "issue a new one and restart what uses it",
            )


def _disks(found: Gathered) -> Iterator[Finding]:
    for folder, free in sorted(found.disks.items()):
        if free < DISK_FREE_SHARE:
            yield Finding(
                Level.SOON if free > DISK_FREE_SHARE / 5 else Level.BROKEN,
                "disk",
                f"{free:.0%} of the disk that holds {folder} is free",
                "free or add space: a broker whose disk is full acknowledges nothing",
            )


Check = Callable[[Gathered], Iterable[Finding]]
#: Every check, in the order of the stream.
CHECKS: Final[Sequence[Check]] = (_kafka, _rooms, _versions, _clocks, _lists, _refusals, _certificates, _disks)


def _free(folder: Path) -> float:
    usage = shutil.disk_usage(folder)
    return usage.free / usage.total if usage.total else 0.0


def certificate_ends(path: Path) -> float | str:
    """When the first certificate of a PEM file to end ends, Unix seconds; or why it cannot be said."""
    try:
        from cryptography import x509
    except ImportError:
        return "needs the package cryptography to be read: pip install cryptography"
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    except ValueError:
        return f"{path} holds no PEM certificate"
    return min(one.not_valid_after_utc.timestamp() for one in certificates)
