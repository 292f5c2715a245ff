"""The body of ``seawall run perceptual_hashing.retroactive``."""

from __future__ import annotations

import asyncio
import signal

import uvloop

from seawall.perceptual_hashing.retroactive import pairs
from seawall.perceptual_hashing.retroactive.engine import Engine
from seawall.perceptual_hashing.retroactive.late import ROOM
from seawall.perceptual_hashing.retroactive.settings import RetroactiveSettings
from seawall.relay.observe import StreamObserver
from seawall.runtime import logging, metrics, telemetry, topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import load_settings


class RetroactiveObserver(StreamObserver):
    """Observer of the room's engine."""

    def held(self, hashes: int, entries: int) -> None:
        """Tell the gauges."""
        metrics.RETROACTIVE_HELD.set(hashes, {metrics.HELD_KIND: "pictures"})
        metrics.RETROACTIVE_HELD.set(entries, {metrics.HELD_KIND: "entries"})

    def wrote(self, signals: int) -> None:
        """Count, and say so: each may have changed a decision."""
        metrics.RETROACTIVE_SIGNALS.add(signals)
        self.event("late_signals", signals=signals)


def main() -> None:
    """Run the room until SIGTERM or SIGINT.

    Raises:
        Fatal: bad settings, topics that are missing.
    """
    settings = load_settings(RetroactiveSettings, ROOM)
    logging.setup(settings.telemetry, ROOM, settings.instance)
    telemetry.setup(settings.telemetry, ROOM, settings.instance)
    try:
        uvloop.run(_run(settings))
    finally:
        telemetry.shutdown()


async def _run(settings: RetroactiveSettings) -> None:
    prefix = settings.kafka.topic_prefix
    names = topics.TopicNames(prefix)
    broker = KafkaBroker(settings.kafka)
    await topics.check_at_start(broker, names)
    pairs.warm()
    engine = Engine(
        broker=broker,
        names=names,
        group=f"{prefix}{ROOM}",
        member=settings.kafka.instance,
        settings=settings,
        observer=RetroactiveObserver(ROOM),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop)
    await engine.run()
