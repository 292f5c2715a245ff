"""The embedded broker and its clients, with real processes that are really killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from seawall.core.errors import Fatal
from seawall.local import kafka_jars
from seawall.local.kafka import EmbeddedKafka
from seawall.runtime.broker import Output, TopicPartition, TopicSpec
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import seawall_home
from tests.support.kafka import PATIENCE_SECONDS, client_settings, collect, embedded_kafka, unique

pytestmark = pytest.mark.kafka


@pytest.fixture
def cache() -> Path:
    return seawall_home() / "cache"


@pytest.mark.parametrize("packaged", [True, False], ids=["packaged-java", "found-java"])
async def test_it_starts_and_after_kill_9_has_the_same_port_and_records(
    tmp_path: Path, cache: Path, packaged: bool
) -> None:
    java = kafka_jars.packaged_java() if packaged else kafka_jars.find_java()
    kafka = EmbeddedKafka(tmp_path / "kafka", cache=cache, java=java, quick_compiler=True)
    try:
        kafka.start()
        before = kafka.bootstrap_servers
        broker = KafkaBroker(client_settings(before))
        await _create(broker, "survivors")
        await _write(broker, [Output("survivors", 0, None, str(number).encode()) for number in range(100)])
        kafka.kill()
        assert kafka.pid is None
        kafka.start()
        assert kafka.bootstrap_servers == before
        assert len(await _read(broker, "survivors", 100)) == 100
    finally:
        kafka.stop()
    assert not (tmp_path / "kafka" / "broker.pid").exists()


def test_without_any_java_the_packaged_one_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert kafka_jars.find_java() == kafka_jars.packaged_java()


def test_a_java_that_is_too_old_or_broken_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n", encoding="utf-8")
    old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert kafka_jars.find_java() == kafka_jars.packaged_java()
    old.write_text("not a program", encoding="utf-8")
    assert kafka_jars.find_java() == kafka_jars.packaged_java()


def test_a_second_broker_on_the_folder_is_refused_with_the_mend(kafka: EmbeddedKafka, cache: Path) -> None:
    with pytest.raises(Fatal, match=f"BROKER_ALREADY_RUNS.*kill {kafka.pid}"):
        EmbeddedKafka(kafka.log_path.parent, cache=cache).start()


def test_a_port_in_use_is_refused_with_the_mend(tmp_path: Path, cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Fatal, match=f"PORT_TAKEN.*{port}"):
            EmbeddedKafka(tmp_path, cache=cache, port=port).start()


def test_a_folder_kafka_cannot_use_is_fatal_and_says_where_to_look(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "log").write_text("not a folder", encoding="utf-8")
    with pytest.raises(Fatal, match=r"BROKER_.*broker\.log"):
        EmbeddedKafka(tmp_path, cache=cache, quick_compiler=True).start()


def test_a_damaged_or_half_fetched_cache_is_fetched_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {path.name: path for path in kafka_jars.ensure_jars(cache)}
    folder = tmp_path / f"kafka-{kafka_jars.KAFKA_VERSION}"
    folder.mkdir()
    leftover = tmp_path / f"{folder.name}.partial-abandoned"
    leftover.mkdir()
    fetched: list[str] = []

    def download(jars: Sequence[kafka_jars.LockedJar], repository: Path, staged: Path) -> None:
        for jar in jars:
            fetched.append(jar.filename)
            shutil.copy(whole[jar.filename], staged / jar.filename)

    monkeypatch.setattr(kafka_jars, "_download", download)
    jars = kafka_jars.ensure_jars(tmp_path)
    assert sorted(fetched) == sorted(whole)
    assert not leftover.exists()
    jars[0].write_bytes(b"damaged")
    fetched.clear()
    assert kafka_jars.ensure_jars(tmp_path) == jars
    assert fetched


def test_a_jar_that_is_not_the_locked_one_is_refused_and_leaves_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(jars: Sequence[kafka_jars.LockedJar], repository: Path, staged: Path) -> None:
        for jar in jars:
            (staged / jar.filename).write_bytes(b"something else")

    monkeypatch.setattr(kafka_jars, "_download", download)
    with pytest.raises(Fatal, match="JAR_DIGEST_MISMATCH"):
        kafka_jars.ensure_jars(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_lock_names_files_and_digests_but_no_address() -> None:
    jars = kafka_jars.locked_jars()
    assert {"kafka_2.13", "slf4j-simple"} <= {jar.artefact for jar in jars}
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in jars)
    assert not any(":/" in part for jar in jars for part in jar)


_MEMBER = """
import asyncio, sys
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import KafkaSettings

async def main(servers, group, topic):
    # A session so long that a test which had to wait for its end would fail.
    settings = KafkaSettings(bootstrap_servers=servers, session_timeout_ms=600_000, fetch_max_wait_ms=100)
    consumer = KafkaBroker(settings).consumer(group, [topic], instance="member")
    await consumer.start()
    while True:
        for partition, records in (await consumer.poll(max_records=10, timeout=1.0)).items():
            await consumer.commit({partition: records[-1].offset + 1})
            print(*(record.value.decode() for record in records), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_static_member_killed_resumes_at_once_where_it_committed(kafka: EmbeddedKafka) -> None:
    broker = KafkaBroker(client_settings(kafka.bootstrap_servers))
    topic, group = unique("topic"), unique("group")
    await _create(broker, topic)
    seen: list[str] = []
    async with _member(kafka.bootstrap_servers, group, topic) as member:
        await _write(broker, [Output(topic, 0, None, b"one")])
        seen += await _line(member)
        os.kill(member.pid, signal.SIGKILL)
        await member.wait()
        await _write(broker, [Output(topic, 0, None, b"two")])
    async with _member(kafka.bootstrap_servers, group, topic) as member:
        seen += await _line(member)
    assert seen == ["one", "two"]


async def test_a_frozen_broker_loses_nothing(kafka: EmbeddedKafka) -> None:
    """SIGSTOP: connections stay, nothing answers. Whoever was told to retry is heard once it goes on."""
    broker = KafkaBroker(client_settings(kafka.bootstrap_servers))
    topic = unique("topic")
    await _create(broker, topic)
    producer = broker.producer()
    await producer.start()
    try:
        await producer.send([Output(topic, 0, None, b"before")])
        kafka.suspend()
        try:
            sending = asyncio.create_task(producer.send([Output(topic, 0, None, b"during")]))
            await asyncio.wait({sending}, timeout=0.5)
            assert not sending.done()
        finally:
            kafka.resume()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await sending
        assert await _read(broker, topic, 2) == [b"before", b"during"]
    finally:
        await producer.stop()


async def test_a_producer_goes_on_after_the_broker_was_replaced(tmp_path: Path) -> None:
    with embedded_kafka(tmp_path) as kafka:
        broker = KafkaBroker(client_settings(kafka.bootstrap_servers))
        await _create(broker, "replaced")
        producer = broker.producer()
        await producer.start()
        try:
            await producer.send([Output("replaced", 0, None, b"0")])
            sending = []
            for number in range(1, 6):
                sending.append(asyncio.create_task(producer.send([Output("replaced", 0, None, str(number).encode())])))
                if number == 2:
                    await asyncio.to_thread(kafka.kill)
            await asyncio.to_thread(kafka.start)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*sending)
            await producer.send([Output("replaced", 0, None, b"6")])
            # Idempotent: what was retried is there once.
            assert set(await _read(broker, "replaced", 7)) == {str(number).encode() for number in range(7)}
            reader = broker.reader(["replaced"])
            await reader.start()
            assert dict(await reader.end_offsets([TopicPartition("replaced", 0)])) == {TopicPartition("replaced", 0): 7}
            await reader.stop()
        finally:
            await producer.stop()


@asynccontextmanager
async def _member(servers: str, group: str, topic: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _MEMBER, servers, group, topic, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _line(member: asyncio.subprocess.Process) -> list[str]:
    assert member.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        return (await member.stdout.readline()).decode().split()


async def _create(broker: KafkaBroker, topic: str) -> None:
    admin = broker.admin()
    await admin.start()
    await admin.create([TopicSpec(topic, 1, {})], 1)
    await admin.stop()


async def _write(broker: KafkaBroker, outputs: list[Output]) -> None:
    producer = broker.producer()
    await producer.start()
    await producer.send(outputs)
    await producer.stop()


async def _read(broker: KafkaBroker, topic: str, count: int) -> list[bytes | None]:
    reader = broker.reader([topic])
    await reader.start()
    try:
        return [record.value for record in await collect(reader, count)]
    finally:
        await reader.stop()
