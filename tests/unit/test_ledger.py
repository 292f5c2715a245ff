"""The ledger of the fault suite can fail: each thing that was promised not to happen is found."""

from __future__ import annotations

from typing import Any

import pytest

from seawall.api.decision.v1 import decision_pb2
from seawall.runtime.memory import InMemoryRecord
from seawall.runtime.topics import TopicNames
from tests.support.ledger import Ledger


def ledger_of(*decisions: decision_pb2.Decision) -> Ledger:
    """A ledger of one acknowledged generation, "g", and these decisions."""
    names = TopicNames()
    ledger = Ledger(names)
    ledger.sent["g"] = ledger.acknowledged["g"] = 1
    for offset, decision in enumerate(decisions):
        key, value = decision.generation_id.encode(), decision.SerializeToString(deterministic=True)
        ledger.observe(InMemoryRecord(names.decisions, 0, offset, 0, key, value, ()))
    return ledger


def decided(**fields: Any) -> decision_pb2.Decision:
    """An ALLOW of "g", attempt 1, with these fields changed."""
    settled = {"outcome": decision_pb2.OUTCOME_ALLOW, "kind": decision_pb2.DECISION_KIND_JOINT}
    return decision_pb2.Decision(**{"generation_id": "g", "attempt": 1, "policy_digest": "p", **settled, **fields})


HELD = decided(outcome=decision_pb2.OUTCOME_HOLD, rescanned=True)


@pytest.mark.parametrize(
    "decisions",
    [
        [decided()],
        [decided(), decided()],
        [HELD, decided(attempt=2)],
        [decided(), decided(policy_digest="q", outcome=decision_pb2.OUTCOME_BLOCK)],
    ],
    ids=["one", "repeated", "scanned again", "another policy"],
)
def test_the_ledger_takes_what_is_promised(decisions: list[decision_pb2.Decision]) -> None:
    ledger_of(*decisions).check()


@pytest.mark.parametrize(
    "decisions",
    [
        [],
        [HELD],
        [decided(), decided(decided_unix_nano=1)],
        [HELD, decided()],
        [decided(), decided(generation_id="other")],
        [decided(), *(decided(kind=decision_pb2.DECISION_KIND_AMENDMENT, decided_unix_nano=at) for at in (1, 2))],
    ],
    ids=["lost", "held for ever", "another byte", "two outcomes", "never sent", "an amendment that changes"],
)
def test_the_ledger_finds_what_is_not(decisions: list[decision_pb2.Decision]) -> None:
    with pytest.raises(AssertionError):
        ledger_of(*decisions).check()


def test_a_ledger_of_nothing_proves_nothing() -> None:
    with pytest.raises(AssertionError):
        Ledger(TopicNames()).check()
