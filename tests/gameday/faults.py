"""What can be broken, how, and what shows that it is mended. Whoever solves it is told none of this."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import yaml
from aiokafka.admin import AIOKafkaAdminClient

from seawall.local.mesh import KAFKA, Mesh
from seawall.local.supervisor import pid_file
from seawall.runtime.broker import Output
from seawall.runtime.topics import TopicNames
from tests.support.otlp import Stoppable

#: Records that nobody can read: fewer and more than what trips the fuse of each room that meets them.
FEW, MANY = 3, 40


class Game:
    """A mesh, and what a fault may reach in it."""

    def __init__(self, mesh: Mesh, collector: Stoppable) -> None:
        self.mesh = mesh
        self.home = mesh.home
        self.collector = collector
        self.names = TopicNames()

    def kill(self, room: str, number: signal.Signals) -> None:
        os.kill(self.mesh.pids()[room], number)

    async def send(self, count: int, word: str) -> None:
        """Records to generations.v1 that are no generations, all to one partition."""
        producer = self.mesh.broker().producer()
        await producer.start()
        try:
            keys = [f"gameday-{word}-{number}".encode() for number in range(count)]
            await producer.send([Output(self.names.generations, 0, key, b"\xff\xfe no generation") for key in keys])
        finally:
            await producer.stop()

    async def delete_topic(self, name: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.mesh.kafka.bootstrap_servers)
        await admin.start()
        try:
            await admin.delete_topics([name])
        finally:
            await admin.close()

    async def restarted(self, room: str) -> None:
        """Kill a room and wait until its next process runs, ready or not."""
        before = self.mesh.pids()[room]
        self.kill(room, signal.SIGKILL)
        path = pid_file(self.home / "run", room)
        async with asyncio.timeout(60):
            while not (path.exists() and path.read_text().strip() not in ("", str(before))):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


class Fault(NamedTuple):
    """A way to break the mesh."""

    name: str
    #: For the end of the game.
    story: str
    inject: Callable[[Game], Awaitable[None]]
    #: What the on-call must have found: words of a finding of theirs.
    finding: str


async def _stop_relay(game: Game) -> None:
    game.kill("classification.relay", signal.SIGSTOP)


async def _hang_scorer(game: Game) -> None:
    game.kill("prompt_scoring", signal.SIGSTOP)


async def _stop_aggregator(game: Game) -> None:
    game.kill("aggregator", signal.SIGSTOP)


async def _kill_scorer(game: Game) -> None:
    await game.restarted("classification")


async def _stop_kafka(game: Game) -> None:
    game.kill(KAFKA, signal.SIGSTOP)


async def _poison(game: Game) -> None:
    await game.send(FEW, "poison")


async def _blow_fuses(game: Game) -> None:
    await game.send(MANY, "fuse")


async def _delete_topic(game: Game) -> None:
    await game.delete_topic(game.names.actor_standing)


async def _expire_bank(game: Game) -> None:
    card = game.home / "banks" / "demo" / "bank.yaml"
    content = yaml.safe_load(card.read_text("utf-8"))
    content["expires"] = (datetime.now(UTC) - timedelta(minutes=1)).isoformat(timespec="seconds")
    card.write_text(yaml.safe_dump(content), "utf-8")
    await game.restarted("perceptual_hashing")


async def _alter_model(game: Game) -> None:
    model = game.home / "models" / "opennsfw" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 0xFF
    # In one step, as a copy that went wrong would appear.
    part = model.with_suffix(".part")
    part.write_bytes(content)
    part.replace(model)


async def _collector_gone(game: Game) -> None:
    await asyncio.to_thread(game.collector.stop)


FAULTS = (
    Fault("scorer-killed", "the classification service was killed; it came back by itself", _kill_scorer, "restarted"),
    Fault("relay-stopped", "the relay of classification was stopped (SIGSTOP)", _stop_relay, "classification.relay"),
    Fault("scorer-hangs", "the prompt scoring service hangs (SIGSTOP)", _hang_scorer, "prompt_scoring hangs"),
    Fault("aggregator-stopped", "the aggregator was stopped (SIGSTOP)", _stop_aggregator, "aggregator hangs"),
    Fault("poison-records", f"{FEW} records that are no generations were sent", _poison, "UNDECODABLE"),
    Fault("fuse-blown", f"{MANY} records that are no generations: every reader's fuse", _blow_fuses, "FUSE_TRIPPED"),
    Fault("topic-missing", "a topic was deleted", _delete_topic, "actor_standing.v1 is missing"),
    Fault("bank-expired", "the only list of known pictures has expired", _expire_bank, "NO_BANKS"),
    Fault("model-altered", "a model's file was altered while it served", _alter_model, "refused a changed model"),
    Fault("broker-stopped", "Kafka was stopped (SIGSTOP)", _stop_kafka, "BROKER_UNAVAILABLE"),
    Fault("collector-gone", "the collector of traces went away", _collector_gone, "spans"),
)


def prepare(home: Path, shared: Path) -> None:
    """A home whose jars are shared and whose models are its own, to be altered; and what an on-call has at hand."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "cache").symlink_to(shared / "cache", target_is_directory=True)
    shutil.copytree(shared / "models", home / "models")
    spare = home / "spare"
    spare.mkdir()
    shutil.copytree(shared / "models" / "opennsfw", spare / "opennsfw")
    (spare / "list.csv").write_text("entry_id,hash_type,value\nspare-1,md5," + "ab" * 16 + "\n", "utf-8")
    card = {
        "name": "spare",
        "source": "a stand-in",
        "version": "2",
        "category": "benign_stand_in",
        "pipeline": "full",
        "licence": "none",
        "files": {"list.csv": "0" * 64},
    }
    (spare / "bank.yaml").write_text(yaml.safe_dump(card), "utf-8")
