"""The aggregator's join and policy over records of the past, without its outputs.

Two bundles see the same records. Where both wait for the same stages, one join serves both; otherwise each has its own,
and what they say of an attempt is put together when the second has spoken.
"""

from __future__ import annotations

from collections.abc import Iterable

from seawall.aggregator.replay.records import GENERATION, ReplayRecord
from seawall.aggregator.replay.tally import Said, Tally
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.decide import known_of
from seawall.core.errors import Poison
from seawall.core.join import Completed, Event, Join, LateSignal, Position
from seawall.core.policy import Policy
from seawall.core.validate import parse_generation, parse_join_record

_MILLIS = 1_000_000
#: Decided attempts that a join remembers; repeats come soon or never.
_REMEMBER = 20_000


class Replay:
    """Judges records by one bundle, or by two side by side."""

    def __init__(self, base: Policy, candidate: Policy | None = None, *, samples: int = 5) -> None:
        self._policies = [base] if candidate is None else [base, candidate]
        together = candidate is None or base.same_stages(candidate)
        #: Each join, with the numbers of the bundles that it serves.
        self._sides = [tuple(range(len(self._policies)))] if together else [(0,), (1,)]
        self._joins: list[dict[int, Join]] = [{} for _ in self._sides]
        #: By partition: where its generations begin, and the signals that were read before that was known.
        self._begins: dict[int, int] = {}
        self._held: dict[int, list[tuple[bytes, Position]]] = {}
        self._waiting: dict[tuple[str, int], tuple[int, Said]] = {}
        self.tally = Tally([f"{policy.name} {policy.version}" for policy in self._policies], samples)
        self.generations = 0
        self.signals = 0
        self.malformed = 0

    def feed(self, records: Iterable[ReplayRecord]) -> None:
        """Take records, those of a partition in log order."""
        for record in records:
            kind, partition, offset, timestamp, value = record
            if kind == GENERATION:
                self.generations += 1
                if partition not in self._begins:
                    self._begin(partition, offset)
                self._generation(value, Position("", partition, offset, timestamp * _MILLIS))
            else:
                self.signals += 1
                position = Position("", partition, offset, timestamp * _MILLIS)
                if partition in self._begins:
                    self._signal(value, position)
                else:
                    self._held.setdefault(partition, []).append((value, position))
        for joins in self._joins:
            for join in joins.values():
                join.signal_watermark()  # lets the join forget what is settled

    def finish(self) -> Tally:
        """What it came to; generations that were still open are counted as such."""
        self.tally.open = sum(join.open_count for joins in self._joins for join in joins.values()) // len(self._sides)
        return self.tally

    def _begin(self, partition: int, offset: int) -> None:
        """A stretch begins somewhere: what signals say of generations before that is not counted."""
        self._begins[partition] = offset
        for joins, numbers in zip(self._joins, self._sides, strict=True):
            policy = self._policies[numbers[0]]
            joins[partition] = Join(policy.required, next_generation=offset, next_signal=0, remember=_REMEMBER)
        for value, position in self._held.pop(partition, []):
            self._signal(value, position)

    def _generation(self, value: bytes, position: Position) -> None:
        try:
            generation = parse_generation(value)
        except Poison:
            self.malformed += 1
            for side, joins in enumerate(self._joins):
                join = joins[position.partition]
                self._follow(side, join.on_malformed(position) or ())
                join.settle(position.offset)
            return
        for side, joins in enumerate(self._joins):
            self._follow(side, joins[position.partition].on_generation(generation, position))

    def _signal(self, value: bytes, position: Position) -> None:
        try:
            body = parse_join_record(value, position.partition)
        except Poison:
            self.malformed += 1
            return
        for side, joins in enumerate(self._joins):
            join = joins[position.partition]
            if isinstance(body, signal_pb2.Signal):
                events = join.on_signal(body, position)
            else:
                events = join.on_deadline(body, position)
            if events:
                self._follow(side, events)

    def _follow(self, side: int, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Completed):
                joined = event.joined
                self._joins[side][joined.position.partition].settle(joined.position.offset)
                signals = [joined.signals[stage].signal for stage in sorted(joined.signals)]
                missing = joined.missing
                said = []
                for number in self._sides[side]:
                    verdict = self._policies[number].judge(joined.generation, signals, missing)
                    said.append(Said(verdict.outcome, verdict.rule_id))
                self._tell(side, joined.generation, said)
            elif isinstance(event, LateSignal):
                self._late(side, event)

    def _tell(self, side: int, generation: generation_pb2.Generation, said: list[Said]) -> None:
        if len(said) == len(self._policies):
            self.tally.add(generation.generation_id, said)
            return
        key = (generation.generation_id, generation.attempt)
        other = self._waiting.pop(key, None)
        if other is None or other[0] == side:
            self._waiting[key] = (side, said[0])
        else:
            self.tally.add(generation.generation_id, [said[0], other[1]] if side == 0 else [other[1], said[0]])

    def _late(self, side: int, event: LateSignal) -> None:
        signal, position, _ = event.read
        self._joins[side][position.partition].settle_signal(position.offset)
        if signal.generation_record.offset < self._begins[position.partition]:
            return
        stub = known_of(signal)
        for number in self._sides[side]:
            verdict = self._policies[number].judge_alone(stub, signal)
            if verdict is not None:
                self.tally.late[number][Said(verdict.outcome, verdict.rule_id)] += 1
