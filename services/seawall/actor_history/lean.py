"""What Faust does for every record that this room has no use for, taken away. Pinned below faust-streaming 0.16.

Its monitor keeps statistics of each event that only its own web page shows; its tables write each change to the
changelog through several objects, a callback, and a second write to RocksDB that says how far the changelog is in it.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, cast

import faust
from faust.sensors import Monitor
from faust.types import TP

from seawall.runtime.broker import Output


class LeanMonitor(Monitor):
    """Keeps what Faust itself reads: when a partition's last event came."""

    def on_message_in(self, tp: TP, offset: int, message: Any) -> None:
        """Not counted."""

    def on_message_out(self, tp: TP, offset: int, message: Any) -> None:
        """Not counted."""

    def on_stream_event_in(self, tp: TP, offset: int, stream: Any, event: Any) -> dict[Any, Any] | None:
        """Only noted."""
        self.stream_inbound_time[tp] = monotonic()
        return None

    def on_stream_event_out(
        self, tp: TP, offset: int, stream: Any, event: Any, state: dict[Any, Any] | None = None
    ) -> None:
        """Not counted."""

    def on_table_get(self, table: Any, key: Any) -> None:
        """Not counted."""

    def on_table_set(self, table: Any, key: Any, value: Any) -> None:
        """Not counted."""


class BatchedTable(faust.Table):  # type: ignore[type-arg]
    """A table of bytes whose changelog is written by whoever changes it, a batch at a time: set values, then send
    `changes`. From time to time `keep_positions` notes how far the changelog is in RocksDB, so that a start need not
    read it all again; what came after is read once more, which changes nothing: the newest of a key wins.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._changes: list[Output] = []
        #: Partitions of the changelog that were written to since they are ours and their position was kept.
        self._written: set[TP] = set()
        self._rebalances = 0

    def on_key_set(self, key: Any, value: Any) -> None:
        """A value was set in the event in hand's partition."""
        partition = cast(int, self.partition_for_key(key))
        self._changes.append(Output(self.changelog_topic_name, partition, key, value))
        self._written.add(TP(self.changelog_topic_name, partition))

    def changes(self) -> list[Output]:
        """What was set since the last time it was asked, for the changelog."""
        changes, self._changes = self._changes, []
        return changes

    async def on_rebalance(self, *arguments: Any, **options: Any) -> None:
        """What was somebody else's meanwhile must be read back first."""
        self._rebalances += 1
        self._written.clear()
        await super().on_rebalance(*arguments, **options)

    async def keep_positions(self) -> None:
        """Note the ends of the changelogs that we have written to: each record of ours is in RocksDB before it is sent,
        and nobody else writes to a partition that is ours.

        Raises what aiokafka does while the broker is away; the next time will do.
        """
        written, self._written = self._written, set()
        if not written:
            return
        rebalances = self._rebalances
        # Slow: it waits behind a fetch that is on its way.
        ends = await self.app.consumer.highwaters(*written)
        if rebalances == self._rebalances:
            for partition, end in ends.items():
                self.data.set_persisted_offset(TP(*partition), end - 1)
