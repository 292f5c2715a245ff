"""The demo: the sample stream through a running mesh, every decision compared with what it must be."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psutil

from seawall.api.decision.v1 import decision_pb2
from seawall.local import verdict
from seawall.local.platform import Followed, Platform
from seawall.local.samples import Sample
from seawall.local.waterfall import HOPS, waterfall

#: Samples being made (encoded, stored, sealed) at once.
_MAKERS = 4
#: How long after the last record was acknowledged a decision may come: several re-scans and their pauses.
SETTLE_SECONDS = 180.0
_PROGRESS_SECONDS = 0.2


class Result(NamedTuple):
    """What became of one sample."""

    sample: Sample
    generation_id: str
    decisions: Sequence[decision_pb2.Decision]
    #: From the broker's acknowledgement of the record to the first decision read, seconds; None without a decision.
    seconds: float | None

    @property
    def decision(self) -> decision_pb2.Decision | None:
        """The decision that counts."""
        return verdict.effective(self.decisions)

    @property
    def fault(self) -> str | None:
        """What is wrong, None if the sample got what it must get."""
        decision = self.decision
        if decision is None:
            return "no decision"
        if not verdict.is_settled(self.decisions):
            return "not settled"
        if verdict.conflicts(self.decisions):
            return "several different decisions of one attempt"
        if decision.outcome != self.sample.outcome:
            return f"{verdict.outcome_name(decision.outcome)} by {decision.rule_id} ({decision.reason_code})"
        if self.sample.rule is not None and decision.rule_id != self.sample.rule:
            return f"by {decision.rule_id}, not {self.sample.rule}"
        return None


@dataclass
class Progress:
    """How far the run is."""

    total: int
    sent: int = 0
    #: Decided, or held for good.
    settled: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The whole run."""

    results: Sequence[Result]
    seconds: float
    #: Resident bytes by room, at the end.
    memory: Mapping[str, int]

    @property
    def faults(self) -> list[Result]:
        """Results that differ from what they must be."""
        return [result for result in self.results if result.fault]

    def categories(self) -> dict[str, list[Result]]:
        """Results by category, in order of name."""
        grouped: dict[str, list[Result]] = {}
        for result in sorted(self.results, key=lambda one: (one.sample.category, one.sample.name)):
            grouped.setdefault(result.sample.category, []).append(result)
        return grouped

    def hop_medians(self) -> dict[str, dict[str, float]]:
        """Stage → hop → median milliseconds, over every signal of every decision."""
        times: dict[str, dict[str, list[float]]] = {}
        for result in self.results:
            for decision in result.decisions:
                for stage in waterfall(decision):
                    hops = times.setdefault(stage.stage, {hop: [] for hop in HOPS})
                    for hop in HOPS:
                        hops[hop].append(stage.nanos(hop) / 1e6)
        return {
            stage: {hop: statistics.median(values) for hop, values in hops.items()}
            for stage, hops in sorted(times.items())
        }

    def document(self) -> dict[str, Any]:
        """What `seawall demo --json` prints."""
        return {
            "ok": not self.faults,
            "samples": len(self.results),
            "seconds": round(self.seconds, 2),
            "categories": {
                name: {
                    "expected": verdict.outcome_name(results[0].sample.outcome),
                    "samples": len(results),
                    "as_expected": sum(not result.fault for result in results),
                    "got": tally(results),
                }
                for name, results in self.categories().items()
            },
            "faults": [
                {"sample": result.sample.name, "generation_id": result.generation_id, "fault": result.fault}
                for result in self.faults
            ],
            "hop_median_ms": {
                stage: {hop: round(value, 2) for hop, value in hops.items()}
                for stage, hops in self.hop_medians().items()
            },
            "resident_mib": {room: round(size / 2**20, 1) for room, size in self.memory.items()},
        }


async def run(
    platform: Platform,
    samples: Sequence[Sample],
    pids: Callable[[], Mapping[str, int]],
    show: Callable[[Progress], None] = lambda progress: None,
) -> Summary:
    """Send the samples and await their decisions.

    Args:
        pids: the rooms' processes, whose memory is read at the end.
        show: called a few times a second on the event loop; must not block.
    """
    # Fresh ids every run: what an earlier run left in the topics means nothing to this one.
    prefix = f"demo-{secrets.token_hex(4)}"
    started = time.monotonic()
    sending = _Sending(platform, prefix, samples)
    progress = Progress(total=len(samples))
    showing = asyncio.create_task(_show(sending, progress, show))
    try:
        async with asyncio.TaskGroup() as makers:
            for _ in range(_MAKERS):
                makers.create_task(sending.make())
        await sending.settle(SETTLE_SECONDS)
    finally:
        showing.cancel()
        await asyncio.wait([showing])
    results = sending.results()
    sending.count(progress)
    show(progress)
    return Summary(results, time.monotonic() - started, resident(pids()))


class _Sending:
    """Samples on their way through."""

    def __init__(self, platform: Platform, prefix: str, samples: Sequence[Sample]) -> None:
        self._platform = platform
        self._prefix = prefix
        self._samples = samples
        self._waiting = iter(samples)
        self._followed: dict[str, Followed] = {}
        self._acknowledged: dict[str, int] = {}

    def _id(self, sample: Sample) -> str:
        return f"{self._prefix}-{sample.name}"

    async def make(self) -> None:
        """Make and send samples until none is left."""
        for sample in self._waiting:
            generation_id = self._id(sample)
            record = await sample.record(self._platform, generation_id)
            self._followed[generation_id] = self._platform.follow(generation_id)
            await self._platform.produce([record] * sample.copies)
            self._acknowledged[generation_id] = time.time_ns()

    async def settle(self, timeout: float) -> None:
        """Wait until every sample is settled, at most ``timeout`` seconds in all."""
        give_up = time.monotonic() + timeout
        for followed in self._followed.values():
            if not await self._platform.settled(followed, max(0.0, give_up - time.monotonic())):
                return

    def count(self, progress: Progress) -> None:
        """Bring ``progress`` up to date."""
        progress.sent = len(self._acknowledged)
        settled = [
            decision
            for followed in self._followed.values()
            if verdict.is_settled(followed.decisions) and (decision := verdict.effective(followed.decisions))
        ]
        progress.settled = len(settled)
        progress.outcomes = _outcomes(settled)

    def results(self) -> list[Result]:
        """What became of every sample."""
        results = []
        for sample in self._samples:
            generation_id = self._id(sample)
            followed = self._followed.get(generation_id) or Followed()
            seconds = None
            if followed.seen_unix_nano is not None:
                seconds = max(0, followed.seen_unix_nano - self._acknowledged[generation_id]) / 1e9
            results.append(Result(sample, generation_id, tuple(followed.decisions), seconds))
            self._platform.forget(generation_id)
        return results


async def _show(sending: _Sending, progress: Progress, show: Callable[[Progress], None]) -> None:
    while True:
        sending.count(progress)
        show(progress)
        await asyncio.sleep(_PROGRESS_SECONDS)


def resident(pids: Mapping[str, int]) -> dict[str, int]:
    """Resident bytes by room; a process that has just ended counts nothing."""
    sizes = {}
    for room, pid in pids.items():
        try:
            sizes[room] = int(psutil.Process(pid).memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return sizes


def _outcomes(decisions: Sequence[decision_pb2.Decision]) -> dict[str, int]:
    tally: dict[str, int] = {}
    for decision in decisions:
        name = verdict.outcome_name(decision.outcome)
        tally[name] = tally.get(name, 0) + 1
    return tally


def tally(results: Sequence[Result]) -> dict[str, int]:
    """How many results got which outcome."""
    counts = _outcomes([result.decision for result in results if result.decision is not None])
    if missing := sum(result.decision is None for result in results):
        counts["NO DECISION"] = missing
    return counts
