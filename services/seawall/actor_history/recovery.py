"""The order in which Faust takes partitions up again, mended. Pinned below faust-streaming 0.16.

Once its tables are read back, Faust lets the streams' partitions go, then seeks their committed offsets, then clears
the streams' queues, all beside a thread that fetches. What that thread brings in between is cleared with the queues or
comes twice, and counts as a gap in what was read. Gaps are committed past, so it is lost; or, where some of it was
worked off, they are committed one record at a time (faust-streaming issue 596). Here nothing is fetched while offsets
are sought, and nothing is let go before the queues are empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import faust
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, TransportT


class SeekingThread(driver.AIOKafkaConsumerThread):
    """Fetches, or seeks: what comes of a fetch after a seek was fetched after it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_at_a_time = asyncio.Lock()

    async def _fetch_records(self, *arguments: Any, **options: Any) -> Any:
        async with self._one_at_a_time:
            return await super()._fetch_records(*arguments, **options)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Once no fetch is on its way (it ends within a second)."""
        return cast(Mapping[TP, int], await self.call_thread(self._seek))

    async def _seek(self) -> Mapping[TP, int]:
        async with self._one_at_a_time:
            consumer = self._ensure_consumer()
            committed = cast(Mapping[TP, int], await consumer.seek_to_committed())
            # Which leaves alone what has no offset yet, though some of it may have been fetched, and put aside, before.
            tables = self.app.tables.changelog_topics
            if begin := [tp for tp, offset in committed.items() if not offset and tp.topic not in tables]:
                await consumer.seek_to_beginning(*begin)
            return committed


class OrderedConsumer(driver.Consumer):
    """Its thread does one of both at a time."""

    def _new_consumer_thread(self) -> SeekingThread:
        return SeekingThread(self, loop=self.loop, beacon=self.beacon)


class OrderedTransport(driver.Transport):
    """Makes such consumers."""

    Consumer = OrderedConsumer


class OrderedRecovery(Recovery):
    """Seeks, clears, and only then lets the streams' partitions go."""

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        """Faust's own, but for the order."""
        app, consumer = cast(faust.App, self.app), self.app.consumer
        await app.on_rebalance_complete.send()
        self._set_recovery_ended()
        for table in self.tables.values():
            await table.on_recovery_completed(self.actives_for_table[table], self.standbys_for_table[table])
        if app.consumer_generation_id != generation_id:
            return  # another rebalance is on, and ends here in its turn
        assignment = consumer.assignment()
        if assignment:
            await self._wait(consumer.perform_seek(), timeout=app.conf.broker_request_timeout)
        self.completed.set()
        app.flow_control.resume()
        consumer.resume_partitions({tp for tp in assignment if not self._is_changelog_tp(tp)})
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        if not app.assignor.assigned_standbys():
            self.tables.on_standbys_ready()
        app.on_rebalance_end()


class OrderedTables(TableManager):
    """Recovers in order."""

    async def on_start(self) -> None:
        """At once: the one table is declared before anything starts (Faust waits a second for others)."""
        await self._update_channels()
        await self.recovery.start()

    @property
    def recovery(self) -> Recovery:
        """The service that reads tables back."""
        if self._recovery is None:
            self._recovery = OrderedRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class OrderedApp(faust.App):
    """An application whose consumer and tables keep that order."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, TableManager=OrderedTables, **options)

    def _new_transport(self) -> TransportT:
        return OrderedTransport(self.conf.broker_consumer, self)
