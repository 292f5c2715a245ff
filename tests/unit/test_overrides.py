"""A person's word over what was decided: on record, for what was seen, and withdrawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.cli import why
from seawall.core.clock import ManualClock
from seawall.core.errors import Fatal
from seawall.local import verdict
from seawall.local.explain import Found, explain
from seawall.oncall import overrides
from seawall.runtime import topics
from seawall.runtime.broker import Output
from seawall.runtime.memory import InMemoryBroker
from seawall.runtime.settings import KafkaSettings
from seawall.runtime.topics import TopicNames

NAMES = TopicNames()
HOLD, ALLOW, REVIEW = decision_pb2.OUTCOME_HOLD, decision_pb2.OUTCOME_ALLOW, decision_pb2.OUTCOME_REVIEW
BLOCK, REPORT = decision_pb2.OUTCOME_BLOCK, decision_pb2.OUTCOME_BLOCK_AND_REPORT
WITHDRAWN = decision_pb2.OUTCOME_UNSPECIFIED


class Desk:
    """A broker with decisions, and a person who has a word on them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = InMemoryBroker(self.clock)
        self.decisions: list[decision_pb2.Decision] = []

    async def decide(self, outcome: decision_pb2.Outcome.ValueType, generation_id: str = "g") -> None:
        made = decision_pb2.Decision(
            decision_id=f"d-{len(self.decisions)}",
            kind=decision_pb2.DECISION_KIND_JOINT,
            generation_id=generation_id,
            tenant_id="acme",
            actor_id="somebody",
            attempt=1,
            decided_unix_nano=len(self.decisions) + 1,
            outcome=outcome,
        )
        self.decisions.append(made)
        await self._write(Output(NAMES.decisions, 0, generation_id.encode(), made.SerializeToString()))

    async def _write(self, output: Output) -> None:
        producer = self.broker.producer()
        await producer.start()
        await producer.send([output])
        await producer.stop()

    async def plan(self, outcome: decision_pb2.Outcome.ValueType, **changes: Any) -> Override:
        self.clock.advance(1_000_000_000)
        asked = {"reason_code": "FALSE_POSITIVE", "by": "ada", "clock": self.clock, **changes}
        return await overrides.plan(self.broker, NAMES, asked.pop("generation_id", "g"), outcome, **asked)

    async def say(self, outcome: decision_pb2.Outcome.ValueType, **changes: Any) -> None:
        await overrides.write(self.broker, NAMES, await self.plan(outcome, **changes))

    async def said(self) -> Override | None:
        return await overrides.of_generation(self.broker, NAMES.overrides, "g")

    async def outcome(self) -> decision_pb2.Outcome.ValueType | None:
        return verdict.outcome(self.decisions, await self.said())


@pytest.fixture
async def desk() -> Desk:
    made = Desk()
    await topics.apply(made.broker, KafkaSettings())
    return made


async def test_a_person_lowers_an_outcome_and_that_is_on_record(desk: Desk) -> None:
    await desk.decide(BLOCK)
    await desk.plan(ALLOW)
    assert await desk.outcome() == BLOCK, "what is only planned counts for nothing"
    await desk.say(ALLOW)
    assert await desk.outcome() == ALLOW
    said = await desk.said()
    assert said is not None
    assert (said.by, said.reason_code, said.tenant_id, list(said.decision_ids)) == (
        "ada",
        "FALSE_POSITIVE",
        "acme",
        ["d-0"],
    )
    [record] = [one for number in range(2) for one in desk.broker.records(NAMES.overrides, number)]
    assert record.key == b"g", "by which the topic is compacted"


async def test_the_record_tells_readers_whose_it_is_and_what_counted_before(desk: Desk) -> None:
    await desk.decide(HOLD)
    await desk.decide(BLOCK)
    said = await desk.plan(ALLOW)
    assert (said.actor_id, said.decision_id, said.decided_unix_nano) == ("somebody", "d-1", 2)
    assert said.outcome_before == BLOCK
    await desk.say(REVIEW)
    assert (await desk.plan(ALLOW)).outcome_before == REVIEW, "a person's word that stands is what counts"


async def test_what_is_decided_later_counts_beside_it(desk: Desk) -> None:
    """P4: a late signal escalates whatever a person said before it came."""
    await desk.decide(BLOCK)
    await desk.say(ALLOW)
    await desk.decide(REVIEW)
    assert await desk.outcome() == REVIEW
    await desk.decide(REPORT)
    assert await desk.outcome() == REPORT
    await desk.say(REVIEW)
    assert await desk.outcome() == REVIEW, "now it is seen"


async def test_a_person_raises_an_outcome_too_and_a_held_one(desk: Desk) -> None:
    await desk.decide(HOLD)
    assert verdict.outcome(desk.decisions, None) == HOLD
    await desk.say(REPORT)
    assert await desk.outcome() == REPORT
    assert verdict.outcome([], None) is None


async def test_the_last_word_stands_and_may_be_withdrawn(desk: Desk) -> None:
    await desk.decide(BLOCK)
    await desk.say(ALLOW)
    await desk.say(REVIEW, by="grace")
    assert await desk.outcome() == REVIEW
    await desk.say(WITHDRAWN, reason_code="MISTAKEN")
    assert await desk.outcome() == BLOCK
    with pytest.raises(Fatal, match="NOTHING_TO_WITHDRAW"):
        await desk.plan(WITHDRAWN)


@pytest.mark.parametrize(
    ("outcome", "changes", "reason"),
    [
        (HOLD, {}, "BAD_OUTCOME"),
        (ALLOW, {"reason_code": "it was only art"}, "BAD_REASON"),
        (ALLOW, {"reason_code": ""}, "BAD_REASON"),
        (ALLOW, {"by": "two words"}, "BAD_ID"),
        (ALLOW, {"by": ""}, "BAD_ID"),
        (ALLOW, {"generation_id": "another"}, "NOT_FOUND"),
        (WITHDRAWN, {}, "NOTHING_TO_WITHDRAW"),
    ],
)
async def test_what_is_refused(
    desk: Desk, outcome: decision_pb2.Outcome.ValueType, changes: dict[str, str], reason: str
) -> None:
    await desk.decide(BLOCK)
    with pytest.raises(Fatal) as caught:
        await desk.plan(outcome, **changes)
    assert caught.value.reason == reason


async def test_why_tells_what_a_person_said_above_what_was_decided(desk: Desk) -> None:
    await desk.decide(BLOCK)
    await desk.say(ALLOW)
    document = explain("g", found(desk.decisions), await desk.said())
    assert (document["outcome"], document["decided"], document["override"]["by"]) == ("ALLOW", "BLOCK", "ada")
    drawn = await draw(desk)
    assert drawn.index("ALLOW") < drawn.index("a person's word, by ada") < drawn.index("BLOCK")
    await desk.decide(REPORT)
    assert "BLOCK_AND_REPORT   decided since ALLOW was said by ada" in await draw(desk)
    await desk.say(WITHDRAWN, reason_code="MISTAKEN")
    assert "an override was withdrawn by ada" in await draw(desk)
    assert explain("g", found(desk.decisions))["override"] is None


def found(decisions: Sequence[decision_pb2.Decision]) -> list[Found]:
    return [Found(one, NAMES.decisions, 0, number) for number, one in enumerate(decisions)]


async def draw(desk: Desk) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        why.draw(console, "g", found(desk.decisions), await desk.said())
    return captured.get()
