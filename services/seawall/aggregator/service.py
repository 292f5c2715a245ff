"""The body of ``seawall run aggregator``."""

from __future__ import annotations

import asyncio
import gc
import signal
from functools import partial

import uvloop

from seawall.aggregator.engine import Engine
from seawall.aggregator.settings import AggregatorSettings
from seawall.aggregator.traces import AggregatorObserver
from seawall.core.clock import SystemClock
from seawall.core.policy import Rollout
from seawall.core.policy.archive import Archive
from seawall.core.policy.reload import Reloader
from seawall.relay.dead_letters import DeadLetters
from seawall.runtime import logging, metrics, telemetry, topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.room_status import status
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import load_settings

ROOM = "aggregator"
#: Objects more than before that make the garbage collector look; Python's own 700 suit programs with few.
COLLECT_AFTER = 50_000


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
    rollout = Rollout.load(settings.policy)
    prefix = settings.kafka.topic_prefix
    names = topics.TopicNames(prefix)
    broker = KafkaBroker(settings.kafka)
    await topics.check_at_start(broker, names)
    observer = AggregatorObserver(ROOM, names, settings.traces)
    engine = Engine(
        broker=broker,
        rollout=rollout,
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
        observer=observer,
    )
    metrics.JOINS_OPEN.watch(lambda: [(engine.waiting().open, {})])
    metrics.JOINS_EARLY.watch(lambda: [(engine.waiting().early, {})])
    metrics.RESCANS_WAITING.watch(lambda: [(engine.waiting().rescans, {})])
    status.about("waiting", lambda: engine.waiting()._asdict())
    status.about("policies", engine.policies)
    # Open joins are many small objects without cycles: the collector would look through them all, again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, engine.stop)
    archive = Archive(settings.policy_archive)
    reloader = Reloader(settings.policy, rollout, engine.use, observer.event, archive)
    if not settings.policy_reload_seconds:
        await engine.run()
        return
    reloading = loop.create_task(reloader.run(settings.policy_reload_seconds))
    reloading.add_done_callback(partial(_reload_ended, observer))
    try:
        await engine.run()
    finally:
        reloading.cancel()


def _reload_ended(observer: AggregatorObserver, task: asyncio.Task[None]) -> None:
    """What decides goes on deciding; that no change is taken up any more must be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        observer.event("policy_reload_crashed", error=error, reason=type(error).__name__)
