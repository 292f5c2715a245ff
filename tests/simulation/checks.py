"""What must hold at every commit, and what must hold at the end: P1 to P5 over everything that was ever written.

`Checks.committed` is asked at each commit that the broker carries out: whatever lies below the committed offset is
never read again, so everything that follows from it must be in the log by then. A room that commits too early is caught
at that moment, whether or not a later fault would have turned it into a loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError

from seawall.api.control.v1 import control_pb2
from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Poison
from seawall.core.validate import generation_id_of, parse_generation
from seawall.local import verdict
from seawall.runtime.broker import TopicPartition
from seawall.runtime.memory import InMemoryBroker, InMemoryRecord
from seawall.runtime.topics import TopicNames
from tests.support.ledger import Ledger
from tests.support.stages import AGGREGATOR, PICTURES, WORDS, TestStage, order_of

_HOLD, _ALLOW, _REVIEW, _BLOCK = (
    decision_pb2.OUTCOME_HOLD,
    decision_pb2.OUTCOME_ALLOW,
    decision_pb2.OUTCOME_REVIEW,
    decision_pb2.OUTCOME_BLOCK,
)
_CLEAN = frozenset({signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_SKIPPED})
_STAGES = {name: TestStage(name) for name in (WORDS, PICTURES)}


class Violation(AssertionError):
    """A promise was broken."""


class _At(NamedTuple):
    """A stage, and the generation record that its signal is about."""

    stage: str
    partition: int
    offset: int


class _Read(NamedTuple):
    """A generation record; without a generation where it is malformed."""

    generation: generation_pb2.Generation | None
    reported_as: str


class Checks:
    """Reads all that is written, as it is written."""

    def __init__(self, broker: InMemoryBroker, names: TopicNames) -> None:
        self._broker = broker
        self._names = names
        self.ledger = Ledger(names)
        self._read_to: defaultdict[TopicPartition, int] = defaultdict(int)
        self._committed: defaultdict[tuple[str, TopicPartition], int] = defaultdict(int)
        self._generations: dict[tuple[int, int], _Read] = {}
        #: Attempts that were written, and where first.
        self._attempts: dict[tuple[str, int], tuple[int, int]] = {}
        self._signals: set[_At] = set()
        self._lost: set[_At] = set()
        self._undecodable_signals: set[tuple[int, int]] = set()
        self._letters: set[tuple[str, str, int, int]] = set()
        self._joint: defaultdict[tuple[str, int], list[decision_pb2.Decision]] = defaultdict(list)
        self._malformed: set[tuple[int, int]] = set()
        #: The first promise that was broken, if one was.
        self.violation: Violation | None = None

    def fail(self, what: str) -> None:
        """Keep the first; what follows from it matters less."""
        self.violation = self.violation or Violation(what)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def read_new(self) -> None:
        """Take in what was written since the last time."""
        names = self._names
        for topic in (names.generations, names.signals, names.decisions, names.dead_letters):
            for number in range(self._broker.partition_count(topic)):
                at = TopicPartition(topic, number)
                for record in self._broker.read(at, self._read_to[at], 1 << 30):
                    self._read(record)
                self._read_to[at] = self._broker.end_offset(at)

    def _read(self, record: InMemoryRecord) -> None:
        names, where = self._names, (record.partition, record.offset)
        if record.topic == names.generations:
            try:
                generation = parse_generation(record.value)
            except Poison:
                known_by = generation_id_of(record.key, record.topic, record.partition, record.offset)
                self._generations[where] = _Read(None, known_by)
                return
            self._generations[where] = _Read(generation, generation.generation_id)
            self._attempts.setdefault((generation.generation_id, generation.attempt), where)
        elif record.topic == names.signals:
            self._read_signal(record)
        elif record.topic == names.dead_letters:
            letter = dead_letter_pb2.DeadLetter.FromString(record.value or b"")
            source = letter.source
            self._letters.add((letter.room, source.topic, source.partition, source.offset))
        else:
            self.ledger.observe(record)
            decision = self.ledger.decisions[-1]
            if decision.kind == decision_pb2.DECISION_KIND_JOINT:
                self._joint[decision.generation_id, decision.attempt].append(decision)
                if not decision.attempt:
                    self._malformed.add((decision.generation_record.partition, decision.generation_record.offset))

    def _read_signal(self, record: InMemoryRecord) -> None:
        try:
            joined = control_pb2.JoinRecord.FromString(record.value or b"")
        except DecodeError:
            joined = control_pb2.JoinRecord()
        kind = joined.WhichOneof("record")
        body = joined.signal if kind == "signal" else joined.deadline
        if kind is None or body.generation_record.partition != record.partition:
            self._undecodable_signals.add((record.partition, record.offset))
            return
        self.ledger.observe(record)
        if kind == "signal":
            self._signals.add(_at(joined.signal))

    def lost_by_the_broker(self, signal: signal_pb2.Signal) -> None:
        """The broker acknowledged this signal and does not have it (yet): nobody can be blamed for its absence."""
        self._lost.add(_at(signal))

    # ---- at each commit ----------------------------------------------------------------------------------------------

    def committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """A group has committed."""
        for partition, offset in offsets.items():
            before = self._committed[group, partition]
            if offset < before:
                self.fail(f"{group} went back from {before} to {offset} on {partition}")
            self._committed[group, partition] = max(before, offset)
            for number in range(before, offset):
                self._check_done(group, partition, number)

    def _check_done(self, group: str, partition: TopicPartition, offset: int) -> None:
        where = (partition.partition, offset)
        if partition.topic == self._names.signals:
            if where in self._undecodable_signals:
                self._need_letter(group, partition, offset)
            return
        generation, _ = self._generations[where]
        if generation is None:
            self._need_letter(group, partition, offset)
        if group == AGGREGATOR:
            self._check_decided(generation, where)
        elif generation is None or _measures(group, generation):
            at = _At(group, *where)
            if at not in self._signals and at not in self._lost:
                self.fail(f"{group} committed past {partition} {offset} without a signal about it (P1)")

    def _check_decided(self, generation: generation_pb2.Generation | None, where: tuple[int, int]) -> None:
        if generation is None:
            if where not in self._malformed:
                self.fail(f"the aggregator committed past the malformed record {where} without a decision (P1)")
            return
        key = (generation.generation_id, generation.attempt)
        decided = self._joint[key]
        if not decided:
            self.fail(f"the aggregator committed past {key} at {where} without a decision (P1)")
        elif all(one.outcome == _HOLD for one in decided) and (key[0], key[1] + 1) not in self._attempts:
            self.fail(f"the aggregator committed past {key}, which is held, without its next attempt (P3)")

    def _need_letter(self, group: str, partition: TopicPartition, offset: int) -> None:
        if (group, partition.topic, partition.partition, offset) not in self._letters:
            self.fail(f"{group} committed past {partition} {offset}, set aside without a dead letter (P1)")

    # ---- at the end --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Everything over the whole log. Raises Violation."""
        if self.violation is not None:
            raise self.violation
        try:
            self.ledger.check()
        except AssertionError as error:
            raise Violation(f"the ledger (P1, P2): {error}") from error
        for decision in self.ledger.decisions:
            self._check_outcome(decision)
        self._check_escalation()
        self._check_blocks()
        if self.violation is not None:
            raise self.violation

    def _check_outcome(self, decision: decision_pb2.Decision) -> None:
        about = f"{decision.generation_id} attempt {decision.attempt}"
        if decision.kind == decision_pb2.DECISION_KIND_AMENDMENT:
            if decision.outcome < _REVIEW:
                self.fail(f"a late signal lowered {about} (P4)")
            return
        if decision.outcome != _ALLOW:
            return
        record = decision.generation_record
        generation = self._generations[record.partition, record.offset].generation
        if generation is None:
            self.fail(f"{about} is allowed and cannot be read (P3)")
            return
        answered = {
            (joined.signal.stage, item.item_id): item.status
            for joined in decision.signals
            for item in joined.signal.items
        }
        for name, stage in _STAGES.items():
            for item in stage.items(generation):
                if answered.get((name, item.item_id)) not in _CLEAN:
                    self.fail(f"{about} is allowed although {name} did not measure {item.item_id} (P3)")

    def _check_escalation(self) -> None:
        """A generation has one outcome for each policy, whatever its attempts; what comes after can only be higher."""
        final: dict[tuple[str, str], bytes] = {}
        for decision in self.ledger.decisions:
            if decision.kind != decision_pb2.DECISION_KIND_JOINT or decision.outcome == _HOLD:
                continue
            value = decision.SerializeToString(deterministic=True)
            if final.setdefault((decision.generation_id, decision.policy_digest), value) != value:
                self.fail(f"{decision.generation_id} was decided again after it was decided (P4)")

    def _check_blocks(self) -> None:
        """What a stage measured above its threshold, early or late, is blocked. Repeated records do not count."""
        blocking = {
            signal.generation_id
            for signal in self.ledger.signals
            if order_of(signal.generation_id) == "block"
            for item in signal.items
            if item.status == signal_pb2.ITEM_STATUS_OK and any(label.score > 0.9 for label in item.labels)
        }
        for generation_id in sorted(blocking):
            effective = verdict.effective(self.ledger.decisions_of(generation_id))
            if effective is None or effective.outcome < _BLOCK:
                self.fail(f"{generation_id} was measured above its threshold and is not blocked (P4)")


def _at(signal: signal_pb2.Signal) -> _At:
    record = signal.generation_record
    return _At(signal.stage, record.partition, record.offset)


def _measures(stage: str, generation: generation_pb2.Generation) -> bool:
    return bool(_STAGES[stage].items(generation)) or stage in generation.required_stages
