"""What commands share: consoles, status lines, and a clean end on Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from seawall.local.supervisor import State, Status

T = TypeVar("T")
_FILE_WIDTH = 160
_STATE_STYLE = {
    State.STARTING: "dim",
    State.READY: "green",
    State.WAITING: "yellow",
    State.STOPPING: "dim",
    State.STOPPED: "dim",
    State.FAILED: "red",
}


def console(*, stderr: bool = False) -> Console:
    """A console that takes no text for markup: ids and reasons come from records. In a file or pipe, lines are wide."""
    made = Console(stderr=stderr, markup=False, highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, _FILE_WIDTH)
    return made


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False), flush=True)


class StatusLines:
    """Prints a line for each change that a person wants to know of."""

    def __init__(self, to: Console) -> None:
        self._console = to

    def __call__(self, status: Status) -> None:
        if status.state is State.STOPPED:
            return
        line = Text(f"{status.room:<29} ")
        line.append(f"{status.state.value:<9}", _STATE_STYLE[status.state])
        if status.pid is not None:
            line.append(f" pid {status.pid}", "dim")
        if status.restarts:
            line.append(f" restart {status.restarts}", "yellow")
        if status.detail:
            line.append(f" {status.detail}")
        self._console.print(line)


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``; SIGINT and SIGTERM cancel it, so that it ends what it started. Raises KeyboardInterrupt then."""

    async def main() -> T:
        loop = asyncio.get_running_loop()
        working = loop.create_task(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, working.cancel)
        return await working

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        work.close()  # A signal may come before it began.
