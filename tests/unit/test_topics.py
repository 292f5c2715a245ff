"""The catalogue of topics, and what refuses to start."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from seawall.core.errors import Fatal
from seawall.runtime import topics
from seawall.runtime.broker import TopicSpec
from seawall.runtime.memory import InMemoryAdmin, InMemoryBroker
from seawall.runtime.murmur2 import murmur2
from seawall.runtime.settings import KafkaSettings
from seawall.runtime.topics import TopicNames, TopicSettings

NAMES = TopicNames()
KAFKA = KafkaSettings()


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker()


def test_a_lane_has_topics_of_its_own() -> None:
    assert TopicNames("bulk.").all == (
        "bulk.generations.v1",
        "bulk.signals.v1",
        "bulk.decisions.v1",
        "bulk.dead_letters.v1",
        "bulk.bank_entries.v1",
        "bulk.actor_events.v1",
        "bulk.actor_standing.v1",
        "bulk.overrides.v1",
    )


def test_joined_topics_are_planned_with_equal_partitions_and_the_logs_own_time() -> None:
    specs = {spec.name: spec for spec in topics.plan(NAMES, TopicSettings(partitions=12))}
    assert set(specs) == set(NAMES.all)
    for name in NAMES.co_partitioned:
        assert specs[name].partitions == 12
        assert specs[name].config["message.timestamp.type"] == "LogAppendTime"
        assert specs[name].config["cleanup.policy"] == "delete"


@pytest.mark.parametrize(
    ("settings", "in_sync"),
    [
        ({}, None),
        ({"replication_factor": 2}, None),
        ({"replication_factor": 3}, "2"),
        ({"replication_factor": 3, "min_insync_replicas": 1}, "1"),
        ({"replication_factor": 5, "min_insync_replicas": 3}, "3"),
    ],
)
def test_of_three_copies_two_must_acknowledge(settings: dict[str, int], in_sync: str | None) -> None:
    specs = topics.plan(NAMES, TopicSettings(**settings))
    assert {spec.config.get("min.insync.replicas") for spec in specs} == {in_sync}


def test_more_copies_in_sync_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="min_insync_replicas is above replication_factor"):
        TopicSettings(replication_factor=2, min_insync_replicas=3)


def test_a_dead_letter_can_hold_the_largest_record() -> None:
    largest = {spec.name: int(spec.config["max.message.bytes"]) for spec in topics.plan(NAMES)}
    assert largest[NAMES.dead_letters] > max(largest[name] for name in NAMES.co_partitioned)


async def test_apply_creates_what_is_absent_once_and_then_nothing_is_wrong(broker: InMemoryBroker) -> None:
    assert await topics.apply(broker, KAFKA) == list(NAMES.all)
    assert await topics.apply(broker, KAFKA) == []
    assert await topics.check(broker, NAMES) == []
    await topics.check_at_start(broker, NAMES)


async def test_apply_waits_for_a_broker_that_learns_late(
    broker: InMemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    partitions = InMemoryAdmin.partitions

    async def late(admin: InMemoryAdmin, names: Collection[str]) -> Mapping[str, int]:
        nonlocal asked
        asked += 1
        there = await partitions(admin, names)
        return {name: count for name, count in there.items() if asked > 3 or name != NAMES.signals}

    monkeypatch.setattr(InMemoryAdmin, "partitions", late)
    assert await topics.apply(broker, KAFKA) == list(NAMES.all)
    assert asked == 4


async def test_apply_works_in_a_lane(broker: InMemoryBroker) -> None:
    await topics.apply(broker, KafkaSettings(topic_prefix="bulk."))
    await topics.check_at_start(broker, TopicNames("bulk."))
    with pytest.raises(Fatal, match="TOPIC_MISSING"):
        await topics.check_at_start(broker, NAMES)


async def test_a_missing_topic_is_named_with_its_mend(broker: InMemoryBroker) -> None:
    await topics.apply(broker, KAFKA)
    other = InMemoryBroker()
    other.create([spec for spec in topics.plan(NAMES) if spec.name != NAMES.signals])
    with pytest.raises(Fatal, match=r"signals\.v1 is missing: run `seawall topics apply`") as refused:
        await topics.check_at_start(other, NAMES)
    assert refused.value.reason == "TOPIC_MISSING"


@pytest.mark.parametrize("odd", NAMES.co_partitioned)
async def test_unequal_partitions_are_refused_with_every_count_and_the_mend(broker: InMemoryBroker, odd: str) -> None:
    broker.create([spec._replace(partitions=4 if spec.name == odd else 8) for spec in topics.plan(NAMES)])
    with pytest.raises(Fatal) as refused:
        await topics.check_at_start(broker, NAMES)
    assert refused.value.reason == "PARTITIONS_DIFFER"
    assert f"{odd} 4" in refused.value.detail
    assert "with 8 partitions" in refused.value.detail
    assert "topic_prefix" in refused.value.detail


async def test_dead_letters_may_have_any_number_of_partitions(broker: InMemoryBroker) -> None:
    broker.create(
        [spec._replace(partitions=3) if spec.name == NAMES.dead_letters else spec for spec in topics.plan(NAMES)]
    )
    await topics.check_at_start(broker, NAMES)


async def test_apply_creates_nothing_beside_topics_it_would_not_fit(broker: InMemoryBroker) -> None:
    broker.create([spec._replace(partitions=6) for spec in topics.plan(NAMES) if spec.name == NAMES.generations])
    with pytest.raises(Fatal, match=r"topics\.partitions \(now 8\)"):
        await topics.apply(broker, KAFKA)
    assert broker.counts(NAMES.all) == {NAMES.generations: 6}


async def test_apply_completes_a_lane_that_has_other_partitions_when_told_so(broker: InMemoryBroker) -> None:
    broker.create([spec._replace(partitions=6) for spec in topics.plan(NAMES) if spec.name == NAMES.generations])
    await topics.apply(broker, KAFKA, TopicSettings(partitions=6))
    assert {broker.partition_count(name) for name in NAMES.co_partitioned} == {6}


@pytest.mark.parametrize(
    ("key", "value"),
    [("message.timestamp.type", "CreateTime"), ("cleanup.policy", "compact"), ("max.message.bytes", "1000")],
)
async def test_a_configuration_that_would_break_a_promise_is_refused(
    broker: InMemoryBroker, key: str, value: str
) -> None:
    broker.create(
        [
            TopicSpec(
                spec.name, spec.partitions, {**spec.config, key: value} if spec.name == NAMES.signals else spec.config
            )
            for spec in topics.plan(NAMES)
        ]
    )
    (problem,) = await topics.check(broker, NAMES)
    assert problem.topic == NAMES.signals
    assert value in problem.what
    assert f"--add-config {key}=" in problem.mend
    with pytest.raises(Fatal, match="TOPIC_CONFIG_DIFFERS"):
        await topics.check_at_start(broker, NAMES)


async def test_retention_is_the_operators_to_choose(broker: InMemoryBroker) -> None:
    broker.create([spec._replace(config={**spec.config, "retention.ms": "60000"}) for spec in topics.plan(NAMES)])
    assert await topics.check(broker, NAMES) == []


@pytest.mark.parametrize(
    ("key", "hashed"),
    # org.apache.kafka.common.utils.UtilsTest
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(key: bytes, hashed: int) -> None:
    assert murmur2(key) == hashed % 2**32
