"""Lag and watermark age, from what a consumer hands out and commits."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from seawall.runtime.broker import TopicPartition
from seawall.runtime.memory import InMemoryRecord
from seawall.runtime.progress import Progress

HERE, THERE = TopicPartition("signals.v1", 0), TopicPartition("signals.v1", 1)


class Clock:
    """A clock to set; wall and monotonic seconds go together."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def records(partition: TopicPartition, *logged: tuple[int, float]) -> list[InMemoryRecord]:
    """Records by offset and log time in seconds."""
    return [InMemoryRecord(*partition, offset, int(at * 1000), None, b"", ()) for offset, at in logged]


def value(found: object) -> dict[str, float]:
    return {attributes["messaging.destination.name"]: round(seconds, 3) for seconds, attributes in found}  # type: ignore[attr-defined]


def polled(partition: TopicPartition, *logged: tuple[int, float]) -> Mapping[TopicPartition, list[InMemoryRecord]]:
    return {partition: records(partition, *logged)}


def test_the_lag_is_the_age_of_the_oldest_record_that_is_not_settled() -> None:
    clock = Clock()
    progress = Progress(clock, clock)
    assert value(progress.lag()) == {}
    progress.read(polled(HERE, (10, 990.0), (11, 991.0)))
    progress.read(polled(HERE, (12, 995.0)))
    assert value(progress.lag()) == {"signals.v1": 10.0}
    clock.now += 5
    assert value(progress.lag()) == {"signals.v1": 15.0}, "it grows by itself"
    progress.committed({HERE: 12})
    assert value(progress.lag()) == {"signals.v1": 10.0}
    progress.committed({HERE: 13})
    assert value(progress.lag()) == {"signals.v1": 0.0}


def test_the_slowest_partition_tells_the_topics_lag() -> None:
    clock = Clock()
    progress = Progress(clock, clock)
    progress.read(polled(HERE, (0, 999.0)))
    progress.read(polled(THERE, (0, 900.0)))
    assert value(progress.lag()) == {"signals.v1": 100.0}
    progress.revoked([THERE])
    assert value(progress.lag()) == {"signals.v1": 1.0}


def test_the_watermark_ages_only_while_work_waits_behind_it() -> None:
    clock = Clock()
    progress = Progress(clock, clock)
    progress.read(polled(HERE, (0, 0.0), (1, 0.0)))
    clock.now += 30
    assert value(progress.watermark_age()) == {"signals.v1": 30.0}
    progress.committed({HERE: 1})
    clock.now += 2
    assert value(progress.watermark_age()) == {"signals.v1": 2.0}
    progress.committed({HERE: 2})
    clock.now += 500
    assert value(progress.watermark_age()) == {"signals.v1": 0.0}
    progress.read(polled(HERE, (2, 0.0)))
    assert value(progress.watermark_age()) == {"signals.v1": 0.0}, "an idle time is no standstill"


def test_a_clock_that_is_set_back_makes_no_negative_lag() -> None:
    clock = Clock()
    progress = Progress(clock, clock)
    progress.read(polled(HERE, (0, 2_000.0)))
    assert value(progress.lag()) == {"signals.v1": 0.0}


def test_memory_is_bounded_and_the_lag_never_too_low() -> None:
    clock = Clock()
    progress = Progress(clock, clock)
    for offset in range(10_000):
        progress.read(polled(HERE, (offset, float(offset) / 100)))
    lags = []
    for offset in range(0, 10_000, 500):
        progress.committed({HERE: offset})
        lags.append(value(progress.lag())["signals.v1"])
        assert lags[-1] >= clock.now - offset / 100 - 0.001
    assert all(later <= earlier for earlier, later in pairwise(lags))
    progress.committed({HERE: 10_000})
    assert value(progress.lag()) == {"signals.v1": 0.0}
