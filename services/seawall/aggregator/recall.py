"""Reads the newest decisions back when a partition is taken over, so that repeats from before are still repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from google.protobuf.message import DecodeError

from seawall.api.decision.v1 import decision_pb2
from seawall.core.errors import Fatal
from seawall.core.join import Decided, Join, has_error, role
from seawall.runtime.broker import Broker, TopicPartition

_LIMIT_SECONDS = 20.0


async def recall_decisions(broker: Broker, topic: str, joins: Mapping[int, Join], count: int) -> None:
    """Tell each join about the last ``count`` decisions of its partition of decisions.v1.

    Raises:
        Fatal: RECALL_TIMEOUT if they could not be read in 20 s; Retryable as the broker seam says.
    """
    reader = broker.reader([topic])
    await reader.start()
    try:
        wanted = {TopicPartition(topic, number) for number in joins}
        reader.pause([partition for partition in reader.assignment() if partition not in wanted])
        ends = dict(await reader.end_offsets(wanted))
        for partition, end in ends.items():
            reader.seek(partition, max(0, end - count))
        left = {partition for partition, end in ends.items() if end > 0}
        async with asyncio.timeout(_LIMIT_SECONDS):
            while left:
                for key, records in (await reader.poll(max_records=1_000, timeout=1.0)).items():
                    partition = TopicPartition(*key)
                    for record in records:
                        _remember(joins[partition.partition], record.value)
                    if records and records[-1].offset + 1 >= ends[partition]:
                        left.discard(partition)
                        reader.pause([partition])
    except TimeoutError as error:
        raise Fatal(
            "RECALL_TIMEOUT", f"{topic} could not be read back in {_LIMIT_SECONDS:.0f} s: is the broker up?"
        ) from error
    finally:
        await reader.stop()


def _remember(join: Join, value: bytes | None) -> None:
    try:
        decision = decision_pb2.Decision.FromString(value or b"")
    except DecodeError:
        # Only the aggregator writes here; another version's record at worst means that a repeat is decided again.
        return
    if decision.kind == decision_pb2.DECISION_KIND_JOINT and decision.attempt:
        stages = frozenset(role(joined.signal) for joined in decision.signals if not has_error(joined.signal))
        join.remember(
            (decision.generation_id, decision.attempt),
            Decided(decision.generation_record.offset, stages, decision.generation_log_unix_nano),
        )
    elif decision.kind == decision_pb2.DECISION_KIND_AMENDMENT:
        for joined in decision.signals:
            join.remember_judged(joined.signal, joined.log_unix_nano)
