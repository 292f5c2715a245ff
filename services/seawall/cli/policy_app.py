"""The commands of ``seawall policy`` and their options."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from seawall.cli.options import Json, extra

policy_app = typer.Typer(no_args_is_help=True, help="Check, test, compare and replay policies: see docs/policy.md.")

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or a lone policy file.")]
Samples = Annotated[int, typer.Option(min=0, max=1000, help="Generation ids to show of each change.")]


@policy_app.command("new")
def new(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where; it must not exist yet.")]) -> None:
    """Copy the bundle that Seawall starts with, to change it."""
    _policy().new(folder)


@policy_app.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A bundle, or a folder with rollout.yaml.")],
    json_output: Json = False,
) -> None:
    """Load it as the aggregator would: types, reachability, ids, thresholds, includes."""
    _policy().check(path, json_output=json_output)


@policy_app.command("test")
def test(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A bundle, or a folder with rollout.yaml.")],
    json_output: Json = False,
) -> None:
    """Run the bundle's tests.yaml. Exit status 1 unless there are cases and all are as expected."""
    _policy().test(path, json_output=json_output)


@policy_app.command("diff")
def diff(before: Bundle, after: Bundle, json_output: Json = False) -> None:
    """What differs between two bundles, by meaning. Exit status 1 if anything does."""
    _policy().diff(before, after, json_output=json_output)


@policy_app.command("explain")
def explain(
    bundle: Bundle,
    rule: Annotated[str | None, typer.Option("--rule", metavar="ID", help="This rule alone.")] = None,
    json_output: Json = False,
) -> None:
    """A bundle in words: what must report and by when, every rule with its thresholds' values."""
    _policy().explain(bundle, rule, json_output=json_output)


@policy_app.command("replay")
def replay(
    base: Bundle,
    candidate: Annotated[
        Path | None, typer.Argument(metavar="[CANDIDATE]", help="A second bundle, judged side by side.")
    ] = None,
    since: Annotated[str, typer.Option(help="From this time on: 90s, 15m, 2h, 7d ago, or ISO 8601 (UTC).")] = "24h",
    until: Annotated[str, typer.Option(help="To before this time.")] = "now",
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Read an exported file instead of Kafka.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the records that are read, for --from. Prompts stay sealed."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot: .png, .svg or .pdf.")] = None,
    samples: Samples = 3,
    json_output: Json = False,
) -> None:
    """Judge past traffic again and report what would change: by outcome, by rule, with example generations."""
    if source is not None and export is not None:
        raise typer.BadParameter("it reads a file already: leave --export out", param_hint="--export")
    _policy().replay(
        base,
        candidate,
        since=since,
        until=until,
        source=source,
        export=export,
        plot=plot,
        samples=samples,
        json_output=json_output,
    )


@policy_app.command("shadow")
def shadow(
    since: Annotated[str, typer.Option(help="From this time on: 90s, 15m, 2h, 7d ago, or ISO 8601 (UTC).")] = "24h",
    samples: Samples = 3,
    json_output: Json = False,
) -> None:
    """What bundles and rules in shadow said, beside what was decided. Reads decisions.v1 alone."""
    _policy().shadow(since=since, samples=samples, json_output=json_output)


def _policy() -> ModuleType:
    return extra("seawall.cli.policy", "policies", "aggregator")
