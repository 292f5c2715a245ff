"""docs/policy.md: its commands are run as they stand there, in order, in an empty folder, on a demo of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest

from tests.e2e.conftest import _follow, make_home

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "policy.md"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STATUS = re.compile(r"# exit status (\d+)")
_STAYS = "The mesh stays up"


class Reader:
    """Somebody who reads the page with a shell open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        self.home = make_home(folder / "home")
        scripts = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "SEAWALL_HOME": str(self.home),
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        }
        self.said: dict[str, str] = {}
        self.demo: subprocess.Popen[bytes] | None = None
        self.output = folder / "demo.log"

    def run(self, command: str) -> None:
        """Run one command to its end; it must end as the page says."""
        expected = int(found[1]) if (found := _STATUS.search(command)) else 0
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}"
        self.said[command] = done.stdout + done.stderr

    def start(self, command: str) -> None:
        """Run what stays, in a terminal of its own, until it stands."""
        with self.output.open("wb") as log:
            self.demo = subprocess.Popen(
                ["bash", "-c", f"exec env {command}"],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if not any(_STAYS in line for line in _follow(self.output, self.demo)):
            pytest.fail(f"{command}\n{self.output.read_text('utf-8')[-3_000:]}")

    @cached_property
    def example(self) -> str:
        """A generation of which the bundle in shadow says something else, as `seawall policy shadow` names them."""
        done = subprocess.run(
            ["seawall", "policy", "shadow", "--json"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            check=True,
        )
        [bundle] = json.loads(done.stdout)["bundles"]
        return str(bundle["differences"][0]["samples"][0])

    def stop(self) -> None:
        if self.demo is not None:
            self.demo.send_signal(signal.SIGINT)
            try:
                self.demo.wait(60)
            except subprocess.TimeoutExpired:
                self.demo.kill()
                self.demo.wait()
                raise


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def commands(page: str) -> Iterator[str]:
    """What its shell blocks hold, a command at a time: with a here-document where it has one."""
    for block in _BLOCK.findall(page):
        lines = iter(block.splitlines())
        for line in lines:
            command = line
            if "<<'END'" in line:
                while (line := next(lines)) != "END":
                    command += f"\n{line}"
                command += "\nEND"
            if command.strip():
                yield command


def test_the_page_of_policies_is_literally_so(reader: Reader) -> None:
    for command in commands(_PAGE.read_text("utf-8")):
        if "demo --keep" in command:
            reader.start(command)
        elif "GENERATION_ID" in command:
            reader.run(command.replace("GENERATION_ID", reader.example))
        else:
            reader.run(command)
    said = {command.split("#")[0].strip(): output for command, output in reader.said.items()}
    assert "uploaded-photo" in said["seawall policy diff policies/current policies/candidate"]
    assert "uploaded-photo" in said["seawall policy shadow --since 1h"]
    replays = [output for command, output in said.items() if command.startswith("seawall policy replay")]
    assert len(replays) == 2
    assert all("uploaded-photo" in output for output in replays)
    assert (reader.folder / "change.png").read_bytes().startswith(b"\x89PNG")
    assert all("the same" in output for command, output in said.items() if "--replay" in command)
    log = reader.home / "logs" / "aggregator.log"
    for _ in range(600):
        if "policy_reloaded" in log.read_text("utf-8"):
            break
        time.sleep(0.1)  # Another process's log: a look is all there is.
    assert "policy_reloaded" in log.read_text("utf-8")
    assert "policy_refused" not in log.read_text("utf-8")
