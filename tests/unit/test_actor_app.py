"""actor_history's first agent without a broker: what it meets is passed on, left out, or set aside; never skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seawall.actor_history.app import make_app
from seawall.actor_history.outputs import Outputs
from seawall.actor_history.settings import ActorHistorySettings
from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.core.clock import ManualClock
from seawall.core.policy import ActorPolicy, Policy
from seawall.relay.dead_letters import DeadLetters
from seawall.runtime import topics
from seawall.runtime.memory import InMemoryBroker
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import KafkaSettings
from seawall.runtime.topics import TopicNames, TopicSettings

NAMES = TopicNames()


class Rules:
    """The actor rules in force; the ``fails_at``-th time they are asked for, a bug of ours."""

    def __init__(self, fails_at: int) -> None:
        self._policy = Policy(ActorHistorySettings.model_fields["policy"].default).actors
        self._fails_at = fails_at
        self._asked = 0

    @property
    def current(self) -> ActorPolicy:
        self._asked += 1
        if self._asked == self._fails_at:
            raise ZeroDivisionError
        assert self._policy is not None
        return self._policy


def near_miss(number: int) -> bytes:
    return decision_pb2.Decision(
        decision_id=f"d-{number}",
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id=f"g-{number}",
        tenant_id="t",
        actor_id="a",
        outcome=decision_pb2.OUTCOME_REVIEW,
        decided_unix_nano=1,
    ).SerializeToString()


class Stream:
    """A batch of values of decisions.v1."""

    def __init__(self, *values: bytes) -> None:
        self._values = values

    async def take_events(self, most: int, within: float) -> AsyncIterator[list[Any]]:
        yield [
            SimpleNamespace(
                value=value,
                message=SimpleNamespace(
                    topic=NAMES.decisions, partition=0, offset=offset, key=b"g", value=value, headers=()
                ),
            )
            for offset, value in enumerate(self._values)
        ]


@pytest.mark.parametrize(
    ("broken", "fails_at", "reason"), [(b"\xff\xff", 0, "UNDECODABLE"), (near_miss(1), 2, "INTERNAL")]
)
async def test_what_an_agent_cannot_do_is_set_aside_and_its_neighbours_are_not(
    tmp_path: Path, broken: bytes, fails_at: int, reason: str
) -> None:
    broker = InMemoryBroker()
    await topics.apply(broker, KafkaSettings(), TopicSettings(partitions=1))
    told: list[str] = []
    observer: Any = SimpleNamespace(event=lambda name, **fields: told.append(name), ready=lambda ready: None)
    letters = DeadLetters(
        room="actor_history",
        instance="i",
        topic=NAMES.dead_letters,
        sealer=Sealer.load_or_create(tmp_path / "sealing.json"),
        clock=ManualClock(),
    )
    rules: Any = Rules(fails_at)
    outputs = Outputs(broker, observer)
    app = make_app(ActorHistorySettings(state=tmp_path), NAMES, 1, letters, rules, outputs, observer)
    sort: Any = next(agent for name, agent in app.agents.items() if name.endswith("sort"))
    async for _ in sort.fun(Stream(near_miss(0), broken, near_miss(2))):
        pass
    passed_on = [pb.ActorEvent.FromString(one.value or b"") for one in broker.records(NAMES.actor_events)]
    assert [one.decision_id for one in passed_on] == ["d-0", "d-2"]
    [record] = broker.records(NAMES.dead_letters)
    letter = dead_letter_pb2.DeadLetter.FromString(record.value or b"")
    assert (letter.reason, letter.source.offset) == (reason, 1)
    assert told == (["diverted"] if reason == "UNDECODABLE" else ["crashed", "diverted"])
    await outputs.on_stop()
