"""Aggregator: signals per core-second of its process, memory, and how soon it goes on after kill -9.

The default policy plus 20 rules, tracing on (spans to a file), three signals a generation, one in fifty not ALLOW. The
ceiling is the same work without the work: poll both topics, parse every record, put those of a generation together by
its offset, write one record of a decision's size, commit; no join, no policy, no explanation, no trace.

    GENERATIONS=2000000 ./scripts/bench aggregator      the long run for memory; 60,000 otherwise
"""

from __future__ import annotations

import asyncio
import os
import signal as signals
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from seawall.aggregator.settings import AggregatorSettings
from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.runtime import topics
from seawall.runtime.broker import Output, TopicPartition, TopicSpec
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import KafkaSettings
from tests.bench.harness import Report, child, cpu_seconds, create_topics, kafka, resident_mb, say, until

GENERATIONS = int(os.environ.get("GENERATIONS", "60000"))
TAIL = 100_000
PARTITIONS = 8
#: Of the long run, what is written before it is decided: a backlog of minutes, not of days.
_STRETCH = 60_000
_MORE_RULES = 20
_PROMPT_LABELS = (
    "minor_sexual", "minor_sexual_semantic", "minor_sexual_paraphrase", "minor_reference", "benign_context",
    "undressing_request", "real_person_photo",
)  # fmt: skip


def policy(folder: Path) -> Path:
    """The default bundle with 20 rules more, of the kinds that operators write. Returns its folder."""
    bundle = folder / "policy"
    bundle.mkdir()
    document = yaml.safe_load((AggregatorSettings().policy / "policy.yaml").read_text("utf-8"))
    for number in range(_MORE_RULES):
        label = f"classification.extra_{number % 5}"
        document["thresholds"][f"extra_{number}"] = {"label": label, "value": 0.99 - number / 1000}
        conditions = (
            f'evidence.score["{label}"] >= threshold["extra_{number}"] && generation.tenant_id == "tenant-{number}"',
            f'evidence.score["{label}"] >= threshold["extra_{number}"] && '
            "generation.media.exists(m, m.nexus == seawall.api.generation.v1.Nexus.NEXUS_UPLOADED_INPUT)",
            f'evidence.score["{label}"] >= threshold["extra_{number}"] && generation.model.name == "model-{number}"',
        )
        document["rules"].append(
            {"id": f"extra-{number}", "when": conditions[number % 3], "outcome": "REVIEW", "reason": "EXTRA"}
        )
    (bundle / "policy.yaml").write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return bundle


async def run(report: Report) -> None:
    """Drain one backlog with the bare loop and with the aggregator; then kill the aggregator over open generations."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as name:
        folder = Path(name)
        bundle = policy(folder)
        async with kafka() as settings:
            broker = KafkaBroker(settings)
            await topics.apply(broker, settings, topics.TopicSettings(partitions=PARTITIONS))
            await create_topics(broker, [TopicSpec("bare.out", PARTITIONS, {})])
            first = min(GENERATIONS, _STRETCH)
            await _fill(broker, 0, first)
            bare, _, _ = await _drain(broker, "bare", "bare.out", first, settings, folder, bundle)
            rate, memory, grown = await _drain(
                broker, "aggregator", "decisions.v1", GENERATIONS, settings, folder, bundle
            )
        report.add("bare loop", bare, unit="signals/core-s")
        report.add("aggregator", rate, 25_000, unit="signals/core-s")
        report.add("aggregator / bare loop", rate / bare)
        report.add("resident memory", memory, unit="MB")
        report.add(f"its growth over {GENERATIONS:,} generations", grown, 40, op="<=", unit="MB")
        async with kafka() as settings:
            seconds = await _recover(settings, folder, bundle)
        report.add(f"goes on after kill -9, {TAIL:,} open generations", seconds, 10, op="<=", unit="s")


# ---- the backlog -----------------------------------------------------------------------------------------------------


def _generation(number: int) -> generation_pb2.Generation:
    generation = generation_pb2.Generation(
        generation_id=f"01933a7c-{number:012d}",
        attempt=1,
        tenant_id="tenant-a",
        actor_id=f"actor-{number % 5000:06d}",
        modality=generation_pb2.MODALITY_IMAGE,
        model=generation_pb2.ModelRef(name="model", version="1"),
        prompt=generation_pb2.SealedText(key_id="1234567890", ciphertext=bytes(228)),
    )
    generation.media.add(
        item_id="output/0",
        nexus=generation_pb2.NEXUS_MODEL_OUTPUT,
        content=generation_pb2.ContentRef(
            uri=f"s3://bucket/{number:012d}.jpg", sha256=bytes(32), media_type="image/jpeg", size_bytes=65_000
        ),
    )
    return generation


def _signals(number: int, stages: int = 3) -> Iterator[control_pb2.JoinRecord]:
    generation_id = f"01933a7c-{number:012d}"
    scored = {label: 0.01 for label in _PROMPT_LABELS}
    if number % 50 == 0:
        scored |= {"minor_sexual": 0.9, "minor_sexual_semantic": 0.9 if number % 100 else 0.1}
    for stage, labels in (
        ("prompt_scoring", scored),
        ("perceptual_hashing", {}),
        ("classification", {"explicit": 0.05}),
    )[:stages]:
        record = control_pb2.JoinRecord()
        signal = record.signal
        signal.signal_id = identity.signal_id(generation_id, 1, stage)
        signal.generation_id, signal.attempt, signal.stage = generation_id, 1, stage
        at = signal.generation_record
        at.topic, at.partition, at.offset = "generations.v1", number % PARTITIONS, number // PARTITIONS
        item = signal.items.add(status=signal_pb2.ITEM_STATUS_OK)
        prompt = stage == "prompt_scoring"
        item.item_id = "prompt" if prompt else "output/0"
        item.nexus = generation_pb2.NEXUS_ATTEMPT if prompt else generation_pb2.NEXUS_MODEL_OUTPUT
        for label, score in labels.items():
            item.labels.add(label=label, score=score, model="model@1")
        if stage == "perceptual_hashing":
            item.hashes.add(hash_type="pdq", value=bytes(32), quality=90)
            item.hashes.add(hash_type="sha256", value=bytes(32), quality=100)
        signal.artefacts.add(kind=signal_pb2.ARTEFACT_KIND_MODEL, name="model", version="1", sha256=bytes(32))
        times, now = signal.timings, 1_700_000_000_000_000_000
        times.received_unix_nano, times.batched_unix_nano, times.sent_unix_nano = now, now + 1, now + 2
        times.inference_start_unix_nano, times.inference_end_unix_nano, times.produced_unix_nano = now, now, now + 9
        signal.relay_instance, signal.service_instance = f"{stage}-relay-0", f"{stage}-0"
        signal.rpc_attempts, signal.batch_size = 1, 64
        yield record


async def _fill(broker: KafkaBroker, begin: int, end: int, stages: int = 3) -> None:
    say(f"writing generations {begin:,} to {end:,}, {stages} signals each")
    producer = broker.producer()
    await producer.start()
    outputs: list[Output] = []
    for number in range(begin, end):
        generation = _generation(number)
        key, partition = generation.generation_id.encode(), number % PARTITIONS
        trace = (("traceparent", f"00-{number:032x}-{number + 1:016x}-01".encode()),)
        outputs.append(Output("generations.v1", partition, key, generation.SerializeToString(), trace))
        for record in _signals(number, stages):
            outputs.append(Output("signals.v1", partition, key, record.SerializeToString(), trace))
        if len(outputs) >= 8_000:
            await producer.send(outputs)
            outputs = []
    await producer.send(outputs)
    await producer.stop()


def _environment(settings: KafkaSettings, folder: Path, bundle: Path) -> dict[str, str]:
    return {
        "SEAWALL_HOME": str(folder),
        "SEAWALL_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "SEAWALL_KAFKA__INSTANCE": "aggregator-0",
        "SEAWALL_POLICY": str(bundle),
        "SEAWALL_TELEMETRY__SPANS_FILE": str(folder / "spans.jsonl"),
        "SEAWALL_TELEMETRY__LOG_LEVEL": "warning",
    }


# ---- rate and memory -------------------------------------------------------------------------------------------------


async def _drain(
    broker: KafkaBroker, role: str, topic: str, count: int, settings: KafkaSettings, folder: Path, bundle: Path
) -> tuple[float, float, float]:
    """Signals per CPU second of the child that drains, its first tenth (imports, warming up) left out; its memory then,
    and what it grew by from the first stretch's half on, MB."""
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    reader = broker.reader([topic])
    await reader.start()
    written = min(count, _STRETCH)
    marks: list[tuple[int, float]] = []
    spent, done_in = 0.0, 0
    memory: list[float] = []
    arguments = ["-m", "tests.bench.aggregator", role]
    try:
        async with child(arguments, **_environment(settings, folder, bundle)) as process:
            async with asyncio.timeout(90 + count / 500):
                while True:
                    await asyncio.sleep(0.1)
                    if process.returncode is not None:
                        raise RuntimeError(f"the {role} ended with {process.returncode}")
                    done = sum((await reader.end_offsets(partitions)).values())
                    if done >= min(count, _STRETCH) * 0.1 and done < written:
                        marks.append((done, cpu_seconds(process.pid)))
                    if done >= min(count, _STRETCH) * 0.5:
                        memory.append(resident_mb(process.pid))
                    if done >= written * 0.98 and len(marks) > 1:
                        spent, done_in = spent + marks[-1][1] - marks[0][1], done_in + marks[-1][0] - marks[0][0]
                        marks = []
                    if done >= written:
                        if written >= count:
                            break
                        await _fill(broker, written, min(count, written + _STRETCH))
                        written = min(count, written + _STRETCH)
        rate = 3 * done_in / spent
        say(f"{role}: {rate:,.0f} signals per core-second, {memory[-1]:.0f} MB")
        return rate, memory[-1], max(memory[len(memory) // 2 :]) - memory[0]
    finally:
        await reader.stop()


async def _bare() -> None:
    """Poll, parse, put together, produce, commit: as few lines as do it."""
    broker = KafkaBroker(KafkaSettings(bootstrap_servers=os.environ["SEAWALL_KAFKA__BOOTSTRAP_SERVERS"]))
    consumer, producer = broker.consumer("bare", ["generations.v1", "signals.v1"]), broker.producer()
    await consumer.start()
    await producer.start()
    slots = asyncio.Semaphore(8)
    held: dict[tuple[int, int], list[bytes]] = {}

    async def send(outputs: list[Output]) -> None:
        await producer.send(outputs)
        slots.release()

    tasks: set[asyncio.Task[None]] = set()
    while True:
        polled = await consumer.poll(max_records=2_000, timeout=0.5)
        outputs = []
        for (topic, partition), records in polled.items():
            for record in records:
                if topic == "generations.v1":
                    generation_pb2.Generation.FromString(record.value or b"")
                    continue
                offset = control_pb2.JoinRecord.FromString(record.value or b"").signal.generation_record.offset
                together = held.setdefault((partition, offset), [])
                together.append(record.value or b"")
                if len(together) == 3:
                    del held[partition, offset]
                    outputs.append(Output("bare.out", partition, record.key, b"".join(together), record.headers))
        if outputs:
            await slots.acquire()
            task = asyncio.create_task(send(outputs))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if polled:
            await consumer.commit({at: records[-1].offset + 1 for at, records in polled.items()})


# ---- recovery --------------------------------------------------------------------------------------------------------


async def _recover(settings: KafkaSettings, folder: Path, bundle: Path) -> float:
    """Seconds from the start of the process that follows a killed one to a decision in every partition.

    100,000 generations are open, each with one signal of three: all of them have to be read again. Then one complete
    generation a partition, behind them in both topics.
    """
    broker = KafkaBroker(settings)
    await topics.apply(broker, settings, topics.TopicSettings(partitions=PARTITIONS))
    await _fill(broker, 0, TAIL, stages=1)
    environment = _environment(settings, folder, bundle)
    ready = folder / "ready"
    arguments = ["-m", "tests.bench.aggregator", "aggregator"]
    async with child(arguments, **environment, SEAWALL_READY_FILE=str(ready)) as process:
        await until(ready.exists, timeout=60, what="the aggregator")
        os.kill(process.pid, signals.SIGKILL)
        await process.wait()
    end = -(-TAIL // PARTITIONS) * PARTITIONS
    await _fill(broker, end, end + PARTITIONS)
    partitions = [TopicPartition("decisions.v1", number) for number in range(PARTITIONS)]
    reader = broker.reader(["decisions.v1"])
    await reader.start()
    try:
        began = time.monotonic()
        async with child(arguments, **environment), asyncio.timeout(90):
            while not all((await reader.end_offsets(partitions)).values()):  # noqa: ASYNC110  a look is all there is
                await asyncio.sleep(0.05)
            return time.monotonic() - began
    finally:
        await reader.stop()


def _main(role: str) -> None:
    run_role: Any
    if role == "bare":
        import uvloop

        uvloop.run(_bare())
    else:
        from seawall.aggregator.service import main as run_role

        run_role()


if __name__ == "__main__":
    _main(sys.argv[1])
