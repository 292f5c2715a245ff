"""The body of ``seawall run aggregator``."""

from __future__ import annotations

import asyncio
import signal

import uvloop

from seawall.aggregator.engine import Engine
from seawall.aggregator.settings import AggregatorSettings
from seawall.aggregator.traces import AggregatorObserver
from seawall.core.clock import SystemClock
from seawall.core.policy import Policy
from seawall.relay.dead_letters import DeadLetters
from seawall.runtime import logging, telemetry, topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import load_settings

ROOM = "aggregator"


def main() -> None:
    """Run the aggregator until SIGTERM or SIGINT.

    Raises:
        Fatal: bad settings or policy, topics that are missing or not co-partitioned, a fuse that tripped.
    """
    settings = load_settings(AggregatorSettings, ROOM)
    logging.setup(settings.telemetry, ROOM, settings.instance)
    telemetry.setup(settings.telemetry, ROOM, settings.instance)
    try:
        uvloop.run(_run(settings))
    finally:
        telemetry.shutdown()


async def _run(settings: AggregatorSettings) -> None:
    policy = Policy(settings.policy)
    prefix = settings.kafka.topic_prefix
    names = topics.TopicNames(prefix)
    broker = KafkaBroker(settings.kafka)
    await topics.check_at_start(broker, names)
    engine = Engine(
        broker=broker,
        policy=policy,
        dead_letters=DeadLetters(
            room=ROOM,
            instance=settings.instance,
            topic=names.dead_letters,
            sealer=Sealer.from_settings(settings.sealing),
            clock=SystemClock(),
        ),
        generations_topic=names.generations,
        signals_topic=names.signals,
        decisions_topic=names.decisions,
        group=f"{prefix}{ROOM}",
        member=settings.kafka.instance,
        settings=settings.join,
        observer=AggregatorObserver(ROOM, names, settings.traces),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop)
    await engine.run()
