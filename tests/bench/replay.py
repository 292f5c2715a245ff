"""Replay: generations per core-second from an exported file, by one bundle and by two side by side.

The ceiling is the file read and every record parsed, with nothing joined and nothing judged. Three signals a
generation, one in fifty not ALLOW; the default policy, and the default policy plus 20 rules.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from seawall.aggregator.replay.records import GENERATION, SIGNAL, Export, ReplayRecord, from_file
from seawall.aggregator.replay.run import Replay
from seawall.aggregator.settings import AggregatorSettings
from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core.join import Position
from seawall.core.policy import Policy
from tests.bench.aggregator import PARTITIONS, _generation, _signals, policy
from tests.bench.harness import Report, say

GENERATIONS = int(os.environ.get("GENERATIONS", "40000"))
_STRETCH = 2_000


async def run(report: Report) -> None:
    """Write one file, read it four times."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as name:
        folder = Path(name)
        path = folder / "export"
        say(f"writing {GENERATIONS:,} generations and their signals to a file")
        _write(path)
        gc.set_threshold(50_000)  # as the command does
        default, more = Policy(AggregatorSettings().policy), Policy(policy(folder))
        ceiling = _rate(lambda: _parse(path))
        one = _rate(lambda: _replay(path, default))
        large = _rate(lambda: _replay(path, more))
        two = _rate(lambda: _replay(path, default, more))
    report.add("read and parse", ceiling, unit="generations/core-s")
    report.add("replay, one bundle", one, 20_000, unit="generations/core-s")
    report.add("replay / read and parse", one / ceiling)
    report.add("replay, one bundle with 20 rules more", large, unit="generations/core-s")
    report.add("replay, two bundles side by side", two, unit="generations/core-s")


def _rate(work: Callable[[], None]) -> float:
    """Of two runs the better: the first pays for warming up."""
    best = 0.0
    for _ in range(2):
        began = time.process_time()
        work()
        best = max(best, GENERATIONS / (time.process_time() - began))
    return best


def _write(path: Path) -> None:
    signal_offsets = [0] * PARTITIONS
    with Export(path) as export:
        for begin in range(0, GENERATIONS, _STRETCH):
            numbers = range(begin, min(begin + _STRETCH, GENERATIONS))
            export.write(
                [
                    (GENERATION, _position(n % PARTITIONS, n // PARTITIONS), _generation(n).SerializeToString())
                    for n in numbers
                ]
            )
            records: list[ReplayRecord] = []
            for n in numbers:
                for record in _signals(n):
                    partition = n % PARTITIONS
                    position = _position(partition, signal_offsets[partition])
                    records.append((SIGNAL, position, record.SerializeToString()))
                    signal_offsets[partition] += 1
            export.write(records)


def _position(partition: int, offset: int) -> Position:
    return Position("", partition, offset, 1_000_000_000)


def _parse(path: Path) -> None:
    for batch in from_file(path):
        for kind, _, value in batch:
            if kind == GENERATION:
                generation_pb2.Generation.FromString(value)
            else:
                control_pb2.JoinRecord.FromString(value)


def _replay(path: Path, *policies: Policy) -> None:
    run = Replay(*policies)
    for batch in from_file(path):
        run.feed(batch)
    tally = run.finish()
    if tally.total != GENERATIONS:
        raise RuntimeError(f"{tally.total} of {GENERATIONS} generations were decided")
