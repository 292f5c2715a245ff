"""The body of ``seawall run <stage>.relay``."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import Any

import uvloop

from seawall.core.clock import SystemClock
from seawall.relay.dead_letters import DeadLetters
from seawall.relay.engine import Engine
from seawall.relay.observe import RelayObserver
from seawall.relay.settings import RelaySettings
from seawall.relay.stage import Stage, StageReply
from seawall.runtime import logging, telemetry, topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.rpc_client import StageClient
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import load_settings


def run(stage: Stage) -> None:
    """Run the relay of ``stage`` until SIGTERM or SIGINT.

    Raises:
        Fatal: bad settings, topics that are missing or not co-partitioned, a fuse that tripped.
    """
    room = f"{stage.name}.relay"
    settings = load_settings(RelaySettings, room)
    logging.setup(settings.telemetry, room, settings.instance)
    telemetry.setup(settings.telemetry, room, settings.instance)
    try:
        uvloop.run(_run(stage, room, settings))
    finally:
        telemetry.shutdown()


async def _run(stage: Stage, room: str, settings: RelaySettings) -> None:
    prefix = settings.kafka.topic_prefix
    names = topics.TopicNames(prefix)
    broker = KafkaBroker(settings.kafka)
    await topics.check_at_start(broker, names)
    client: StageClient[Any, StageReply] = StageClient(
        settings.rpc_client, stage.method, stage.request_type, stage.response_type
    )

    async def call(
        request: Any, *, timeout: float, wait_for_ready: bool, context: telemetry.TraceContext
    ) -> StageReply:
        return await client.call(request, timeout, telemetry.metadata(context), wait_for_ready=wait_for_ready)

    engine = Engine(
        stage=stage,
        broker=broker,
        call=call,
        dead_letters=DeadLetters(
            room=stage.name,
            instance=settings.instance,
            topic=names.dead_letters,
            sealer=Sealer.from_settings(settings.sealing),
            clock=SystemClock(),
        ),
        generations_topic=names.generations,
        signals_topic=names.signals,
        # The consumer group is the room's name, below the lane's prefix.
        group=f"{prefix}{stage.name}",
        instance=settings.instance,
        member=settings.kafka.instance,
        settings=settings.engine,
        observer=RelayObserver(stage.name, names.generations),
    )
    # What lives now lives to the end, and what comes later is freed by reference counts: a collector that looks at all
    # of it every few hundred records would cost more than the signals it looks at.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop)
    try:
        await engine.run()
    finally:
        await client.close()
