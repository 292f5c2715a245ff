"""``./scripts/gameday``: starts a mesh, breaks one thing, and waits until it is mended."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from seawall.local.mesh import Mesh, running, status_file
from seawall.oncall.rooms import Endpoint
from seawall.oncall.status import overview
from seawall.runtime.settings import seawall_home
from tests.gameday.faults import FAULTS, Fault, Game, prepare
from tests.support.otlp import Stoppable

_LOOK_SECONDS = 2.0


@asynccontextmanager
async def game(home: Path) -> AsyncIterator[Game]:
    """A mesh with a collector, ready to be broken."""
    prepare(home, seawall_home())
    with Stoppable() as collector:
        # Short pauses: a game is no place to wait for retries. A queue that fills soon, so that a loss shows.
        environment = {
            "SEAWALL_TELEMETRY__OTLP_ENDPOINT": collector.endpoint,
            "SEAWALL_TELEMETRY__EXPORT_TIMEOUT_SECONDS": "1",
            "SEAWALL_KAFKA__REQUEST_TIMEOUT_MS": "4000",
        }
        async with Mesh.open(home, environment=environment, cache=home / "cache") as mesh:
            yield Game(mesh, collector)


async def healthy(found: Game) -> bool:
    """Whether every room is ready and none late."""
    mesh = running(found.home)
    rooms = mesh.rooms if mesh else ()
    endpoints = [
        Endpoint(room, path.read_text().strip() if (path := status_file(found.home, room)).exists() else "", "absent")
        for room in rooms
    ]
    return (await overview(found.mesh.broker(), found.names, endpoints, seconds=0.2)).healthy


async def play(fault: Fault) -> None:
    """One game."""
    with tempfile.TemporaryDirectory(prefix="seawall-gameday-") as folder:
        home = Path(folder) / "home"
        print("starting a mesh", flush=True)
        async with game(home) as found:
            await fault.inject(found)
            began = time.monotonic()
            print(f"Something is wrong. In another terminal: export SEAWALL_HOME={home}, then seawall status.")
            print(f"At hand: {home / 'spare'}. Enter when you think it is mended; Ctrl-C gives up.", flush=True)
            while True:
                await asyncio.to_thread(sys.stdin.readline)
                if await healthy(found):
                    break
                print("Not yet: seawall status, seawall doctor.", flush=True)
            print(f"Mended after {time.monotonic() - began:.0f} s. It was: {fault.story}.", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gameday", description=__doc__)
    parser.add_argument("--fault", choices=[fault.name for fault in FAULTS], help="this one; without: one at random")
    parser.add_argument("--seed", type=int, help="chooses the same fault again")
    parser.add_argument("--list", action="store_true", help="show what can be broken, and end")
    arguments = parser.parse_args()
    if arguments.list:
        for fault in FAULTS:
            print(f"{fault.name:20} {fault.story}")
        return 0
    chosen = [fault for fault in FAULTS if fault.name == arguments.fault] or [
        random.Random(arguments.seed).choice(FAULTS)
    ]
    try:
        asyncio.run(play(chosen[0]))
    except KeyboardInterrupt:
        print(f"\nIt was: {chosen[0].story}.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
