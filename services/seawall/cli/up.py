"""``seawall up``."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from rich.text import Text

from seawall.cli.terminal import StatusLines, console, run_until_signal
from seawall.local.mesh import BESIDE, Mesh
from seawall.runtime.settings import seawall_home


def up(beside: Sequence[str]) -> None:
    """Run the mesh, and rooms of BESIDE, until a signal, or until a room gives up."""
    if unknown := set(beside) - set(BESIDE):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: one of {', '.join(BESIDE)}", param_hint="--with")
    wanted = {*beside, "ledger"} if "console" in beside else set(beside)
    try:
        run_until_signal(_up(wanted))
    except KeyboardInterrupt:
        console(stderr=True).print("stopped")


async def _up(beside: set[str]) -> None:
    terminal = console(stderr=True)
    home = seawall_home()
    async with Mesh.open(home, StatusLines(terminal), beside=beside) as mesh:
        terminal.print(
            Text.assemble(
                ("ready", "bold green"), f"  Kafka at {mesh.kafka.bootstrap_servers}, logs in {home / 'logs'}"
            )
        )
        if "console" in beside:
            link = (home / "run" / "console.link").read_text(encoding="utf-8").strip()
            terminal.print(Text.assemble(("console", "bold green"), f"  {link}"), soft_wrap=True)
        terminal.print("In another terminal: seawall submit --prompt 'a red fox in the snow'. Ctrl-C stops everything.")
        await mesh.supervisor.failed()
