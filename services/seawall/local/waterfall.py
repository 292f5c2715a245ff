"""Where a decision's time went, stage by stage, from the timings that the decision itself carries.

    generation logged ─queue─ relay polled ─batch─ RPC sent ─rpc─ ▌inference▐ ─rpc─ signal produced ─join─ decided

Logged times are the broker's, in milliseconds; the others are the rooms' own clocks. Spans that clocks make negative
count as nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from seawall.api.decision.v1 import decision_pb2

#: In the order of time; `rpc` happens before and after the inference.
HOPS = ("queue", "batch", "rpc", "inference", "join")


class Span(NamedTuple):
    """A piece of a stage's time, nanoseconds since the generation was logged."""

    hop: str
    start: int
    end: int

    @property
    def nanos(self) -> int:
        return self.end - self.start


class StageTime(NamedTuple):
    """One stage's share of a decision, in order of time."""

    stage: str
    spans: tuple[Span, ...]

    def nanos(self, hop: str) -> int:
        """Time spent in a hop of HOPS."""
        return sum(span.nanos for span in self.spans if span.hop == hop)


def total_nanos(decision: decision_pb2.Decision) -> int:
    """From the generation's record to the record that completed the join; of a late signal, which knows nothing of the
    generation's record, from when its stage began."""
    origin = _origin(decision)
    return max(0, decision.decided_unix_nano - origin) if origin else 0


def waterfall(decision: decision_pb2.Decision) -> list[StageTime]:
    """Every signal's spans, in the decision's order of stages."""
    origin = _origin(decision)
    stages = []
    for joined in decision.signals:
        times = joined.signal.timings
        marks = (
            ("queue", times.received_unix_nano),
            ("batch", times.sent_unix_nano or times.produced_unix_nano),
            ("rpc", times.inference_start_unix_nano),
            ("inference", times.inference_end_unix_nano),
            ("rpc", times.produced_unix_nano),
            ("join", max(decision.decided_unix_nano, joined.log_unix_nano)),
        )
        spans, at = [], 0
        for hop, instant in marks:
            # Zero: the stage made no RPC (nothing to measure, or no server), so these hops never were.
            end = max(at, instant - origin) if instant else at
            if end > at:
                spans.append(Span(hop, at, end))
            at = end
        stages.append(StageTime(joined.signal.stage, tuple(spans)))
    return stages


def _origin(decision: decision_pb2.Decision) -> int:
    return decision.generation_log_unix_nano or min(_instants(decision), default=0)


def _instants(decision: decision_pb2.Decision) -> Iterable[int]:
    return (
        joined.signal.timings.received_unix_nano
        for joined in decision.signals
        if joined.signal.timings.received_unix_nano
    )
