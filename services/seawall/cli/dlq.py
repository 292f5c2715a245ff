"""``seawall dlq``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from rich.table import Table
from rich.text import Text

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.cli import terminal
from seawall.cli.reach import local_settings, topics_of
from seawall.core.errors import Fatal
from seawall.oncall import dead_letters
from seawall.oncall.dead_letters import Act, Letter, Step
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.topics import TopicNames

#: Letters by which an id may be named.
_SHORTEST = 6
_Done = TypeVar("_Done")
_ACT_STYLE = {Act.NEW_ATTEMPT: "green", Act.REPEAT: "green", Act.GONE: "red"}


class Choice(NamedTuple):
    """The letters that a command is about: by id or its start, by room, by reason, or every one that is left."""

    letters: Sequence[str]
    rooms: Sequence[str]
    reasons: Sequence[str]
    every: bool


def list_(rooms: Sequence[str], reasons: Sequence[str], *, json_output: bool) -> None:
    """Print what is left to be dealt with."""
    broker, names = _reach()
    found = asyncio.run(dead_letters.unresolved(broker, names.dead_letters, rooms=rooms, reasons=reasons))
    if json_output:
        terminal.print_json({"dead_letters": [_document(letter) for letter in found]})
        return
    table = Table("letter", "room", "reason", "generation", "original", "set aside", box=None)
    for letter in found:
        table.add_row(
            letter.id[:12],
            letter.message.room,
            letter.message.reason,
            letter.generation_id or "–",
            _place(letter),
            _time(letter.message.create_unix_nano),
        )
    terminal.console().print(table)
    by_reason = Counter((letter.message.room, letter.message.reason) for letter in found)
    summary = ", ".join(f"{count} {room} {reason}" for (room, reason), count in by_reason.most_common())
    terminal.console().print(Text(f"{len(found)} dead letters{': ' if summary else ''}{summary}", "dim"))


def show(wanted: str, *, json_output: bool) -> None:
    """Print all that is known of one letter."""
    broker, names = _reach()
    found = asyncio.run(_history(broker, names, wanted))
    if json_output:
        terminal.print_json({"records": [_document(letter) for letter in found]})
        return
    letter = next((one for one in found if not one.message.resolution), found[0])
    message = letter.message
    rows = {
        "letter": letter.id,
        "room": f"{message.room} ({message.instance})",
        "reason": f"{message.reason}, {_error_class(message)}",
        "detail": message.detail,
        "generation": letter.generation_id or "its key is no id",
        "original": f"{_place(letter)}, {message.original_size_bytes} bytes"
        + (", too large to be kept here" if message.value_omitted else f", sealed with key {message.key_id}"),
        "set aside": _time(message.create_unix_nano),
        "stands at": f"{names.dead_letters}/{letter.partition}/{letter.offset}",
    }
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name, "dim"), value)
    for mark in (one for one in found if one.message.resolution):
        table.add_row(Text(_resolution(mark.message), "green"), f"by {mark.message.resolved_by}, {_made(mark)}")
    terminal.console().print(table)


def redrive(choice: Choice, *, yes: bool, by: str, json_output: bool) -> None:
    """Say what a redrive would do, or do it."""

    async def act(broker: KafkaBroker, names: TopicNames, letters: list[Letter]) -> tuple[list[Step], int]:
        steps = await dead_letters.plan(broker, names, letters)
        return steps, await dead_letters.redrive(broker, names, steps, by) if yes else 0

    steps, done = _on(choice, act)
    if json_output:
        acts = [{"letter": step.letter.id, "act": step.act.value, "note": step.note} for step in steps]
        terminal.print_json({"done": yes, "resolved": done, "steps": acts})
        return
    table = Table("letter", "original", "what", "", box=None)
    for step in steps:
        style = Text(step.act.value, _ACT_STYLE.get(step.act, "dim"))
        table.add_row(step.letter.id[:12], _place(step.letter), style, step.note)
    terminal.console().print(table)
    _conclude(len(steps), done, yes=yes, verb="redriven")


def discard(choice: Choice, *, yes: bool, by: str, json_output: bool) -> None:
    """Say what would be marked as done with, or mark it."""

    async def act(broker: KafkaBroker, names: TopicNames, letters: list[Letter]) -> tuple[list[Letter], int]:
        return letters, await dead_letters.discard(broker, names, letters, by) if yes else 0

    letters, done = _on(choice, act)
    if json_output:
        terminal.print_json({"done": yes, "resolved": done, "letters": [letter.id for letter in letters]})
        return
    _conclude(len(letters), done, yes=yes, verb="discarded")


def _on(choice: Choice, act: Callable[[KafkaBroker, TopicNames, list[Letter]], Coroutine[Any, Any, _Done]]) -> _Done:
    broker, names = _reach()

    async def work() -> _Done:
        return await act(broker, names, await _chosen(broker, names, choice))

    return asyncio.run(work())


def _conclude(count: int, done: int, *, yes: bool, verb: str) -> None:
    console = terminal.console()
    if yes:
        console.print(Text(f"{done} of {count} dead letters {verb}", "green"))
    else:
        console.print(Text(f"nothing was done: add --yes, and {count} dead letters are {verb}", "yellow"))


async def _chosen(broker: KafkaBroker, names: TopicNames, choice: Choice) -> list[Letter]:
    if not any(choice):
        raise Fatal("NOTHING_CHOSEN", "name letters by id, choose with --room or --reason, or say --all")
    found = await dead_letters.unresolved(broker, names.dead_letters, rooms=choice.rooms, reasons=choice.reasons)
    if not choice.letters:
        return found
    return [_one_of(found, start) for start in dict.fromkeys(choice.letters)]


async def _history(broker: KafkaBroker, names: TopicNames, wanted: str) -> list[Letter]:
    found = await dead_letters.history(broker, names.dead_letters, wanted)
    if len(wanted) < _SHORTEST or not found:
        raise _not_found(wanted)
    if len({letter.id for letter in found}) > 1:
        raise _ambiguous(wanted)
    return found


def _one_of(letters: Sequence[Letter], start: str) -> Letter:
    found = [letter for letter in letters if letter.id.startswith(start)]
    if len(start) < _SHORTEST or not found:
        raise _not_found(start)
    if len(found) > 1:
        raise _ambiguous(start)
    return found[0]


def _not_found(start: str) -> Fatal:
    return Fatal("NOT_FOUND", f"no dead letter begins with {start!r}: `seawall dlq list` (give at least {_SHORTEST})")


def _ambiguous(start: str) -> Fatal:
    return Fatal("AMBIGUOUS", f"several dead letters begin with {start!r}: give more of it")


def _reach() -> tuple[KafkaBroker, TopicNames]:
    settings = local_settings()
    return KafkaBroker(settings.kafka), topics_of(settings)


def _document(letter: Letter) -> dict[str, Any]:
    """Everything but the sealed original."""
    message = letter.message
    source = message.source
    return {
        "dead_letter_id": letter.id,
        "room": message.room,
        "instance": message.instance,
        "error_class": _error_class(message),
        "reason": message.reason,
        "detail": message.detail,
        "generation_id": letter.generation_id or None,
        "source": {"topic": source.topic, "partition": source.partition, "offset": source.offset},
        "record": {"partition": letter.partition, "offset": letter.offset},
        "original_size_bytes": message.original_size_bytes,
        "value_omitted": message.value_omitted,
        "key_id": message.key_id,
        "created": _made(letter),
        "resolution": _resolution(message) if message.resolution else None,
        "resolved_by": message.resolved_by or None,
    }


def _error_class(message: dead_letter_pb2.DeadLetter) -> str:
    return dead_letter_pb2.ErrorClass.Name(message.error_class).removeprefix("ERROR_CLASS_").lower()


def _resolution(message: dead_letter_pb2.DeadLetter) -> str:
    return dead_letter_pb2.Resolution.Name(message.resolution).removeprefix("RESOLUTION_").lower()


def _place(letter: Letter) -> str:
    topic, partition, offset = letter.place
    return f"{topic}/{partition}/{offset}"


def _made(letter: Letter) -> str:
    return _time(letter.message.create_unix_nano)


def _time(unix_nano: int) -> str:
    return datetime.fromtimestamp(unix_nano / 1e9, UTC).isoformat(timespec="seconds")
