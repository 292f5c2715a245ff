"""Every id sent, acknowledged and observed: what proves that nothing was lost and nothing decided twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from seawall.api.control.v1 import control_pb2
from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.local import verdict
from seawall.runtime.broker import Record
from seawall.runtime.topics import TopicNames

_JOINT = decision_pb2.DECISION_KIND_JOINT
_AMENDMENT = decision_pb2.DECISION_KIND_AMENDMENT


class Attempt(NamedTuple):
    """What at most one distinct joint decision may exist of."""

    generation_id: str
    attempt: int
    policy_digest: str
    #: A record that cannot be read has no attempt: then each record counts.
    offset: int


@dataclass
class Ledger:
    """The ledger of one lane."""

    names: TopicNames
    sent: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    #: Everything observed, in the order of each partition, repeats included.
    signals: list[signal_pb2.Signal] = field(default_factory=list)
    deadlines: list[control_pb2.Deadline] = field(default_factory=list)
    decisions: list[decision_pb2.Decision] = field(default_factory=list)
    dead_letters: list[dead_letter_pb2.DeadLetter] = field(default_factory=list)
    #: How often each distinct value of a joint decision was observed, and of an amendment, by its id.
    joint: defaultdict[Attempt, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))
    amendments: defaultdict[str, Counter[bytes]] = field(default_factory=lambda: defaultdict(Counter))

    def observe(self, record: Record) -> None:
        """Enter a record that was read from any of the lane's topics."""
        value = record.value or b""
        if record.topic == self.names.decisions:
            self._decision(record, value)
        elif record.topic == self.names.signals:
            joined = control_pb2.JoinRecord.FromString(value)
            if joined.HasField("signal"):
                self.signals.append(joined.signal)
            else:
                self.deadlines.append(joined.deadline)
        elif record.topic == self.names.dead_letters:
            self.dead_letters.append(dead_letter_pb2.DeadLetter.FromString(value))

    def _decision(self, record: Record, value: bytes) -> None:
        decision = decision_pb2.Decision.FromString(value)
        self.decisions.append(decision)
        if (record.key or b"").decode() != decision.generation_id:
            raise AssertionError(f"a decision of {decision.generation_id} has another key")
        if decision.kind == _JOINT:
            offset = -1 if decision.attempt else decision.generation_record.offset
            key = Attempt(decision.generation_id, decision.attempt, decision.policy_digest, offset)
            self.joint[key][value] += 1
        else:
            self.amendments[decision.decision_id][value] += 1

    # ---- what follows from it ----------------------------------------------------------------------------------------

    def decisions_of(self, generation_id: str) -> list[decision_pb2.Decision]:
        """Its decisions, repeats included."""
        return [decision for decision in self.decisions if decision.generation_id == generation_id]

    def joint_of(self, generation_id: str) -> list[decision_pb2.Decision]:
        """Its distinct joint decisions by attempt."""
        found = [one for one in self.decisions_of(generation_id) if one.kind == _JOINT]
        return verdict.distinct(found)

    def amendments_of(self, generation_id: str) -> list[decision_pb2.Decision]:
        """Its distinct amendments."""
        return verdict.distinct(one for one in self.decisions_of(generation_id) if one.kind == _AMENDMENT)

    def signals_of(self, generation_id: str, stage: str) -> list[signal_pb2.Signal]:
        """A stage's signals about it, repeats included."""
        return [one for one in self.signals if (one.generation_id, one.stage) == (generation_id, stage)]

    def outcome(self, generation_id: str) -> str:
        """The effective outcome: "ALLOW", …; empty where there is no decision."""
        effective = verdict.effective(self.decisions_of(generation_id))
        return verdict.outcome_name(effective.outcome) if effective else ""

    def outcomes(self, generation_ids: Iterable[str]) -> dict[str, str]:
        """The effective outcome of each."""
        return {generation_id: self.outcome(generation_id) for generation_id in generation_ids}

    def copies(self) -> int:
        """Joint decisions observed beyond the first of each: what replays have written again."""
        return sum(sum(values.values()) - len(values) for values in self.joint.values())

    def unsettled(self) -> list[str]:
        """Acknowledged generations without an outcome that stands: while nothing moves any more, what was lost."""
        by_id: defaultdict[str, list[decision_pb2.Decision]] = defaultdict(list)
        for decision in self.decisions:
            by_id[decision.generation_id].append(decision)
        return sorted(
            generation_id for generation_id in self.acknowledged if not verdict.is_settled(by_id[generation_id])
        )

    def conflicting(self) -> list[Attempt | str]:
        """Attempts with more than one distinct joint decision, and ids of amendments that differ; byte by byte."""
        attempts = [attempt for attempt, values in self.joint.items() if len(values) > 1]
        return [*attempts, *(decision_id for decision_id, values in self.amendments.items() if len(values) > 1)]

    def unknown(self) -> list[str]:
        """Decided generations that nobody sent."""
        return sorted({decision.generation_id for decision in self.decisions} - set(self.sent))

    def check(self) -> None:
        """Nothing lost, nothing decided twice, nothing invented. Raises AssertionError."""
        assert self.acknowledged, "nothing was sent: this proves nothing"
        assert self.unsettled() == []
        assert self.conflicting() == []
        assert self.unknown() == []

    def __str__(self) -> str:
        return (
            f"sent {sum(self.sent.values())}, acknowledged {sum(self.acknowledged.values())}, "
            f"signals {len(self.signals)}, deadlines {len(self.deadlines)}, decisions {len(self.decisions)}, "
            f"dead letters {len(self.dead_letters)}, unsettled {self.unsettled()[:8]}"
        )
