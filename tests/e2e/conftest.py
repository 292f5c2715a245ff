"""One real mesh for the whole session: `seawall up --with console` as a process of its own, in a temporary home."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seawall.local import demo
from seawall.local.demo import Summary
from seawall.local.mesh import ROOMS
from seawall.local.models.install import install_demo
from seawall.local.platform import Platform
from seawall.local.samples import Sample, stream
from seawall.runtime.content import ContentStore
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import ContentSettings, KafkaSettings, SealingSettings
from seawall.runtime.topics import TopicNames
from tests.support.otlp import Received, collector

SAMPLES_PER_CATEGORY = 4


def shared_home() -> Path:
    """Where jars, wheels and models are kept between runs; SEAWALL_CACHE or ~/.seawall."""
    return Path(os.environ.get("SEAWALL_CACHE") or Path.home() / ".seawall")


@dataclass(frozen=True)
class UpMesh:
    """A mesh that `seawall up` runs."""

    home: Path
    bootstrap_servers: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SEAWALL_HOME": str(self.home)}

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    @property
    def content(self) -> ContentSettings:
        return ContentSettings(allowed_prefixes=[(self.home / "content").as_uri() + "/"])

    @property
    def sealing(self) -> SealingSettings:
        return SealingSettings(keyset=self.home / "keys" / "sealing.json")

    def seawall(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "seawall.cli", *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def seawall_json(self, *arguments: str) -> Any:
        """The JSON document that a command prints."""
        done = self.seawall(*arguments, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def whole_status(self) -> Any:
        """What `status` says once every room is ready: a test before may have killed the broker, and not waited for
        the rooms that no decision waits for."""
        give_up = time.monotonic() + 60
        while not (document := self.seawall_json("status"))["healthy"] and time.monotonic() < give_up:
            time.sleep(0.2)
        return document

    def pid_of(self, room: str) -> int:
        """The process id of a room, or of the broker, now."""
        path = self.home / ("kafka/broker.pid" if room == "kafka" else f"run/{room}.ready")
        return int(path.read_text())

    def new_pid_of(self, room: str, before: int) -> int:
        """The process id of a room that takes over from another; the old one if that takes too long."""
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            try:
                if (pid := self.pid_of(room)) != before:
                    return pid
            except (FileNotFoundError, ValueError):
                pass  # it is not ready yet, and the file that says so is all that could be awaited
            time.sleep(0.05)
        return before

    def pids(self) -> dict[str, int]:
        """Process ids of all rooms."""
        return {room: self.pid_of(room) for room in ROOMS}


def make_home(home: Path) -> Path:
    """A home folder of its own that shares jars and models."""
    shared = shared_home()
    shared.mkdir(parents=True, exist_ok=True)
    install_demo(shared, lambda line: None)
    (shared / "cache").mkdir(exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    for folder in ("cache", "models"):
        (home / folder).symlink_to(shared / folder, target_is_directory=True)
    # Named from the start, so that a test can change it under the running mesh.
    (home / "rollout.yaml").write_text("active: [models/opennsfw]\n")
    return home


@pytest.fixture(scope="session")
def _collector() -> Iterator[tuple[str, Received]]:
    with collector() as running:
        yield running


@pytest.fixture(scope="session")
def received(_collector: tuple[str, Received]) -> Received:
    """What the mesh's rooms have sent over OTLP."""
    return _collector[1]


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, _collector: tuple[str, Received]) -> Iterator[UpMesh]:
    home = make_home(tmp_path_factory.mktemp("mesh") / "home")
    output = home / "up.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "seawall.cli", "up", "--with", "console"],
            env={
                **os.environ,
                "SEAWALL_HOME": str(home),
                "SEAWALL_ROLLOUT": str(home / "rollout.yaml"),
                "SEAWALL_TELEMETRY__OTLP_ENDPOINT": _collector[0],
                "SEAWALL_TELEMETRY__METRICS_INTERVAL_SECONDS": "2",
                "SEAWALL_HTTP__PORT": "0",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        announced = home / "run" / "mesh.json"
        for line in _follow(output, process):
            if line.startswith("ready"):
                break
        else:
            pytest.fail(f"seawall up ended with {process.returncode}:\n{output.read_text()}")
        yield UpMesh(home, json.loads(announced.read_text())["bootstrap_servers"], process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def _follow(path: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The lines that a process writes to a file, until it ends."""
    with path.open(encoding="utf-8") as file:
        while True:
            if line := file.readline():
                yield line
            elif process.poll() is not None:
                return
            else:
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue


def logs_of(mesh: UpMesh, lines: int = 3) -> str:
    """The ends of the rooms' logs, for a failure's message."""
    paths = [mesh.home / "up.log", *sorted((mesh.home / "logs").glob("*.log"))]
    return "\n".join(f"{path.name}: {line}" for path in paths for line in path.read_text().splitlines()[-lines:])


def send_samples(mesh: UpMesh, chosen: list[Sample]) -> Summary:
    """Send samples through the mesh; what became of them."""

    async def run() -> Summary:
        sealer = Sealer.load(mesh.sealing.keyset)
        async with Platform.open(KafkaBroker(mesh.kafka), sealer, ContentStore(mesh.content), TopicNames()) as platform:
            return await demo.run(platform, chosen, mesh.pids)

    return asyncio.run(run())


@pytest.fixture(scope="session")
def samples_run(mesh: UpMesh) -> Summary:
    """Some samples of every category, sent through the mesh; what became of them."""
    chosen: list[Sample] = []
    for sample in stream():
        if sum(one.category == sample.category for one in chosen) < SAMPLES_PER_CATEGORY or sample.spoil:
            chosen.append(sample)
    return send_samples(mesh, chosen)
