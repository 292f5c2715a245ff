"""The body of ``seawall run ledger``."""

from __future__ import annotations

import asyncio
import gc
import signal

import uvloop
from sqlalchemy import Engine as Database

from seawall.core.errors import Retryable
from seawall.ledger import database
from seawall.ledger.engine import Engine
from seawall.ledger.rows import Rows
from seawall.ledger.settings import LedgerSettings
from seawall.ledger.writer import Writer
from seawall.relay.observe import StreamObserver
from seawall.runtime import logging, telemetry, topics
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import load_settings

ROOM = "ledger"
_FORGET_SECONDS = 3_600.0
_LOOK_SECONDS = 0.5
#: Objects made since the last look for garbage that let the collector look again; a batch makes about as many.
_COLLECT_AFTER = 50_000


def main() -> None:
    """Run the ledger until SIGTERM or SIGINT.

    Raises:
        Fatal: bad settings, topics that are missing, a database that is not migrated (a file is migrated here).
    """
    settings = load_settings(LedgerSettings, ROOM)
    logging.setup(settings.telemetry, ROOM, settings.instance)
    telemetry.setup(settings.telemetry, ROOM, settings.instance)
    try:
        uvloop.run(_run(settings))
    finally:
        telemetry.shutdown()


def collect_rarely() -> None:
    """Rows hold no circles, so nothing of a batch is garbage that only the collector finds: at its own pace it would go
    through each batch, and all that was imported, again and again, for two fifths of the time that rows take."""
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


async def _run(settings: LedgerSettings) -> None:
    names = topics.TopicNames(settings.kafka.topic_prefix)
    broker = KafkaBroker(settings.kafka)
    await topics.check_at_start(broker, names)
    db = database.connect(settings.database)
    if db.dialect.name == "sqlite":
        # Nobody else owns the file; a shared database is migrated on purpose, by a person or a Helm hook.
        database.migrate(db)
    database.check_migrated(db)
    collect_rarely()
    observer = StreamObserver(ROOM)
    group, member = f"{settings.kafka.topic_prefix}{ROOM}", settings.kafka.instance
    # A group each, because their topics have different numbers of partitions.
    engines = [
        Engine(
            broker=broker,
            topic=topic,
            group=name,
            member=member,
            add=add,
            writer=Writer(db),
            settings=settings,
            observer=observer,
            compacted=topic == names.overrides,
        )
        for topic, name, add in (
            (names.decisions, group, Rows.add_decision),
            (names.dead_letters, f"{group}.dead_letters", Rows.add_dead_letter),
            (names.overrides, f"{group}.overrides", Rows.add_override),
        )
    ]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for engine in engines:
            engine.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    running = [loop.create_task(engine.run()) for engine in engines]
    beside = [loop.create_task(_tell_ready(engines, observer)), loop.create_task(_forget(db, settings, observer))]
    try:
        done, _ = await asyncio.wait([*running, *beside], return_when=asyncio.FIRST_COMPLETED)
        stop()
        await asyncio.wait(running)
        for task in (*done, *running):
            task.result()
    finally:
        for task in beside:
            task.cancel()
        observer.ready(False)
        db.dispose()


async def _tell_ready(engines: list[Engine], observer: StreamObserver) -> None:
    while True:
        observer.ready(all(engine.is_ready for engine in engines))
        await asyncio.sleep(_LOOK_SECONDS)


async def _forget(db: Database, settings: LedgerSettings, observer: StreamObserver) -> None:
    while True:
        try:
            days = await asyncio.to_thread(database.forget_days, db, settings.retention_days)
        except Retryable as error:
            observer.event("forget_failed", reason=error.reason)
        else:
            if days:
                observer.event("days_forgotten", days=days)
        await asyncio.sleep(_FORGET_SECONDS)
