"""The commands of ``seawall packs`` and their options."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from seawall.cli.options import Json, extra

packs_app = typer.Typer(no_args_is_help=True, help="Check, test, list and sign term packs. No pattern is ever printed.")

Packs = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of term packs.")]


@packs_app.command("check")
def check(folder: Packs, json_output: Json = False) -> None:
    """Load packs, compile patterns, name faults by file and line, print digests to pin. Exit status 1 on a fault."""
    _packs().check(folder, json_output=json_output)


@packs_app.command("test")
def test(
    folder: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Folders of term packs; none: the bundled ones.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Run each pack's own cases. Exit status 1 if one does not hold."""
    _packs().test(folder or [], json_output=json_output)


@packs_app.command("list")
def list_(json_output: Json = False) -> None:
    """The packs that the settings use: language, version, digest, and how each is trusted."""
    _packs().list_(json_output=json_output)


@packs_app.command("stamp")
def stamp(
    folder: Packs,
    keys: Annotated[Path | None, typer.Option(metavar="KEYSET", help="Sign with this private keyset as well.")] = None,
) -> None:
    """Write the digests of a pack's files into its card, once they are changed on purpose."""
    _packs().stamp(folder, keys)


@packs_app.command("keys")
def keys(
    private: Annotated[Path, typer.Argument(metavar="PRIVATE", help="Signs packs; keep it where they are made.")],
    public: Annotated[Path, typer.Argument(metavar="PUBLIC", help="Verifies them: pack_keys in the settings.")],
) -> None:
    """Make a pair of Tink keysets (Ed25519) to sign packs with."""
    _packs().keys(private, public)


def _packs() -> ModuleType:
    return extra("seawall.cli.packs", "term packs", "prompt_scoring")
