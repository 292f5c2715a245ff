"""The commands of ``seawall banks`` and their options."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from seawall.cli.options import Json, extra

banks_app = typer.Typer(no_args_is_help=True, help="Lists of hashes: fill, look at, pull and vote.")

_BANK_FORMATS = "csv (entry_id,hash_type,value), json, signals or threatexchange; by the file's ending if it tells."


@banks_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A list of hashes.")],
    bank: Annotated[str, typer.Option(help="The bank's name.")],
    file_format: Annotated[str | None, typer.Option("--format", help=_BANK_FORMATS)] = None,
    card: Annotated[Path | None, typer.Option(metavar="YAML", help="What the bank is; needed the first time.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take out what the file does not list.")] = False,
    json_output: Json = False,
) -> None:
    """List a file's entries in a bank of the store. An interrupted import goes on where it was."""
    from seawall.cli import banks as command

    command.import_(file, bank, card=card, replace=replace, file_format=file_format, json_output=json_output)


@banks_app.command("stat")
def stat(json_output: Json = False) -> None:
    """Every bank: what it is, how much it lists, and its digest."""
    from seawall.cli import banks as command

    command.stat(json_output=json_output)


@banks_app.command("verify")
def verify(
    repair: Annotated[bool, typer.Option("--repair", help="Build the index's files again from the store.")] = False,
    json_output: Json = False,
) -> None:
    """Check every bank, the store and the index against their digests and checksums."""
    from seawall.cli import banks as command

    command.verify(repair=repair, json_output=json_output)


@banks_app.command("export")
def export(
    bank: Annotated[str, typer.Argument(metavar="BANK", help="A bank of the store.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Instead of standard output.")] = None,
) -> None:
    """Write a bank's entries as CSV."""
    from seawall.cli import banks as command

    command.export(bank, out)


@banks_app.command("diff")
def diff(
    bank: Annotated[str, typer.Argument(metavar="BANK", help="A bank of the store.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A list of hashes.")],
    file_format: Annotated[str | None, typer.Option("--format", help=_BANK_FORMATS)] = None,
    json_output: Json = False,
) -> None:
    """What `import --replace` of the file would change: + added, ~ changed, - removed. Exit status 1 if anything."""
    from seawall.cli import banks as command

    command.diff(bank, file, file_format=file_format, json_output=json_output)


@banks_app.command("disable")
def disable(
    bank: Annotated[str, typer.Argument(metavar="BANK")],
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="As a match names it.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever asks later.")] = "",
) -> None:
    """Let one entry match nothing."""
    from seawall.cli import banks as command

    command.set_state(bank, entry_id, enabled=False, reason=reason)


@banks_app.command("enable")
def enable(
    bank: Annotated[str, typer.Argument(metavar="BANK")],
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="As a match names it.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever asks later.")] = "",
) -> None:
    """Let a disabled or quarantined entry match again."""
    from seawall.cli import banks as command

    command.set_state(bank, entry_id, enabled=True, reason=reason)


@banks_app.command("confirm")
def confirm(
    generation_id: Annotated[str, typer.Argument(metavar="ID", help="The generation that a person has confirmed.")],
    bank: Annotated[str, typer.Option(help="The operator's own bank, in the store.")],
    item: Annotated[list[str] | None, typer.Option("--item", help="One of its media; repeatable; none: all.")] = None,
    json_output: Json = False,
) -> None:
    """List a confirmed decision's media in your own bank, by the hashes that its signals carry."""
    from seawall.cli import banks as command

    command.confirm(generation_id, bank, item or [], json_output=json_output)


@banks_app.command("pull")
def pull(
    name: Annotated[
        list[str] | None, typer.Argument(metavar="[EXCHANGE]...", help="Of the settings' exchanges; none: all of them.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask and compare, change nothing.")] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Forget how far the last pull came, and read the whole list.")
    ] = False,
    allow_sweep: Annotated[
        bool, typer.Option("--allow-sweep", help="Take out what a list read afresh lacks, however much it is.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Pull hash exchanges into their banks, from where the last pull ended.

    Exit status: 0 all was read, 1 an exchange failed (what it gave is kept), 3 something could not be read and was set
    aside.
    """
    command = _banks_pull()
    command.pull(name or [], json_output=json_output, dry_run=dry_run, from_start=from_start, allow_sweep=allow_sweep)


@banks_app.command("vote")
def vote(
    name: Annotated[str, typer.Argument(metavar="EXCHANGE", help="Of the settings' exchanges.")],
    entry_id: Annotated[str, typer.Argument(metavar="ENTRY", help="The entry's id, as a match names it.")],
    up: Annotated[bool, typer.Option("--up/--down", help="It is what the list says, or it is not.")],
    reason: Annotated[str, typer.Option(help="For --down, where the exchange asks for one of its own reasons.")] = "",
    json_output: Json = False,
) -> None:
    """Tell an exchange what we think of one of its entries."""
    command = _banks_pull()
    command.vote(name, entry_id, up=up, reason=reason, json_output=json_output)


def _banks_pull() -> ModuleType:
    return extra("seawall.cli.banks_pull", "hash exchanges", "exchanges")
