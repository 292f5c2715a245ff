"""``seawall demo``."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from seawall.cli.reach import LocalSettings, topics_of
from seawall.cli.terminal import StatusLines, console, print_json, run_until_signal
from seawall.cli.why import OUTCOME_STYLE
from seawall.core.errors import Fatal
from seawall.local import demo as runner
from seawall.local import demo_bank, verdict
from seawall.local import samples as sample_stream
from seawall.local.mesh import Mesh
from seawall.local.platform import Platform
from seawall.local.waterfall import HOPS
from seawall.runtime.content import ContentStore
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import seawall_home

_MAX_FAULTS_SHOWN = 40


def demo(*, json_output: bool, keep: bool, only: Sequence[str]) -> None:
    """Run it; exit status 1 unless every outcome is as expected."""
    samples = _chosen(only)
    summary = run_until_signal(_demo(samples, keep=keep, json_output=json_output))
    sys.exit(1 if summary.faults else 0)


def _chosen(only: Sequence[str]) -> list[sample_stream.Sample]:
    samples = sample_stream.stream()
    known = sorted({sample.category for sample in samples})
    if unknown := [name for name in only if name not in known]:
        raise Fatal("NO_SUCH_CATEGORY", f"there is no category {unknown[0]!r}: one of {', '.join(known)}")
    return [sample for sample in samples if not only or sample.category in only]


async def _demo(samples: Sequence[sample_stream.Sample], *, keep: bool, json_output: bool) -> runner.Summary:
    terminal = console(stderr=True)
    home = seawall_home()
    started = time.monotonic()
    await asyncio.to_thread(demo_bank.ensure, home / "banks")
    async with Mesh.open(home, StatusLines(terminal)) as mesh:
        up_seconds = time.monotonic() - started
        terminal.print(Text(f"mesh ready after {up_seconds:.1f} s; {len(samples)} samples follow", "bold"))
        settings = LocalSettings(kafka=mesh.kafka_settings)
        sealer = Sealer.from_settings(settings.sealing)
        store = ContentStore(settings.content)
        progress, show = _progress(terminal)
        async with Platform.open(mesh.broker(), sealer, store, topics_of(settings)) as platform:
            with progress:
                summary = await runner.run(platform, samples, mesh.pids, show)
        if json_output:
            print_json({**summary.document(), "start_seconds": round(up_seconds, 2)})
        else:
            draw(console(), summary)
        if keep:
            terminal.print("The mesh stays up: try `seawall why` with an id from above. Ctrl-C stops it.")
            await mesh.supervisor.failed()
    return summary


def _progress(terminal: Console) -> tuple[AbstractContextManager[object], Callable[[runner.Progress], None]]:
    """A bar that moves on a terminal; a line now and then elsewhere."""
    if not terminal.is_terminal:
        return nullcontext(), _Lines(terminal)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[outcomes]}"),
        TimeElapsedColumn(),
        console=terminal,
    )
    sent = progress.add_task("sent", total=None, outcomes="")
    decided = progress.add_task("decided", total=None, outcomes="")

    def show(now: runner.Progress) -> None:
        progress.update(sent, total=now.total, completed=now.sent)
        progress.update(decided, total=now.total, completed=now.settled, outcomes=_outcomes(now))

    return progress, show


class _Lines:
    """Progress without a terminal: a line every few seconds, and the last."""

    _SECONDS = 5.0

    def __init__(self, terminal: Console) -> None:
        self._terminal = terminal
        self._next = 0.0
        self._last = ""

    def __call__(self, now: runner.Progress) -> None:
        finished = now.settled == now.total
        line = f"sent {now.sent}, decided {now.settled} of {now.total}  {_outcomes(now)}"
        if line != self._last and (finished or time.monotonic() >= self._next):
            self._terminal.print(line)
            self._last, self._next = line, time.monotonic() + self._SECONDS


def _outcomes(now: runner.Progress) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(now.outcomes.items()))


def draw(to: Console, summary: runner.Summary) -> None:
    """The tables: decisions by category, where the time went, memory, and what differs."""
    to.print(_decisions(summary))
    to.print()
    to.print(_times(summary))
    to.print()
    memory = ", ".join(f"{room} {size / 2**20:.0f}" for room, size in summary.memory.items())
    to.print(f"Resident memory, MiB: {memory}")
    for result in summary.faults[:_MAX_FAULTS_SHOWN]:
        expected = verdict.outcome_name(result.sample.outcome)
        to.print(Text(f"differs: {result.generation_id}: expected {expected}, got {result.fault}", "red"))
    if (more := len(summary.faults) - _MAX_FAULTS_SHOWN) > 0:
        to.print(Text(f"… and {more} more", "red"))
    right = len(summary.results) - len(summary.faults)
    line = f"{right} of {len(summary.results)} outcomes as expected, in {summary.seconds:.1f} s"
    to.print(Text(line, "bold red" if summary.faults else "bold green"))


def _decisions(summary: runner.Summary) -> Table:
    table = Table(title="Decisions", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading, justify in (("category", "left"), ("expected", "left"), ("as expected", "right"), ("got", "left"),
                             ("p50", "right"), ("example", "left")):  # fmt: skip
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name, results in summary.categories().items():
        expected = verdict.outcome_name(results[0].sample.outcome)
        right = sum(not result.fault for result in results)
        got = ", ".join(f"{outcome} {count}" for outcome, count in sorted(runner.tally(results).items()))
        seconds = [result.seconds for result in results if result.seconds is not None]
        table.add_row(
            name,
            Text(expected, OUTCOME_STYLE[expected]),
            Text(f"{right}/{len(results)}", "green" if right == len(results) else "bold red"),
            got,
            f"{statistics.median(seconds) * 1000:.0f} ms" if seconds else "–",
            Text(results[0].generation_id, "dim"),
        )
    return table


def _times(summary: runner.Summary) -> Table:
    table = Table(
        title="Where the time went: medians", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("stage")
    for hop in HOPS:
        table.add_column(hop, justify="right")
    for stage, hops in summary.hop_medians().items():
        table.add_row(stage, *(f"{hops[hop]:.1f} ms" for hop in HOPS))
    return table
