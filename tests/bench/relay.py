"""Relay engine: events per core-second of the relay's process, echo service, batches of 64, real Kafka and gRPC.

The ceiling is the same loop with nothing in it: poll, one RPC a batch of raw bytes, produce, commit; no protobuf, no
trace context, no watermark, no dead letters.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.prompt_scoring.stage import STAGE
from seawall.relay.run import run as run_relay
from seawall.runtime import topics
from seawall.runtime.broker import Output, TopicPartition, TopicSpec
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import KafkaSettings
from tests.bench.harness import Report, child, cpu_seconds, create_topics, kafka, say, until

EVENTS = 240_000
PARTITIONS = 4
BATCH = 64
_ECHO = "/seawall.bench.Echo/Echo"


async def run(report: Report) -> None:
    """Drain the same backlog with the raw loop and with the relay."""
    async with kafka() as settings:
        broker = KafkaBroker(settings)
        await topics.apply(broker, settings, topics.TopicSettings(partitions=PARTITIONS))
        await create_topics(broker, [TopicSpec("raw.out", PARTITIONS, {})])
        await _fill(broker)
        with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
            socket = f"unix:{folder}/echo.sock"
            async with child(["-m", "tests.bench.relay", "echo", socket]):
                await until(Path(folder, "echo.sock").exists, timeout=30, what="the echo service")
                raw = await _drain(broker, settings, "raw", "raw.out", socket)
                relay = await _drain(broker, settings, "relay", "signals.v1", socket)
    report.add("raw loop", raw, unit="ev/core-s")
    report.add("relay", relay, 40_000, unit="ev/core-s")
    report.add("relay / raw loop", relay / raw)


async def _fill(broker: KafkaBroker) -> None:
    say(f"writing {EVENTS:,} events")
    producer = broker.producer()
    await producer.start()
    outputs = []
    for number in range(EVENTS):
        generation = generation_pb2.Generation(
            generation_id=f"01933a7c-{number:012d}",
            attempt=1,
            tenant_id="tenant-a",
            actor_id=f"actor-{number % 5000:06d}",
            modality=generation_pb2.MODALITY_IMAGE,
            model=generation_pb2.ModelRef(name="model", version="1"),
            prompt=generation_pb2.SealedText(key_id="1234567890", ciphertext=bytes(228)),
        )
        trace = f"00-{number:032x}-{number + 1:016x}-01".encode()
        outputs.append(
            Output(
                "generations.v1",
                number % PARTITIONS,
                generation.generation_id.encode(),
                generation.SerializeToString(),
                (("traceparent", trace),),
            )
        )
        if len(outputs) == 10_000:
            await producer.send(outputs)
            outputs = []
    await producer.send(outputs)
    await producer.stop()


async def _drain(broker: KafkaBroker, settings: KafkaSettings, role: str, topic: str, socket: str) -> float:
    """Events per CPU second of the child that drains the backlog, its first tenth (imports, warming up) left out."""
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    reader = broker.reader([topic])
    await reader.start()
    environment = {
        "SEAWALL_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "SEAWALL_RPC_CLIENT__TARGET": socket,
        "SEAWALL_ENGINE__BATCH_SIZE": str(BATCH),
        "SEAWALL_ENGINE__MAX_IN_FLIGHT": "768",
        "SEAWALL_ENGINE__MAX_RPCS": "8",
        "SEAWALL_KAFKA__LINGER_MS": "5",
    }
    try:
        async with child(["-m", "tests.bench.relay", role], **environment) as process:
            marks: list[tuple[int, float]] = []
            async with asyncio.timeout(180):
                while not marks or marks[-1][0] < EVENTS * 0.98:
                    await asyncio.sleep(0.1)
                    if process.returncode is not None:
                        raise RuntimeError(f"the {role} ended with {process.returncode}")
                    done = sum((await reader.end_offsets(partitions)).values())
                    if done >= EVENTS * 0.1:
                        marks.append((done, cpu_seconds(process.pid)))
            rate = (marks[-1][0] - marks[0][0]) / (marks[-1][1] - marks[0][1])
            say(f"{role}: {rate:,.0f} events per core-second")
            return rate
    finally:
        await reader.stop()


# ---- the child processes ---------------------------------------------------------------------------------------------


async def _echo(address: str) -> None:
    async def score(request: Any, context: object) -> Any:
        reply = prompt_scoring_pb2.ScorePromptsResponse(service_instance="echo-0")
        for item in request.items:
            result = reply.replies.add(id=item.id, work_nanos=1).result
            result.status = signal_pb2.ITEM_STATUS_OK
            result.labels.add(label="minor_sexual", score=0.01)
        reply.artefacts.add(kind=signal_pb2.ARTEFACT_KIND_MODEL, name="echo", version="1", sha256=bytes(32))
        return reply

    async def echo(body: bytes, context: object) -> bytes:
        return body

    unary = grpc.unary_unary_rpc_method_handler
    typed = unary(
        score,
        request_deserializer=prompt_scoring_pb2.ScorePromptsRequest.FromString,
        response_serializer=prompt_scoring_pb2.ScorePromptsResponse.SerializeToString,
    )
    server = grpc.aio.server()
    for method, handler in ((STAGE.method, typed), (_ECHO, unary(echo))):
        service, name = method[1:].split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


async def _raw() -> None:
    """Poll, call, produce, commit: as few lines as do it, eight calls in flight as the relay has."""
    from seawall.relay.settings import RelaySettings
    from seawall.runtime.settings import load_settings

    settings = load_settings(RelaySettings, "prompt_scoring.relay")
    broker = KafkaBroker(settings.kafka)
    consumer, producer = broker.consumer("raw", ["generations.v1"]), broker.producer()
    await consumer.start()
    await producer.start()
    call = grpc.aio.insecure_channel(settings.rpc_client.target).unary_unary(_ECHO)
    slots = asyncio.Semaphore(8)

    async def carry(records: Sequence[Any]) -> None:
        await call(b"".join(record.value for record in records), timeout=5)
        await producer.send([Output("raw.out", r.partition, r.key, r.value, r.headers) for r in records])
        slots.release()

    tasks: set[asyncio.Task[None]] = set()
    while True:
        polled = await consumer.poll(max_records=1024, timeout=0.5)
        records = [record for batch in polled.values() for record in batch]
        for start in range(0, len(records), BATCH):
            await slots.acquire()
            task = asyncio.create_task(carry(records[start : start + BATCH]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if polled:
            await consumer.commit({partition: batch[-1].offset + 1 for partition, batch in polled.items()})


if __name__ == "__main__":
    role = sys.argv[1]
    if role == "echo":
        asyncio.run(_echo(sys.argv[2]))
    elif role == "raw":
        asyncio.run(_raw())
    else:
        run_relay(STAGE)
