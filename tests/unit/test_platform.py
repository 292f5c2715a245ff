"""A platform's side and the demo's bookkeeping, over the in-memory broker; a few lines stand in for the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Retryable
from seawall.core.validate import parse_generation
from seawall.local import demo, explain
from seawall.local.platform import Platform, Submission, Upload
from seawall.local.samples import Sample
from seawall.runtime import topics
from seawall.runtime.broker import Output
from seawall.runtime.content import ContentStore
from seawall.runtime.memory import InMemoryBroker
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import ContentSettings, KafkaSettings
from seawall.runtime.telemetry import TraceContext
from seawall.runtime.topics import TopicNames

NAMES = TopicNames()
PROMPT = "a red fox in the snow"


class Bench:
    """A broker with the topics, and a platform on it."""

    def __init__(self, folder: Path) -> None:
        self.broker = InMemoryBroker()
        self.sealer = Sealer.load_or_create(folder / "keys.json")
        self.store = ContentStore(ContentSettings(allowed_prefixes=[(folder / "content").as_uri() + "/"]))

    @asynccontextmanager
    async def platform(self) -> AsyncIterator[Platform]:
        await topics.apply(self.broker, KafkaSettings())
        async with Platform.open(self.broker, self.sealer, self.store, NAMES) as platform:
            yield platform

    async def decide(self, *decisions: decision_pb2.Decision) -> None:
        """Write decisions as the aggregator would."""
        producer = self.broker.producer()
        await producer.start()
        await producer.send(
            [
                Output(NAMES.decisions, None, decision.generation_id.encode(), decision.SerializeToString())
                for decision in decisions
            ]
        )
        await producer.stop()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def decision(
    generation_id: str, outcome: decision_pb2.Outcome.ValueType, attempt: int = 1, *, rescanned: bool = False
) -> decision_pb2.Decision:
    return decision_pb2.Decision(
        decision_id=f"{generation_id}-{attempt}-{outcome}",
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=generation_id,
        attempt=attempt,
        outcome=outcome,
        rule_id="rule",
        rescanned=rescanned,
    )


async def test_what_is_sent_is_sealed_well_formed_and_traced(bench: Bench) -> None:
    picture = b"the bytes of a picture"
    async with bench.platform() as platform:
        await platform.submit(
            Submission(PROMPT, "blurry", [Upload(picture, "image/png", generation_pb2.NEXUS_UPLOADED_INPUT)]), "g-1"
        )
    (record,) = bench.broker.records(NAMES.generations)
    assert record.key == b"g-1"
    generation = parse_generation(record.value)
    assert bench.sealer.open(generation.prompt, "g-1", "prompt") == PROMPT
    assert bench.sealer.open(generation.negative_prompt, "g-1", "negative_prompt") == "blurry"
    (item,) = generation.media
    assert item.item_id == "input/0"
    assert bench.store.get(item.content) == picture
    for secret in (PROMPT.encode(), b"blurry", picture):
        assert secret not in (record.value or b"")
    (header,) = record.headers
    assert header[0] == "traceparent"
    assert TraceContext.parse(header[1]) is not None


async def test_a_decision_reaches_who_waits_for_it(bench: Bench) -> None:
    async with bench.platform() as platform:
        followed = await platform.submit(Submission(PROMPT), "g-1")
        assert not await platform.settled(followed, 0.05)
        await bench.decide(
            decision("other", decision_pb2.OUTCOME_BLOCK),
            decision("g-1", decision_pb2.OUTCOME_HOLD, rescanned=True),
        )
        assert not await platform.settled(followed, 0.05)
        await bench.decide(decision("g-1", decision_pb2.OUTCOME_ALLOW, 2))
        assert await platform.settled(followed, 30)
    assert [one.outcome for one in followed.decisions] == [decision_pb2.OUTCOME_HOLD, decision_pb2.OUTCOME_ALLOW]


async def test_decisions_from_before_are_not_read(bench: Bench) -> None:
    await topics.apply(bench.broker, KafkaSettings())
    await bench.decide(decision("g-1", decision_pb2.OUTCOME_BLOCK))
    async with bench.platform() as platform:
        followed = await platform.submit(Submission(PROMPT), "g-1")
        assert not await platform.settled(followed, 0.1)


async def test_a_broker_that_is_away_for_a_moment_is_waited_for(bench: Bench) -> None:
    async with bench.platform() as platform:
        bench.broker.fail_next_sends(2)
        followed = await platform.submit(Submission(PROMPT), "g-1")
        await bench.decide(decision("g-1", decision_pb2.OUTCOME_ALLOW))
        assert await platform.settled(followed, 30)
    assert len(bench.broker.records(NAMES.generations)) == 1


async def test_a_record_that_is_no_decision_is_told_to_who_waits(bench: Bench) -> None:
    async with bench.platform() as platform:
        followed = await platform.submit(Submission(PROMPT), "g-1")
        producer = bench.broker.producer()
        await producer.start()
        await producer.send([Output(NAMES.decisions, None, b"g-1", b"\xff\xff")])
        with pytest.raises(Fatal, match=r"UNDECODABLE: decisions\.v1/\d+/0 is not a Decision"):
            await platform.settled(followed, 30)
        await producer.stop()


async def test_why_finds_every_decision_of_one_generation(bench: Bench) -> None:
    await topics.apply(bench.broker, KafkaSettings())
    held, allowed = (
        decision("g-1", decision_pb2.OUTCOME_HOLD, rescanned=True),
        decision("g-1", decision_pb2.OUTCOME_ALLOW, 2),
    )
    await bench.decide(*(decision(f"g-{number}", decision_pb2.OUTCOME_ALLOW) for number in range(2, 50)))
    await bench.decide(allowed, held, held)
    found = await explain.find(bench.broker, NAMES.decisions, "g-1")
    assert [one.decision for one in found] == [held, held, allowed]
    assert await explain.find(bench.broker, NAMES.decisions, "absent") == []


async def test_why_says_so_when_the_broker_is_away(bench: Bench) -> None:
    await topics.apply(bench.broker, KafkaSettings())
    bench.broker.unavailable = True
    with pytest.raises(Retryable):
        await explain.find(bench.broker, NAMES.decisions, "g-1")


def sample(name: str, outcome: decision_pb2.Outcome.ValueType, rule: str | None = None, copies: int = 1) -> Sample:
    return Sample(name, name.split(".")[0], outcome, rule, copies, lambda: Submission(PROMPT))


async def run_demo(
    bench: Bench, samples: Sequence[Sample], outcomes: dict[str, decision_pb2.Outcome.ValueType]
) -> demo.Summary:
    """The demo, with a stand-in that decides by the sample's name; a name that is absent gets no decision."""
    async with bench.platform() as platform:
        consumer = bench.broker.reader([NAMES.generations])
        await consumer.start()

        async def decide() -> None:
            while True:
                for records in (await consumer.poll(max_records=10, timeout=0.05)).values():
                    for record in records:
                        generation_id = (record.key or b"").decode()
                        outcome = outcomes.get(generation_id.split("-", 2)[2])
                        if outcome is not None:
                            await bench.decide(decision(generation_id, outcome))

        deciding = asyncio.create_task(decide())
        try:
            return await demo.run(platform, samples, dict)
        finally:
            deciding.cancel()
            await asyncio.wait([deciding])
            await consumer.stop()


async def test_the_demo_is_right_only_if_every_outcome_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SETTLE_SECONDS", 0.5)
    block, allow = decision_pb2.OUTCOME_BLOCK, decision_pb2.OUTCOME_ALLOW
    samples = [
        sample("right.0", allow, copies=3),
        sample("wrong.0", block),
        sample("ruled.0", block, rule="another-rule"),
        sample("silent.0", allow),
    ]
    summary = await run_demo(bench, samples, {"right.0": allow, "wrong.0": allow, "ruled.0": block})
    assert {result.sample.name: result.fault for result in summary.results} == {
        "right.0": None,
        "wrong.0": "ALLOW by rule ()",
        "ruled.0": "by rule, not another-rule",
        "silent.0": "no decision",
    }
    document = summary.document()
    assert document["ok"] is False
    assert document["categories"]["silent"]["got"] == {"NO DECISION": 1}
    assert len(bench.broker.records(NAMES.generations)) == 6


async def test_the_demo_is_right_when_all_is_right(bench: Bench) -> None:
    samples = [sample(f"right.{number}", decision_pb2.OUTCOME_ALLOW) for number in range(20)]
    summary = await run_demo(bench, samples, {one.name: one.outcome for one in samples})
    assert summary.document()["ok"] is True
    assert summary.categories().keys() == {"right"}


def test_two_different_decisions_of_one_attempt_are_a_fault() -> None:
    one = decision("g-1", decision_pb2.OUTCOME_ALLOW)
    other = decision("g-1", decision_pb2.OUTCOME_ALLOW)
    other.rule_id = "another"
    result = demo.Result(sample("x.0", decision_pb2.OUTCOME_ALLOW), "g-1", [one, other], 0.1)
    assert result.fault == "several different decisions of one attempt"
    held = decision("g-1", decision_pb2.OUTCOME_HOLD, rescanned=True)
    assert demo.Result(sample("x.0", decision_pb2.OUTCOME_HOLD), "g-1", [held], 0.1).fault == "not settled"
