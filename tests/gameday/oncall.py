"""A scripted on-call: what docs/runbook.md says, step by step, with `seawall` commands and nothing else.

It does not know what was broken. It looks, writes down what it finds, does what the runbook says of that, looks again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from seawall.cli.app import app

#: How long one fault may take, seconds: a slow machine's rooms start slowly.
PATIENCE_SECONDS = 120.0

Act = tuple[str, ...]


class OnCall:
    """One shift. ``findings`` and ``commands`` are its log."""

    def __init__(self, home: Path) -> None:
        self._spare = home / "spare"
        self._runner = CliRunner()
        self.findings: list[str] = []
        self.commands: list[str] = []
        #: Processes that were running when the shift began, by room: when each started.
        self._known = {line["room"]: line["started"] for line in self._status()["rooms"]}

    def seawall(self, *arguments: str) -> Result:
        """Run a command."""
        self.commands.append(" ".join(("seawall", *arguments)))
        return self._runner.invoke(app, arguments, prog_name="seawall")

    def ask(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        done = self.seawall(*arguments, "--json")
        assert done.stdout, f"{self.commands[-1]}: {done.exception!r} {done.stderr}"
        return json.loads(done.stdout)

    def _status(self) -> Any:
        return self.ask("status", "--seconds", "0.3")

    def work(self, until: Callable[[], bool]) -> None:
        """Look and act until nothing is left to do and what was broken works again."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            acts = list(dict.fromkeys(self._look()))
            for act in acts:
                done = self.seawall(*act)
                assert done.exit_code == 0, f"{self.commands[-1]}: {done.output} {done.exception!r}"
            if not acts and until():
                return
        raise AssertionError(f"not mended: {self.findings}\n" + "\n".join(self.commands))

    def _look(self) -> Iterator[Act]:
        """What is wrong now, and what the runbook says to do about it."""
        status = self._status()
        if status["kafka_fault"]:
            self._found(status["kafka_fault"])
            if "seawall restart kafka" not in self.commands:
                yield ("restart", "kafka")
            return  # it takes its time to come back, and the others wait for it
        acts = [act for line in status["rooms"] for act in self._room(line)]
        yield from acts
        if acts or any(line["state"] != "ready" for line in status["rooms"]):
            return  # first the rooms
        for finding in self.ask("doctor")["findings"]:
            yield from self._doctor(finding)
        yield from self._letters()

    def _room(self, line: dict[str, Any]) -> Iterator[Act]:
        room, why = line["room"], line["why"]
        before = self._known.get(room)
        if line["started"]:
            self._known[room] = line["started"]
        if line["state"] == "no answer":
            # RoomSilent
            if "hangs" in why:
                self._found(f"{room} hangs")
                yield ("restart", room)
            else:
                self._found(f"{room} is gone")  # a supervisor starts it again
        elif "FUSE_TRIPPED" in why:
            # RoomHalted: what was set aside is looked at below, and first.
            self._found(f"{room} FUSE_TRIPPED")
            yield from self._letters()
            yield ("restart", room)
        elif why.startswith("NO_BANKS"):
            # BankExpires
            self._found(f"{room} {why}")
            card = str(self._spare / "bank.yaml")
            yield ("banks", "import", str(self._spare / "list.csv"), "--bank", "spare", "--card", card)
        elif before and line["started"] != before and not any(f"restart {room}" in one for one in self.commands):
            self._found(f"{room} was restarted, not by us")

    def _doctor(self, finding: dict[str, Any]) -> Iterator[Act]:
        if finding["check"] == "topics":
            self._found(finding["what"])
            if "seawall topics apply" in finding["mend"]:
                yield ("topics", "apply")
        elif finding["check"] == "refused" and "model" in finding["what"]:
            # ModelRefused: once; the counter stays until the room restarts.
            if self._found(finding["what"]):
                yield ("models", "install", str(self._spare / "opennsfw"), "--as", "opennsfw")
        elif finding["check"] in ("telemetry", "lists"):
            self._found(finding["what"])  # at leisure

    def _letters(self) -> Iterator[Act]:
        """DeadLetters: one sender's rubbish is discarded, once it is seen what it was."""
        letters = self.ask("dlq", "list")["dead_letters"]
        for reason in sorted({letter["reason"] for letter in letters}):
            one = next(letter for letter in letters if letter["reason"] == reason)
            shown = self.ask("dlq", "show", one["dead_letter_id"])["records"][0]
            self._found(f"{len(letters)} dead letters, {reason}: {shown['detail']}")
            if reason == "UNDECODABLE":
                yield ("dlq", "discard", "--reason", reason, "--yes", "--by", "oncall")

    def _found(self, what: str) -> bool:
        """Write it down; False if it was known."""
        known = what in self.findings
        if not known:
            self.findings.append(what)
        return not known
