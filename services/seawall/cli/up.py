"""``seawall up``."""

from __future__ import annotations

from rich.text import Text

from seawall.cli.terminal import StatusLines, console, run_until_signal
from seawall.local.mesh import Mesh
from seawall.runtime.settings import seawall_home


def up() -> None:
    """Run the mesh until a signal, or until a room gives up."""
    try:
        run_until_signal(_up())
    except KeyboardInterrupt:
        console(stderr=True).print("stopped")


async def _up() -> None:
    terminal = console(stderr=True)
    home = seawall_home()
    async with Mesh.open(home, StatusLines(terminal)) as mesh:
        terminal.print(
            Text.assemble(
                ("ready", "bold green"), f"  Kafka at {mesh.kafka.bootstrap_servers}, logs in {home / 'logs'}"
            )
        )
        terminal.print("In another terminal: seawall submit --prompt 'a red fox in the snow'. Ctrl-C stops everything.")
        await mesh.supervisor.failed()
