"""On-call commands and their options: status, tail, dlq, hold, doctor, override."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

dlq_app = typer.Typer(no_args_is_help=True, help="Dead letters: what was set aside, and what to do about it.")
hold_app = typer.Typer(no_args_is_help=True, help="Generations without an outcome yet.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")]
Since = Annotated[str, typer.Option(metavar="TIME", help="Of what was decided since: 15m, 2h, 3d, or ISO 8601.")]
Room = Annotated[list[str] | None, typer.Option("--room", help="Set aside by this room; repeatable.")]
Reason = Annotated[list[str] | None, typer.Option("--reason", help="For this reason; repeatable.")]
Letters = Annotated[
    list[str] | None, typer.Argument(metavar="[LETTER]...", help="Dead letters by id, or by the start of it.")
]
Every = Annotated[bool, typer.Option("--all", help="Every letter that is left, or that --room and --reason name.")]
By = Annotated[str, typer.Option(help="Who you are, for the record: an account or a pseudonym.")]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in a container
        return ""


def status(
    seconds: Annotated[float, typer.Option(min=0.2, max=60, help="How long rates are measured.")] = 1.0,
    json_output: Json = False,
) -> None:
    """Every room: ready, lag in seconds, rate, watermark age, version, what it rests on; and who does not answer.

    Exit status 1 if a room is not ready or does not answer, is late, or Kafka cannot be asked.
    """
    from seawall.cli import oncall as command

    command.status(seconds, json_output=json_output)


def tail(
    outcome: Annotated[
        list[str] | None, typer.Option(help="ALLOW, HOLD, REVIEW, BLOCK or BLOCK_AND_REPORT; repeatable.")
    ] = None,
    rule: Annotated[list[str] | None, typer.Option(help="The rule that decided; repeatable.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="Of this tenant; repeatable.")] = None,
    stage_error: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="That this stage could not measure; any: whichever; repeatable."),
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Begin there: 15m, 2h, or ISO 8601.")] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    json_output: JsonLines = False,
) -> None:
    """Decisions as they are made, until Ctrl-C."""
    from seawall.cli import oncall as command

    command.tail(
        outcomes=outcome or [],
        rules=rule or [],
        tenants=tenant or [],
        stage_errors=stage_error or [],
        since=since,
        count=count,
        json_output=json_output,
    )


def doctor(json_output: Json = False) -> None:
    """Check topics, replicas, rooms, versions, clocks, lists, models, certificates and disk; each finding has a mend.

    Exit status 1 if something is broken.
    """
    from seawall.cli import oncall as command

    command.doctor(json_output=json_output)


def restart(
    room: Annotated[str, typer.Argument(metavar="ROOM", help="As `seawall status` names it; or kafka.")],
) -> None:
    """Restart a room of the mesh on this machine, and wait until it is ready. In a cluster: the orchestrator's."""
    from seawall.cli import oncall as command

    command.restart(room)


@hold_app.command("list")
def hold_list(since: Since = "24h", json_output: Json = False) -> None:
    """What is held now, for how long, after how many attempts, and why."""
    from seawall.cli import oncall as command

    command.hold_list(since, json_output=json_output)


@dlq_app.command("list")
def dlq_list(room: Room = None, reason: Reason = None, json_output: Json = False) -> None:
    """Dead letters that nobody has dealt with, in the order of their originals."""
    from seawall.cli import dlq as command

    command.list_(room or [], reason or [], json_output=json_output)


@dlq_app.command("show")
def dlq_show(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="Its id, or the start of it.")],
    json_output: Json = False,
) -> None:
    """One dead letter and what became of it. Its sealed original is never opened."""
    from seawall.cli import dlq as command

    command.show(letter, json_output=json_output)


@dlq_app.command("redrive")
def dlq_redrive(
    letter: Letters = None,
    every: Every = False,
    room: Room = None,
    reason: Reason = None,
    yes: Yes = False,
    by: By = "",
    json_output: Json = False,
) -> None:
    """Let originals be tried again, in their order and under their ids, once what was wrong is mended.

    A generation is scanned again as a new attempt; one that was decided meanwhile is left alone.
    """
    from seawall.cli import dlq as command

    choice = command.Choice(letter or [], room or [], reason or [], every)
    command.redrive(choice, yes=yes, by=by or _user(), json_output=json_output)


@dlq_app.command("discard")
def dlq_discard(
    letter: Letters = None,
    every: Every = False,
    room: Room = None,
    reason: Reason = None,
    yes: Yes = False,
    by: By = "",
    json_output: Json = False,
) -> None:
    """Say that nothing more is to be done about dead letters. What they hold back stays held."""
    from seawall.cli import dlq as command

    choice = command.Choice(letter or [], room or [], reason or [], every)
    command.discard(choice, yes=yes, by=by or _user(), json_output=json_output)


def override(
    generation_id: Annotated[str, typer.Argument(metavar="GENERATION")],
    outcome: Annotated[
        str | None,
        typer.Argument(metavar="[OUTCOME]", help="What is to count: ALLOW, REVIEW, BLOCK, BLOCK_AND_REPORT."),
    ] = None,
    reason: Annotated[str, typer.Option(help="A code, FALSE_POSITIVE say; never a text about content.")] = "",
    withdraw: Annotated[bool, typer.Option("--withdraw", help="What was decided counts again.")] = False,
    yes: Yes = False,
    by: By = "",
    json_output: Json = False,
) -> None:
    """Put a person's word over what was decided, on record: the only thing that lowers an outcome.

    It counts for the decisions there are now. What is decided later counts beside it.
    """
    from seawall.cli import override as command

    command.override(
        generation_id,
        outcome,
        reason=reason,
        by=by or _user(),
        withdraw=withdraw,
        yes=yes,
        json_output=json_output,
    )
