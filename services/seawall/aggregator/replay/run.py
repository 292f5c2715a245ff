"""The aggregator's join and policy over records of the past, without its outputs.

Two bundles see the same records. Where both wait for the same stages, one join serves both; otherwise each has its own,
and what they say of an attempt is put together when the second has spoken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seawall.aggregator.replay.records import GENERATION, ReplayRecord
from seawall.aggregator.replay.tally import Said, Tally
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.decide import known_of
from seawall.core.errors import Poison
from seawall.core.join import Completed, Event, Join, LateSignal, Position
from seawall.core.policy import Policy
from seawall.core.validate import parse_generation, parse_join_record

#: Decided attempts that a join remembers; repeats come soon or never.
_REMEMBER = 20_000


class Replay:
    """Judges records by one bundle, or by two side by side."""

    def __init__(self, base: Policy, candidate: Policy | None = None, *, samples: int = 5) -> None:
        self._policies = [base] if candidate is None else [base, candidate]
        together = candidate is None or base.same_stages(candidate)
        #: Each side has its own joins; the numbers of the bundles that they serve.
        self._sides = [tuple(range(len(self._policies)))] if together else [(0,), (1,)]
        #: By partition, once it is known where its generations begin: a join for each side.
        self._joins: dict[int, list[Join]] = {}
        self._begins: dict[int, int] = {}
        #: By partition: the signals that were read before that.
        self._held: dict[int, list[tuple[bytes, Position]]] = {}
        self._waiting: dict[tuple[str, int], tuple[int, Said]] = {}
        self.tally = Tally([f"{policy.name} {policy.version}" for policy in self._policies], samples)
        self.generations = 0
        self.signals = 0
        self.malformed = 0

    def feed(self, records: Iterable[ReplayRecord]) -> None:
        """Take records, those of a partition in log order."""
        known = self._joins
        for kind, position, value in records:
            joins = known.get(position.partition)
            if kind == GENERATION:
                self.generations += 1
                self._generation(joins or self._begin(position), value, position)
            else:
                self.signals += 1
                if joins is None:
                    self._held.setdefault(position.partition, []).append((value, position))
                else:
                    self._signal(joins, value, position)
        for joins in self._joins.values():
            for join in joins:
                join.signal_watermark()  # lets the join forget what is settled

    def finish(self) -> Tally:
        """What it came to; generations that were still open are counted as such."""
        self.tally.open = sum(join.open_count for joins in self._joins.values() for join in joins) // len(self._sides)
        return self.tally

    def _begin(self, position: Position) -> list[Join]:
        """A stretch begins somewhere: what signals say of generations before that is not counted."""
        partition, offset = position.partition, position.offset
        self._begins[partition] = offset
        required = [self._policies[numbers[0]].required for numbers in self._sides]
        joins = [Join(one, next_generation=offset, next_signal=0, remember=_REMEMBER) for one in required]
        self._joins[partition] = joins
        for value, at in self._held.pop(partition, []):
            self._signal(joins, value, at)
        return joins

    def _generation(self, joins: Sequence[Join], value: bytes, position: Position) -> None:
        try:
            generation = parse_generation(value)
        except Poison:
            self.malformed += 1
            for side, join in enumerate(joins):
                self._follow(side, join, join.on_malformed(position) or ())
                join.settle(position.offset)
            return
        for side, join in enumerate(joins):
            if events := join.on_generation(generation, position):
                self._follow(side, join, events)

    def _signal(self, joins: Sequence[Join], value: bytes, position: Position) -> None:
        try:
            body = parse_join_record(value, position.partition)
        except Poison:
            self.malformed += 1
            return
        for side, join in enumerate(joins):
            if isinstance(body, signal_pb2.Signal):
                events = join.on_signal(body, position)
            else:
                events = join.on_deadline(body, position)
            if events:
                self._follow(side, join, events)

    def _follow(self, side: int, join: Join, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Completed):
                joined = event.joined
                join.settle(joined.position.offset)
                signals = [joined.signals[stage].signal for stage in sorted(joined.signals)]
                missing = joined.missing
                said = []
                for number in self._sides[side]:
                    verdict = self._policies[number].judge(joined.generation, signals, missing)
                    said.append(Said(verdict.outcome, verdict.rule_id))
                self._tell(side, joined.generation, said)
            elif isinstance(event, LateSignal):
                self._late(side, join, event)

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

    def _late(self, side: int, join: Join, event: LateSignal) -> None:
        signal, position, _ = event.read
        join.settle_signal(position.offset)
        if signal.generation_record.offset < self._begins[position.partition]:
            return
        stub = known_of(signal)
        for number in self._sides[side]:
            verdict = self._policies[number].judge_alone(stub, signal)
            if verdict is not None:
                self.tally.late[number][Said(verdict.outcome, verdict.rule_id)] += 1
