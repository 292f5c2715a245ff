"""The commands of ``seawall prompts`` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.options import Json

prompts_app = typer.Typer(no_args_is_help=True, help="Measure how prompts are scored and judged, and calibrate it.")

Sets = Annotated[
    list[Path] | None,
    typer.Option("--set", metavar="FILE", help="A set, one JSON document a line; repeatable. Without: Seawall's own."),
]


@prompts_app.command("eval")
def evaluate(
    files: Sets = None,
    split: Annotated[
        str, typer.Option(help="Of Seawall's own set: train, tune, final, fresh, third or fourth.")
    ] = "final",
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge by this policy. Without: the default.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write plots (extra: evaluation).")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables as Markdown.")] = None,
    json_output: Json = False,
) -> None:
    """Recall and false positives of detection, review and block, by language, evasion and wrapper, with intervals.

    Exit status 1 if a target of Seawall's own set is missed.
    """
    from seawall.cli import prompts as command

    command.evaluate(files=files or [], split=split, policy=policy, plots=plots, out=out, json_output=json_output)


@prompts_app.command("calibrate")
def calibrate(
    version: Annotated[str, typer.Option(help="Of the head that is written.")],
    files: Sets = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write. Without: the bundled head.")] = None,
) -> None:
    """Fit the block grade's head on a set and calibrate it across templates. Never give it what you evaluate on."""
    from seawall.cli import prompts as command

    command.calibrate(files=files or [], out=out, version=version)


@prompts_app.command("export")
def export(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write.")],
    split: Annotated[str, typer.Option(help="train, tune, final, fresh, third or fourth.")] = "final",
) -> None:
    """Write a split of Seawall's own set as a file."""
    from seawall.cli import prompts as command

    command.export(split=split, out=out)
