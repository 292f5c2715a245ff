"""Every room in one line: ready, how late, how fast, what it rests on; and which rooms do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from seawall.core.errors import Retryable
from seawall.oncall.lag import Lag, groups, lags
from seawall.oncall.rooms import TOPIC_LABEL, Answer, Endpoint, ask
from seawall.runtime.broker import Broker
from seawall.runtime.prometheus import scraped
from seawall.runtime.topics import TopicNames

#: States of a room, the worst first.
NO_ANSWER, NOT_READY, READY = "no answer", "not ready", "ready"
#: A room is late above this, seconds: longer than any budget of the default policy.
LATE_SECONDS: Final = 60.0
#: Kafka is asked for so long: a person waits (seconds).
_KAFKA_SECONDS: Final = 6.0


@dataclass
class RoomLine:
    """One instance of a room."""

    room: str
    instance: str
    state: str
    #: Why it is not ready, or does not answer.
    why: str
    #: Of its group, from Kafka: the age of the oldest record that is not settled (seconds), and how many there are.
    #: None: it settles none.
    lag_seconds: float | None = None
    lag_records: int | None = None
    #: Records or items a second, over the time that was measured. None: it did not say.
    rate: float | None = None
    #: Seconds that its watermark has stood still with work behind it.
    watermark_age_seconds: float | None = None
    version: str = ""
    started: float | None = None
    clock_ahead_seconds: float | None = None
    #: Models, banks, packs and policies, each with name, version and sha256.
    rests_on: Sequence[Mapping[str, str]] = ()
    #: Generations open, signals early, HOLDs that wait: the aggregator's.
    waiting: Mapping[str, int] = field(default_factory=dict)
    spans_dropped: float | None = None


@dataclass
class Overview:
    """What `seawall status` prints."""

    rooms: Sequence[RoomLine]
    lags: Sequence[Lag]
    #: Why Kafka could not be asked; empty if it could.
    kafka_fault: str

    @property
    def healthy(self) -> bool:
        """Every room ready and none late."""
        late = any((line.lag_seconds or 0.0) > LATE_SECONDS for line in self.rooms)
        return not self.kafka_fault and not late and all(line.state == READY for line in self.rooms)


async def overview(
    broker: Broker, names: TopicNames, endpoints: Sequence[Endpoint], *, seconds: float = 1.0
) -> Overview:
    """Ask rooms twice, ``seconds`` apart, for their rates, and Kafka meanwhile."""
    asking = asyncio.create_task(_lags(broker, names, {endpoint.room for endpoint in endpoints}))
    try:
        before = await ask(endpoints)
        await asyncio.sleep(seconds)
        after = await ask(endpoints)
        found, fault = await asking
    finally:
        asking.cancel()
    earlier = {(answer.room, answer.endpoint.address): answer for answer in before}
    lines = [_line(answer, earlier.get((answer.room, answer.endpoint.address)), found) for answer in after]
    return Overview(lines, found, fault)


async def _lags(broker: Broker, names: TopicNames, rooms: set[str]) -> tuple[list[Lag], str]:
    try:
        async with asyncio.timeout(_KAFKA_SECONDS):
            return await lags(broker, [group for group in groups(names) if group.room in rooms]), ""
    except Retryable as error:
        return [], f"{error.reason}: {error.detail}"
    except TimeoutError:
        return [], f"BROKER_UNAVAILABLE: no answer in {_KAFKA_SECONDS:g} s"


def _line(answer: Answer, before: Answer | None, found: Sequence[Lag]) -> RoomLine:
    own = [lag for lag in found if lag.room == answer.room and lag.known]
    seconds = max((lag.seconds for lag in own), default=None)
    records = sum(lag.records for lag in own) if own else None
    if answer.fault:
        return RoomLine(answer.room, "", NO_ANSWER, answer.fault, seconds, records)
    document: Mapping[str, Any] = answer.document
    return RoomLine(
        room=answer.room,
        instance=str(document.get("instance", "")),
        state=READY if document.get("ready") else NOT_READY,
        why=str(document.get("why", "")),
        lag_seconds=seconds,
        lag_records=records,
        rate=_rate(answer, before),
        watermark_age_seconds=max(
            answer.by(scraped("moderation.stream.watermark.age"), TOPIC_LABEL).values(), default=None
        ),
        version=str(document.get("version", "")),
        started=document.get("started"),
        clock_ahead_seconds=round(answer.ahead, 3),
        rests_on=[*document.get("artefacts", ()), *document.get("policies", ())],
        waiting=document.get("waiting", {}),
        spans_dropped=answer.value(scraped("moderation.telemetry.spans.dropped")),
    )


def _rate(answer: Answer, before: Answer | None) -> float | None:
    if before is None or before.fault or answer.at <= before.at:
        return None
    # Of a room that reads several topics the busiest tells its pace; a service reads none, and counts its items.
    settled, items = (
        scraped("moderation.stream.records"),
        scraped("moderation.batch.items"),
    )
    now = answer.by(settled, TOPIC_LABEL) or {"": answer.value(items) or 0.0}
    then = before.by(settled, TOPIC_LABEL) or {"": before.value(items) or 0.0}
    counted = max(value - then.get(topic, 0.0) for topic, value in now.items())
    return max(counted, 0.0) / (answer.at - before.at)
