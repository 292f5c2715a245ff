"""The body of ``seawall run actor_history``."""

from __future__ import annotations

import asyncio

import faust

from seawall.actor_history.app import ROOM, make_app
from seawall.actor_history.outputs import Outputs
from seawall.actor_history.rules import Rules
from seawall.actor_history.settings import ActorHistorySettings
from seawall.core.clock import SystemClock
from seawall.core.policy.archive import Archive
from seawall.relay.dead_letters import DeadLetters
from seawall.relay.observe import StreamObserver
from seawall.runtime import logging, telemetry, topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.room_status import status
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import load_settings


def main() -> None:
    """Run actor_history until SIGTERM or SIGINT.

    Raises:
        Fatal: bad settings, a policy without actor rules, topics that are missing or not as they must be.
    """
    settings = load_settings(ActorHistorySettings, ROOM)
    logging.setup(settings.telemetry, ROOM, settings.instance)
    telemetry.setup(settings.telemetry, ROOM, settings.instance)
    names = topics.TopicNames(settings.kafka.topic_prefix)
    try:
        partitions = asyncio.run(_partitions(settings, names))
        letters = DeadLetters(
            room=ROOM,
            instance=settings.instance,
            topic=names.dead_letters,
            sealer=Sealer.from_settings(settings.sealing),
            clock=SystemClock(),
        )
        observer = StreamObserver(ROOM)
        settings.state.mkdir(parents=True, exist_ok=True)
        rules = Rules(settings.policy, Archive(settings.policy_archive), observer)
        status.about("policies", rules.describe)
        outputs = Outputs(KafkaBroker(settings.kafka), observer)
        app = make_app(settings, names, partitions, letters, rules, outputs, observer)
        try:
            faust.Worker(app, loglevel="WARN", override_logging=False, quiet=True).execute_from_commandline()
        finally:
            observer.ready(False)
    finally:
        telemetry.shutdown()


async def _partitions(settings: ActorHistorySettings, names: topics.TopicNames) -> int:
    broker = KafkaBroker(settings.kafka)
    await topics.check_at_start(broker, names)
    admin = broker.admin()
    await admin.start()
    try:
        return (await admin.partitions([names.actor_events]))[names.actor_events]
    finally:
        await admin.stop()
