"""The commands and their options; `<subject>_app` holds those of a subject. Each hands over to a module that is
imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli import oncall_app
from seawall.cli import run as room
from seawall.cli.banks_app import banks_app
from seawall.cli.ledger_app import ledger_app
from seawall.cli.models_app import models_app
from seawall.cli.options import Json, extra
from seawall.cli.packs_app import packs_app
from seawall.cli.policy_app import policy_app
from seawall.cli.prompts_app import prompts_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find, stop and report attempts to create child sexual abuse material on a generative-AI platform.",
)
topics_app = typer.Typer(no_args_is_help=True, help="Make the topics, or compare them with what they must be.")
app.add_typer(topics_app, name="topics")
app.add_typer(oncall_app.dlq_app, name="dlq")
app.add_typer(oncall_app.hold_app, name="hold")
app.add_typer(ledger_app, name="ledger")
app.add_typer(banks_app, name="banks")
app.add_typer(models_app, name="models")
app.add_typer(policy_app, name="policy")
app.add_typer(packs_app, name="packs")
app.add_typer(prompts_app, name="prompts")


@app.command()
def up(
    beside: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="ROOM", help="ledger, console or actor_history beside the mesh; repeatable."),
    ] = None,
) -> None:
    """Start Kafka and every room on this machine; Ctrl-C stops them.

    State lives below $SEAWALL_HOME (~/.seawall). Logs: $SEAWALL_HOME/logs. The console shows what the ledger has: with
    it the ledger runs too.
    """
    from seawall.cli import up as command

    command.up(beside or [])


@app.command()
def demo(
    json_output: Json = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the mesh up afterwards, until Ctrl-C.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CATEGORY", help="Send this category alone; repeatable.")
    ] = None,
) -> None:
    """Start the mesh, send the sample stream through it and compare every decision with what it must be.

    Exit status 1 if an outcome differs or is missing.
    """
    from seawall.cli import demo as command

    command.demo(json_output=json_output, keep=keep, only=only or [])


@app.command()
def submit(
    prompt: Annotated[str | None, typer.Option(help="The prompt; - reads it from standard input.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="The negative prompt.")] = None,
    turn: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="An earlier turn of the conversation; repeatable."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture or video that the model made; repeatable.")
    ] = None,
    input_image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture or video that the user uploaded; repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the decision.")] = 60.0,
    json_output: Json = False,
) -> None:
    """Send one generation and wait for its decision.

    Exit status: 0 ALLOW, 10 REVIEW, 11 BLOCK, 12 BLOCK_AND_REPORT, 13 HOLD, 14 no decision in time.
    """
    from seawall.cli import submit as command

    command.submit(
        prompt=prompt,
        negative_prompt=negative_prompt,
        turns=turn or [],
        images=image or [],
        input_images=input_image or [],
        timeout=timeout,
        json_output=json_output,
    )


@app.command()
def why(
    handle: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The generation's id; or a file's SHA-256, a trace id, topic/partition/offset."
        ),
    ],
    json_output: Json = False,
    replay: Annotated[
        bool,
        typer.Option("--replay", help="Make each decision again from its recorded digests, and compare bit for bit."),
    ] = False,
    policy: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="With --replay: a bundle that is not in the archive; repeatable."),
    ] = None,
) -> None:
    """Explain a decision: rule, policy, every signal against its threshold, where the time went, every hop.

    Reads decisions.v1 alone; a digest or trace id is looked up in the ledger first, if there is one. With --replay the
    records of the generation and its signals as well, and the bundles from the archive ($SEAWALL_HOME/policies, or
    SEAWALL_POLICY_ARCHIVE). Exit status 1 if a decision comes out otherwise.
    """
    from seawall.cli import why as command

    if replay:
        command.replay(handle, policy or [], json_output=json_output)
        return
    command.why(handle, json_output=json_output)


app.command()(oncall_app.status)
app.command()(oncall_app.tail)
app.command()(oncall_app.doctor)
app.command()(oncall_app.restart)
app.command()(oncall_app.override)


@app.command()
def run(room_name: Annotated[str, typer.Argument(metavar="ROOM", help=f"One of {', '.join(room.ROOMS)}.")]) -> None:
    """Run one room in this process until SIGTERM, with settings from the environment (SEAWALL_…) or SEAWALL_CONFIG."""
    if room_name not in room.ROOMS:
        raise typer.BadParameter(f"there is no room {room_name!r}: one of {', '.join(room.ROOMS)}", param_hint="ROOM")
    room.run(room_name)


@app.command()
def find(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    actor: Annotated[str | None, typer.Option(help="An actor's pseudonymous id.")] = None,
    outcome: Annotated[str | None, typer.Option(help="ALLOW, HOLD, REVIEW, BLOCK or BLOCK_AND_REPORT.")] = None,
    rule: Annotated[str | None, typer.Option(help="The rule that decided.")] = None,
    trace: Annotated[str | None, typer.Option(help="A W3C trace id, 32 hex digits.")] = None,
    content: Annotated[str | None, typer.Option(metavar="SHA256", help="About a media item with these bytes.")] = None,
    artefact: Annotated[
        str | None, typer.Option(metavar="NAME[@VERSION]", help="Rested on this model, bank or term pack.")
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="ISO 8601, or back from now: 15m, 2h, 3d.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="As --since; the instant itself is outside.")
    ] = None,
    overridden: Annotated[
        bool, typer.Option("--overridden", help="Those on which a person has the last word.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
    json_output: Json = False,
) -> None:
    """Search decisions in the ledger, newest first. `seawall why` explains one."""
    extra("seawall.cli.ledger", "ledger searches", "ledger").find(
        tenant=tenant,
        actor=actor,
        outcome=outcome,
        rule=rule,
        trace=trace,
        content=content,
        artefact=artefact,
        since=since,
        until=until,
        overridden=overridden,
        limit=limit,
        json_output=json_output,
    )


@topics_app.command("apply")
def topics_apply(json_output: Json = False) -> None:
    """Create the topics that are absent; refuse what cannot be mended so."""
    from seawall.cli import topics as command

    command.apply(json_output=json_output)


@topics_app.command("check")
def topics_check(json_output: Json = False) -> None:
    """Compare the topics with what they must be. Exit status 1 if one differs."""
    from seawall.cli import topics as command

    command.check(json_output=json_output)
