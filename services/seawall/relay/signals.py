"""From a stage's reply to the records of signals.v1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.core.wire import varint
from seawall.relay.stage import StageItem, StageReply
from seawall.relay.work import Work
from seawall.runtime.broker import Output, Record

# The hot path writes signals field by field in protobuf's wire format: a tag, then a varint, eight bytes, or a length
# and a body. Making message objects only to serialise them costs three times as much. Field numbers come from the
# generated code, and a property test compares with messages that protobuf itself has made.
_VARINT, _FIXED64, _LENGTH = 0, 1, 2


def _tag(number: int, wire_type: int) -> bytes:
    tag = number << 3 | wire_type
    # One byte, and not the percent sign of the templates below.
    if tag > 0x7F or tag == ord("%"):
        raise ValueError(f"field {number} does not fit the templates")
    return bytes((tag,))


_Signal, _Coordinates = signal_pb2.Signal, generation_pb2.RecordCoordinates
_SIGNAL = _tag(control_pb2.JoinRecord.SIGNAL_FIELD_NUMBER, _LENGTH)
_ITEMS = _tag(_Signal.ITEMS_FIELD_NUMBER, _LENGTH)
_COORDINATES = b"".join(
    (_tag(_Coordinates.PARTITION_FIELD_NUMBER, _VARINT), b"%b", _tag(_Coordinates.OFFSET_FIELD_NUMBER, _VARINT), b"%b")
)
#: What each signal has of its own: signal_id (32 hex digits), generation_id, attempts, coordinates, received.
_OWN = b"".join(
    (
        *(_tag(_Signal.SIGNAL_ID_FIELD_NUMBER, _LENGTH), b"\x20%b"),
        *(_tag(_Signal.GENERATION_ID_FIELD_NUMBER, _LENGTH), b"%b%b"),
        *(_tag(_Signal.ATTEMPT_FIELD_NUMBER, _VARINT), b"%b"),
        *(_tag(_Signal.RPC_ATTEMPTS_FIELD_NUMBER, _VARINT), b"%b"),
        *(_tag(_Signal.GENERATION_RECORD_FIELD_NUMBER, _LENGTH), b"%c%b"),
        *(_tag(_Signal.TIMINGS_FIELD_NUMBER, _LENGTH), b"\x09"),
        *(_tag(signal_pb2.StageTimings.RECEIVED_UNIX_NANO_FIELD_NUMBER, _FIXED64), b"%b"),
    )
)

_TRACE_HEADERS = frozenset({"traceparent", "tracestate"})
#: What W3C has everyone pass on of a tracestate; a traceparent has 55.
MAX_TRACE_BYTES = 512

#: Reason of an item the service did not answer, or answered with something that is not a number.
NO_REPLY = "NO_REPLY"
BAD_SCORE = "BAD_SCORE"
DUPLICATE_REPLY = "DUPLICATE_REPLY"


def match_replies(reply: StageReply, count: int) -> list[signal_pb2.ItemResult | str]:
    """The results in the order of the request's ids 0 … count-1, matched by id alone.

    Where there is no trustworthy reply, a reason stands instead: the reply is missing, came twice, or holds a score
    that is not a number from 0 to 1. Ids that were never asked for are ignored: they can say nothing about our items.
    """
    matched: list[signal_pb2.ItemResult | str] = [NO_REPLY] * count
    for item in reply.replies:
        index = item.id
        if index >= count:
            continue
        if matched[index] is not NO_REPLY:
            matched[index] = DUPLICATE_REPLY
            continue
        matched[index] = result = item.result
        for label in result.labels:
            if not 0.0 <= label.score <= 1.0:  # true for NaN, too
                matched[index] = BAD_SCORE
                break
    return matched


class SignalWriter:
    """Writes one stage's signals.

    Each goes to the partition number of its generation, whatever partitioner the platform used: the join is
    co-partitioned.

    Args:
        topic: name of signals.v1 in this lane.
    """

    def __init__(self, *, stage: str, topic: str, instance: str) -> None:
        self._stage = stage
        self._topic = topic
        self._instance = instance

    def scored(
        self, reply: StageReply, batch: Sequence[Work], *, batched: int, sent: int, produced: int
    ) -> list[Output]:
        """One signal for each generation of a batch that was scored; the times are Unix nanoseconds.

        Protobuf parsers merge a message's parts: the concatenation of two serialised messages is their merge. So each
        signal is what the batch shares, serialised once, and its own. A loop without calls: it is the relay's hottest.
        """
        common = self._common(reply, batch, batched, sent, produced)
        results = iter(match_replies(reply, sum(len(work.items) for work in batch)))
        stage, topic = self._stage, self._topic
        outputs = []
        for work in batch:
            record, generation = work.record, work.generation
            partition = record.partition
            generation_id, attempt = generation.generation_id, generation.attempt
            key = generation_id.encode()
            coordinates = _COORDINATES % (varint(partition), varint(record.offset))
            own = _OWN % (
                identity.signal_id(generation_id, attempt, stage).encode(),
                varint(len(key)),
                key,
                varint(attempt),
                varint(work.attempts),
                len(coordinates),
                coordinates,
                work.received.to_bytes(8, "little"),
            )
            tenant = _tenant(generation.tenant_id)
            parts = [_SIGNAL, b"", common, own, tenant]
            size = len(common) + len(own) + len(tenant)
            for item in work.items:
                result = next(results)
                if isinstance(result, str):
                    result = signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_ERROR, reason=result)
                said, head = result.SerializeToString(), _item_head(item.item_id, item.nexus)
                length = len(said) + len(head)
                prefix = varint(length)
                parts += (_ITEMS, prefix, said, head)
                size += 1 + len(prefix) + length
            parts[1] = varint(size)
            outputs.append(Output(topic, partition, key, b"".join(parts), trace_headers(record)))
        return outputs

    def _common(self, reply: StageReply, batch: Sequence[Work], batched: int, sent: int, produced: int) -> bytes:
        common = signal_pb2.Signal(
            stage=self._stage,
            artefacts=reply.artefacts,
            relay_instance=self._instance,
            service_instance=reply.service_instance,
            batch_size=len(batch),
        )
        common.generation_record.topic = batch[0].record.topic
        timings = common.timings
        timings.batched_unix_nano = batched
        timings.sent_unix_nano = sent
        timings.inference_start_unix_nano = reply.inference_start_unix_nano
        timings.inference_end_unix_nano = reply.inference_end_unix_nano
        timings.produced_unix_nano = produced
        return common.SerializeToString()

    def failed(
        self,
        record: Record,
        generation: generation_pb2.Generation,
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
            signal_id=identity.signal_id(generation.generation_id, generation.attempt, self._stage),
            generation_id=generation.generation_id,
            attempt=generation.attempt,
            tenant_id=generation.tenant_id,
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
        value = control_pb2.JoinRecord(signal=signal).SerializeToString()
        key = generation.generation_id.encode()
        return Output(self._topic, record.partition, key, value, trace_headers(record))


@lru_cache(maxsize=1024)
def _tenant(tenant_id: str) -> bytes:
    return signal_pb2.Signal(tenant_id=tenant_id).SerializeToString()


@lru_cache(maxsize=1024)
def _item_head(item_id: str, nexus: generation_pb2.Nexus.ValueType) -> bytes:
    return signal_pb2.ItemResult(item_id=item_id, nexus=nexus).SerializeToString()


def trace_headers(record: Record) -> Sequence[tuple[str, bytes]]:
    """The record's trace context, to be set on what follows from it; nothing else is forwarded.

    Nor what is no trace context by its length: what follows from a record must not be too large because of a header.
    """
    headers = record.headers
    # A header's value may be null, whatever aiokafka's types say.
    if not headers or (len(headers) == 1 and headers[0][0] == "traceparent" and 0 < len(headers[0][1] or ()) <= 55):
        return headers
    return [header for header in headers if header[0] in _TRACE_HEADERS and 0 < len(header[1] or ()) <= MAX_TRACE_BYTES]
