"""From a stage's reply to the records of signals.v1."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.relay.stage import StageItem, StageReply
from seawall.runtime.broker import Output, Record

#: Field number and wire type of JoinRecord.signal.
_SIGNAL_TAG = bytes((control_pb2.JoinRecord.SIGNAL_FIELD_NUMBER << 3 | 2,))
#: Reason of an item the service did not answer, or answered with something that is not a number.
NO_REPLY = "NO_REPLY"
BAD_SCORE = "BAD_SCORE"
DUPLICATE_REPLY = "DUPLICATE_REPLY"


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
        elif all(0.0 <= label.score <= 1.0 for label in item.result.labels):
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

    def batch(self, reply: StageReply, *, topic: str, batched: int, sent: int, produced: int, batch_size: int) -> bytes:
        """What all signals of one scored batch have in common, serialised once.

        Protobuf parsers merge a message's parts: the concatenation of two serialised messages is their merge. So each
        signal is these bytes and its own, and what a batch shares is not built again for each generation.
        """
        common = signal_pb2.Signal(
            stage=self._stage,
            artefacts=reply.artefacts,
            relay_instance=self._instance,
            service_instance=reply.service_instance,
            batch_size=batch_size,
        )
        common.generation_record.topic = topic
        timings = common.timings
        timings.batched_unix_nano = batched
        timings.sent_unix_nano = sent
        timings.inference_start_unix_nano = reply.inference_start_unix_nano
        timings.inference_end_unix_nano = reply.inference_end_unix_nano
        timings.produced_unix_nano = produced
        return common.SerializeToString()

    def scored(
        self,
        common: bytes,
        record: Record,
        generation: generation_pb2.Generation,
        items: Sequence[StageItem],
        results: Sequence[signal_pb2.ItemReply | str],
        *,
        received: int,
        attempts: int,
    ) -> Output:
        """The signal of one generation that rode in a scored batch, ``common`` to which is what ``batch`` returned."""
        generation_id = generation.generation_id
        attempt = generation.attempt
        signal = signal_pb2.Signal(
            signal_id=identity.signal_id(generation_id, attempt, self._stage),
            generation_id=generation_id,
            attempt=attempt,
            rpc_attempts=attempts,
        )
        coordinates = signal.generation_record
        coordinates.partition = record.partition
        coordinates.offset = record.offset
        signal.timings.received_unix_nano = received
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
        return self._output(record, generation_id, common + signal.SerializeToString())

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
        signal = signal_pb2.Signal(
            signal_id=identity.signal_id(generation_id, attempt, self._stage),
            generation_id=generation_id,
            attempt=attempt,
            stage=self._stage,
            generation_record=generation_pb2.RecordCoordinates(
                topic=record.topic, partition=record.partition, offset=record.offset
            ),
            relay_instance=self._instance,
            rpc_attempts=attempts,
        )
        for item in items:
            signal.items.add(item_id=item.item_id, nexus=item.nexus, status=status, reason=reason)
        if not items:
            signal.items.add(status=status, reason=reason)
        signal.timings.received_unix_nano = received
        signal.timings.produced_unix_nano = produced
        return self._output(record, generation_id, signal.SerializeToString())

    def _output(self, record: Record, generation_id: str, signal: bytes) -> Output:
        # JoinRecord{signal}, by hand for the same reason as in ``batch``.
        value = _SIGNAL_TAG + _varint(len(signal)) + signal
        # To the generation's own partition number, whatever partitioner the platform used: the join is co-partitioned.
        return Output(self._topic, record.partition, generation_id.encode(), value, trace_headers(record))


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def trace_headers(record: Record) -> Sequence[tuple[str, bytes]]:
    """The record's trace context, to be set on what follows from it; nothing else is forwarded."""
    return [header for header in record.headers if header[0] == "traceparent" or header[0] == "tracestate"]
