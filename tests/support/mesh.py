"""A lane of its own for each fault: topics on a shared broker, rooms as supervised processes, a ledger."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Retryable
from seawall.local.supervisor import RoomSpec, State, Status, Supervisor
from seawall.runtime import topics
from seawall.runtime.broker import Consumer, Output, Producer, TopicPartition
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.sealing import Sealer
from seawall.runtime.topics import TopicNames, TopicSettings
from tests.support.kafka import PATIENCE_SECONDS, client_settings
from tests.support.ledger import Ledger
from tests.support.stages import AGGREGATOR, PICTURES, SERVICE, WORDS

ROOT = Path(__file__).resolve().parents[2]

_POLICY = """\
name: faults
version: "{version}"
stages: {{prompt: [words], media: [pictures]}}
budgets: {{text: {budget}, image: {budget}, video: {budget}, dataset: {budget}}}
max_attempts: {max_attempts}
thresholds:
  words: {{label: words.score, value: 0.9}}
  pictures: {{label: pictures.score, value: 0.9}}
rules:
  - id: words
    when: evidence.score["words.score"] >= threshold["words"]
    outcome: BLOCK
    reason: WORDS
  - id: pictures
    when: evidence.score["pictures.score"] >= threshold["pictures"]
    outcome: BLOCK
    reason: PICTURES
actors:
  rare: [words.score]
  drip_floor: 0.25
  rules: [{{id: watched, when: actor.pressure >= 3.0, standing: WATCHED, reason: SEVERAL, lasts_hours: 48.0}}]
"""

#: Settings of every room: all pauses short, so that a test waits for the work alone.
_QUICK = {
    "SEAWALL_KAFKA__REQUEST_TIMEOUT_MS": "4000",
    "SEAWALL_KAFKA__DELIVERY_TIMEOUT_MS": "6000",
    "SEAWALL_RPC_SERVER__LINGER_SECONDS": "0",
    "SEAWALL_RPC_SERVER__WORKERS": "4",
    "SEAWALL_RPC_CLIENT__MAX_RECONNECT_BACKOFF_SECONDS": "0.2",
    "SEAWALL_ENGINE__COMMIT_SECONDS": "0.05",
    "SEAWALL_ENGINE__MAX_RETRY_SECONDS": "0.2",
    "SEAWALL_JOIN__COMMIT_SECONDS": "0.05",
    "SEAWALL_JOIN__DEADLINE_CHECK_SECONDS": "0.05",
    "SEAWALL_JOIN__RESCAN_SECONDS": "0.1",
    "SEAWALL_JOIN__MAX_RESCAN_SECONDS": "0.5",
}


def policy_text(*, budget: float, max_attempts: int, version: int) -> str:
    """The policy of the test stages, which blocks what they score at 0.9 or above."""
    return _POLICY.format(budget=budget, max_attempts=max_attempts, version=version)


class Room:
    """One room's process, restarted by the real supervisor when it dies."""

    def __init__(self, lane: Lane, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._lane = lane
        self._changed = asyncio.Event()
        self.statuses: list[Status] = []
        self._supervisor = Supervisor(lane.home, self._report)
        self._supervisor.start([RoomSpec(name, argv, environment)])

    def _report(self, status: Status) -> None:
        self.statuses.append(status)
        self._changed.set()

    @property
    def log(self) -> Path:
        return self._lane.home / "logs" / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return self._supervisor.pids()[self.name]

    @property
    def memory(self) -> int:
        """Its resident bytes now."""
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def deaths(self) -> list[str]:
        """How its processes ended that were not asked to: "ended with SIGKILL; …"."""
        return [status.detail for status in self.statuses if status.state is State.WAITING]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under this name."""
        lines = self.log.read_text("utf-8").splitlines() if self.log.exists() else []
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in logged if line.get("event") == name]

    async def until_told(self, times: int, *names: str, patience: float = PATIENCE_SECONDS) -> None:
        """Wait until it has logged these so often, all together."""
        async with asyncio.timeout(patience):
            while sum(len(self.events(name)) for name in names) < times:  # noqa: ASYNC110  a log tells nobody
                await asyncio.sleep(0.1)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what changes of state bring about."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name}: {self.statuses}\n{self._lane.logs()}") from None

    async def ready(self) -> None:
        """Wait until it is ready."""
        await self._supervisor.ready(timeout=PATIENCE_SECONDS)

    async def unready(self) -> None:
        """Wait until it is alive and not ready."""
        await self.until(lambda: self._supervisor.state(self.name) is State.STARTING)

    async def died(self, count: int = 1) -> None:
        """Wait for its ``count``-th death, and that it was a kill -9."""
        await self.until(lambda: len(self.deaths) >= count)
        assert all("SIGKILL" in death for death in self.deaths), self.deaths

    async def stop(self) -> None:
        """SIGTERM; returns when it is gone."""
        await self._supervisor.stop()


class Lane:
    """Use `open_lane`."""

    def __init__(self, home: Path, sockets: Path, bootstrap_servers: str, partitions: int) -> None:
        self.home = home
        self.sockets = sockets
        self.partitions = partitions
        prefix = f"{uuid4().hex[:8]}."
        self.names = TopicNames(prefix)
        # A platform's client is not ours: it may send what compresses to the topic's limit.
        update = {"topic_prefix": prefix, "max_request_bytes": 16 * 1024 * 1024}
        self.settings = client_settings(bootstrap_servers).model_copy(update=update)
        self.broker = KafkaBroker(self.settings)
        self.ledger = Ledger(self.names)
        self.sealer = Sealer.load_or_create(home / "keys" / "sealing.json")
        self.rooms: list[Room] = []
        self._read_to: dict[TopicPartition, int] = {}
        self.policy()
        self._producer: Producer = self.broker.producer()
        self._reader: Consumer = self.broker.reader([self.names.decisions, self.names.signals, self.names.dead_letters])

    def policy(self, *, budget: float = 120.0, max_attempts: int = 3, version: int = 1) -> Path:
        """Write the lane's policy; rooms that start afterwards read it. The default budget is never spent."""
        path = self.home / "policy.yaml"
        path.write_text(policy_text(budget=budget, max_attempts=max_attempts, version=version), "utf-8")
        return path

    # ---- rooms -------------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """Settings of every room of the lane."""
        return {
            **_QUICK,
            # This tree's own rooms, wherever the environment's distribution was installed from.
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "services"))),
            "SEAWALL_HOME": str(self.home),
            "SEAWALL_KAFKA__BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "SEAWALL_KAFKA__TOPIC_PREFIX": self.names.prefix,
            "SEAWALL_POLICY": str(self.home / "policy.yaml"),
            "SEAWALL_RPC_CLIENT__TARGET": f"unix:{self.sockets / 'service.sock'}",
            "KILL_MARKER": str(self.home / "killed"),
        }

    @property
    def killed(self) -> bool:
        """Whether a kill switch went off."""
        return (self.home / "killed").exists()

    def start(self, room: str, *, name: str = "", kill: str = "", **environment: str) -> Room:
        """Start a room of tests/support/stages.py.

        Args:
            name: also the static membership id; the room's own if empty.
            kill: a point of tests/support/kill_switch.py.
            environment: more settings, without the prefix SEAWALL_ where they have a double underscore.
        """
        name = name or room
        settings = {"SEAWALL_INSTANCE": name}
        if room == SERVICE and "RPC_SERVER__PORT_FILE" not in environment:
            settings["SEAWALL_RPC_SERVER__UDS"] = str(self.sockets / f"{name}.sock")
        if room != SERVICE:
            settings["SEAWALL_KAFKA__INSTANCE"] = name
        if kill:
            settings["KILL_POINT"] = kill
        settings |= {f"SEAWALL_{key}" if "__" in key else key: value for key, value in environment.items()}
        return self._start(name, [sys.executable, "-m", "tests.support.stages", room], settings)

    def run(self, room: str, *, name: str = "", **environment: str) -> Room:
        """Start a room as ``seawall run`` does.

        Args:
            name: of this process, where there are several; the room's own if empty.
            environment: more settings, without the prefix SEAWALL_.
        """
        settings = {f"SEAWALL_{key}": value for key, value in environment.items()}
        if room in ("prompt_scoring", "perceptual_hashing", "classification"):
            settings["SEAWALL_RPC_SERVER__UDS"] = str(self.sockets / "service.sock")
        return self._start(name or room, [sys.executable, "-m", "seawall.cli", "run", room], settings)

    def _start(self, name: str, argv: Sequence[str], settings: Mapping[str, str]) -> Room:
        started = Room(self, name, argv, {**self.environment, **settings})
        self.rooms.append(started)
        return started

    async def start_all(self, **kill: str) -> dict[str, Room]:
        """Start service, both relays and aggregator, and wait until they are ready.

        Args:
            kill: a point by room: ``words="relay.scored"``.
        """
        rooms = {name: self.start(name, kill=kill.get(name, "")) for name in (SERVICE, WORDS, PICTURES, AGGREGATOR)}
        await self.ready(rooms.values())
        return rooms

    async def ready(self, rooms: Iterable[Room]) -> None:
        """Wait until these rooms are ready. One that is to be killed may be ready for a moment only: do not ask."""
        await asyncio.gather(*(room.ready() for room in rooms))

    def logs(self, lines: int = 12) -> str:
        """The ends of all logs, for a failure's message."""
        return "\n".join(
            f"{log.name}: {line}"
            for log in sorted((self.home / "logs").glob("*.log"))
            for line in log.read_text("utf-8").splitlines()[-lines:]
        )

    # ---- records -----------------------------------------------------------------------------------------------------

    def generation(self, generation_id: str, *, media: int = 0, **fields: Any) -> generation_pb2.Generation:
        """A generation with a prompt and so many media items."""
        made = generation_pb2.Generation(
            generation_id=generation_id, attempt=1, modality=generation_pb2.MODALITY_IMAGE, **fields
        )
        made.prompt.CopyFrom(generation_pb2.SealedText(key_id="1", ciphertext=b"sealed"))
        for number in range(media):
            content = generation_pb2.ContentRef(uri=f"file:///content/{number}", sha256=bytes(32))
            made.media.add(item_id=f"output/{number}", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, content=content)
        return made

    async def send(self, *generations: generation_pb2.Generation, partition: int | None = None) -> None:
        """Send generations and enter them in the ledger."""
        records = [(one.generation_id, one.SerializeToString()) for one in generations]
        await self.send_raw(*records, partition=partition)

    async def send_raw(self, *records: tuple[str, bytes | None], partition: int | None = None) -> None:
        """Send values under generation ids, and enter the ids in the ledger."""
        outputs = [Output(self.names.generations, partition, key.encode(), value) for key, value in records]
        self.ledger.sent.update(key for key, _ in records)
        await self._producer.send(outputs)
        self.ledger.acknowledged.update(key for key, _ in records)

    async def send_by_another_client(
        self,
        known_by: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int = 0,
    ) -> None:
        """Send one record as no client of ours would: compressed beyond its size, its envelope anything.

        Args:
            known_by: the generation id by which it must be reported; entered in the ledger.
        """
        producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.bootstrap_servers, max_request_size=1 << 26, compression_type="zstd"
        )
        self.ledger.sent[known_by] += 1
        await producer.start()
        try:
            await producer.send_and_wait(
                self.names.generations,
                value,
                key=known_by.encode() if key is None else key,
                partition=partition,
                headers=list(headers),
            )
        finally:
            await producer.stop()
        self.ledger.acknowledged[known_by] += 1

    async def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Read the lane's topics into the ledger until ``condition`` holds."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition():
                    await self._read()
        except TimeoutError:
            raise AssertionError(f"it never came to pass: {what}\n{self.ledger}\n{self.logs()}") from None

    async def _read(self) -> None:
        try:
            polled = await self._reader.poll(max_records=5_000, timeout=0.2)
        except Retryable:
            # The broker is away: a fault's own doing. Polling goes on when it is back.
            return
        for partition, records in polled.items():
            for record in records:
                self.ledger.observe(record)
                self._read_to[TopicPartition(*partition)] = record.offset + 1

    async def settled(self) -> None:
        """Wait until every acknowledged generation has an outcome that stands, then check the ledger."""
        await self.until(lambda: not self.ledger.unsettled(), "every generation decided")
        await self.read_all()
        self.ledger.check()

    async def finish(self) -> None:
        """As `settled`; then stop every room, and check what they wrote to the last."""
        await self.settled()
        await self.stop()
        await self.read_all()
        self.ledger.check()

    async def stop(self) -> None:
        """Stop every room."""
        await asyncio.gather(*(room.stop() for room in self.rooms))

    async def until_committed(self, group: str) -> None:
        """Wait until a room's group has committed all that there is of generations.v1."""
        topic = self.names.generations
        ends = await self._reader.end_offsets([TopicPartition(topic, number) for number in range(self.partitions)])
        wanted = {partition.partition: end for partition, end in ends.items() if end}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                committed = await self.committed(group)
                if all(committed.get(number, 0) >= end for number, end in wanted.items()):
                    return
                await self._read()

    async def read_all(self) -> None:
        """Read all that is there now."""
        ends = await self._reader.end_offsets(self._reader.assignment())
        await self.until(lambda: all(self._read_to.get(key, 0) >= end for key, end in ends.items()), "read to the end")

    async def committed(self, group: str) -> dict[int, int]:
        """Committed offsets of generations.v1 by partition, of a room's group."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.bootstrap_servers)
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets(f"{self.names.prefix}{group}")
        finally:
            await admin.close()
        return {
            partition.partition: entry.offset
            for partition, entry in offsets.items()
            if partition.topic == self.names.generations and entry.offset >= 0
        }

    async def leaders(self) -> dict[TopicPartition, int]:
        """The node that leads each partition of the lane's topics; -1: none does."""
        return {partition: described["leader"] for partition, described in (await self._described()).items()}

    async def until_in_sync(self, copies: int) -> None:
        """Wait until each partition has so many copies that keep up."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any(len(one["isr"]) < copies for one in (await self._described()).values()):
                await self._read()

    async def _described(self) -> dict[TopicPartition, Any]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.bootstrap_servers)
        await admin.start()
        try:
            topics_there = await admin.describe_topics(list(self.names.all))
        finally:
            await admin.close()
        return {
            TopicPartition(topic["topic"], one["partition"]): one
            for topic in topics_there
            for one in topic["partitions"]
        }

    async def lag(self, group: str) -> int:
        """Records of generations.v1 that a room's group has not committed."""
        partitions = [TopicPartition(self.names.generations, number) for number in range(self.partitions)]
        ends = await self._reader.end_offsets(partitions)
        committed = await self.committed(group)
        return sum(end - committed.get(partition.partition, 0) for partition, end in ends.items())

    async def delete_topic(self, name: str) -> None:
        """Take a topic away, as an operator's mistake would."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.bootstrap_servers)
        await admin.start()
        try:
            await admin.delete_topics([name])
        finally:
            await admin.close()

    async def add_partitions(self, name: str, count: int) -> None:
        """Give a topic more partitions, ``count`` in all, as an operator's mistake would."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.bootstrap_servers)
        await admin.start()
        try:
            await admin.create_partitions({name: NewPartitions(count)})
        finally:
            await admin.close()


@asynccontextmanager
async def open_lane(
    home: Path, bootstrap_servers: str, *, partitions: int = 2, copies: int = 1, apply: bool = True
) -> AsyncIterator[Lane]:
    """A lane with its topics; its rooms are ended when the context is left, however it is left.

    Args:
        copies: of each record; of three, two must acknowledge.
        apply: make the topics.
    """
    # A Unix socket's path is short.
    sockets = Path(tempfile.mkdtemp(prefix="seawall-"))
    (home / "keys").mkdir(parents=True, exist_ok=True)
    lane = Lane(home, sockets, bootstrap_servers, partitions)
    try:
        if apply:
            made = TopicSettings(partitions=partitions, replication_factor=copies)
            await topics.apply(lane.broker, lane.settings, made)
            await lane._reader.start()
        await lane._producer.start()
        yield lane
    finally:
        try:
            await lane.stop()
        finally:
            await lane._producer.stop()
            await lane._reader.stop()
            shutil.rmtree(sockets)


def environment_of(lane: Lane) -> dict[str, str]:
    """The lane's settings over this process's own, for a command that is run to its end."""
    return {**os.environ, **lane.environment}
