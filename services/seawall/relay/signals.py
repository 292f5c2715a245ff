"""From a stage's reply to the records of signals.v1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.relay.stage import StageItem, StageReply
from seawall.runtime.broker import Output, Record

#: Reason of an item the service did not answer, or answered with something that is not a number.
NO_REPLY = "NO_REPLY"
BAD_SCORE = "BAD_SCORE"
DUPLICATE_REPLY = "DUPLICATE_REPLY"


class BatchTimes(NamedTuple):
    """When the micro-batch was closed and its last RPC sent, Unix nanoseconds."""

    batched: int
    sent: int


def match_replies(reply: StageReply, count: int) -> list[signal_pb2.ItemReply | str]:
    """The replies in the order of the request's ids 0 … count-1, matched by id alone.

    Where there is no trustworthy reply, a reason stands instead: the reply is missing, came twice, or holds a score
    that is not a number from 0 to 1. Ids that were never asked for are ignored: they can say nothing about our items.
    """
    matched: list[signal_pb2.ItemReply | str] = [NO_REPLY] * count
    for item in reply.replies:
        index = item.id
        if index >= count:
            continue
        if matched[index] is not NO_REPLY:
            matched[index] = DUPLICATE_REPLY
        elif all(0.0 <= label.score <= 1.0 and not math.isnan(label.score) for label in item.result.labels):
            matched[index] = item
        else:
            matched[index] = BAD_SCORE
    return matched


class SignalWriter:
    """Writes one stage's signals.

    Args:
        topic: name of signals.v1 in this lane.
    """

    def __init__(self, *, stage: str, topic: str, instance: str) -> None:
        self._stage = stage
        self._topic = topic
        self._instance = instance

    def scored(
        self,
        record: Record,
        generation: generation_pb2.Generation,
        items: Sequence[StageItem],
        results: Iterable[signal_pb2.ItemReply | str],
        reply: StageReply,
        *,
        received: int,
        times: BatchTimes,
        produced: int,
        attempts: int,
        batch_size: int,
    ) -> Output:
        """The signal of one generation that rode in a scored batch."""
        join = control_pb2.JoinRecord()
        signal = join.signal
        self._head(signal, record, generation.generation_id, generation.attempt)
        for item, result in zip(items, results, strict=True):
            if isinstance(result, str):
                signal.items.add(
                    item_id=item.item_id, nexus=item.nexus, status=signal_pb2.ITEM_STATUS_ERROR, reason=result
                )
                continue
            said = result.result
            said.item_id = item.item_id
            said.nexus = item.nexus
            signal.items.append(said)
        signal.artefacts.extend(reply.artefacts)
        timings = signal.timings
        timings.received_unix_nano = received
        timings.batched_unix_nano = times.batched
        timings.sent_unix_nano = times.sent
        timings.inference_start_unix_nano = reply.inference_start_unix_nano
        timings.inference_end_unix_nano = reply.inference_end_unix_nano
        timings.produced_unix_nano = produced
        signal.service_instance = reply.service_instance
        signal.rpc_attempts = attempts
        signal.batch_size = batch_size
        return self._output(record, generation.generation_id, join)

    def failed(
        self,
        record: Record,
        generation_id: str,
        attempt: int,
        items: Sequence[StageItem],
        reason: str,
        *,
        status: signal_pb2.ItemStatus.ValueType = signal_pb2.ITEM_STATUS_ERROR,
        received: int,
        produced: int,
        attempts: int = 0,
    ) -> Output:
        """The signal of a generation about which this stage knows nothing: every item has ``status`` and ``reason``."""
        join = control_pb2.JoinRecord()
        signal = join.signal
        self._head(signal, record, generation_id, attempt)
        for item in items:
            signal.items.add(item_id=item.item_id, nexus=item.nexus, status=status, reason=reason)
        if not items:
            signal.items.add(status=status, reason=reason)
        signal.timings.received_unix_nano = received
        signal.timings.produced_unix_nano = produced
        signal.rpc_attempts = attempts
        return self._output(record, generation_id, join)

    def _head(self, signal: signal_pb2.Signal, record: Record, generation_id: str, attempt: int) -> None:
        signal.signal_id = identity.signal_id(generation_id, attempt, self._stage)
        signal.generation_id = generation_id
        signal.attempt = attempt
        signal.stage = self._stage
        coordinates = signal.generation_record
        coordinates.topic = record.topic
        coordinates.partition = record.partition
        coordinates.offset = record.offset
        signal.relay_instance = self._instance

    def _output(self, record: Record, generation_id: str, join: control_pb2.JoinRecord) -> Output:
        # To the generation's own partition number, whatever partitioner the platform used: the join is co-partitioned.
        return Output(
            self._topic, record.partition, generation_id.encode(), join.SerializeToString(), trace_headers(record)
        )


def trace_headers(record: Record) -> Sequence[tuple[str, bytes]]:
    """The record's trace context, to be set on what follows from it; nothing else is forwarded."""
    return [header for header in record.headers if header[0] in ("traceparent", "tracestate")]
