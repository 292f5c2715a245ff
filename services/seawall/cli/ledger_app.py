"""The commands of ``seawall ledger`` and their options."""

from __future__ import annotations

from types import ModuleType
from typing import Annotated

import typer

from seawall.cli.options import Json, extra

ledger_app = typer.Typer(no_args_is_help=True, help="The searchable record of decisions: make, look at, fill again.")


@ledger_app.command("migrate")
def migrate() -> None:
    """Bring the ledger's tables to this version. A file is brought there by the room itself."""
    _ledger().migrate()


@ledger_app.command("rebuild")
def rebuild(yes: Annotated[bool, typer.Option("--yes", help="Delete every row.")] = False) -> None:
    """Empty the ledger, to be filled again from the topics."""
    _ledger().rebuild(yes=yes)


@ledger_app.command("stat")
def stat(json_output: Json = False) -> None:
    """How far the ledger has come, and what it could not read."""
    _ledger().stat(json_output=json_output)


def _ledger() -> ModuleType:
    return extra("seawall.cli.ledger", "ledger searches", "ledger")
