"""Replies matched by id (F17), and signals whose bytes are put together from parts."""

from __future__ import annotations

import math
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.relay import signals
from seawall.relay.offsets import OffsetTracker
from seawall.relay.signals import SignalWriter, match_replies
from seawall.relay.stage import StageItem
from seawall.relay.work import Work
from tests.support.records import GENERATIONS, PROMPT, SIGNALS, generation


class FakeRecord(NamedTuple):
    topic: str = GENERATIONS
    partition: int = 3
    offset: int = 41
    timestamp: int = 0
    key: bytes | None = b"g-1"
    value: bytes | None = b""
    headers: tuple[tuple[str, bytes], ...] = (("traceparent", b"00-aa-bb-01"), ("cookie", b"private"))


def reply(*ids: int, score: float = 0.5) -> prompt_scoring_pb2.ScorePromptsResponse:
    """Results that name the item they are of."""
    made = prompt_scoring_pb2.ScorePromptsResponse(service_instance="svc")
    for number in ids:
        item = made.replies.add(id=number)
        item.result.status = signal_pb2.ITEM_STATUS_OK
        item.result.reason = f"item {number}"
        item.result.labels.add(label="x", score=score)
    return made


def test_replies_are_matched_by_id_not_by_place() -> None:
    matched = match_replies(reply(2, 0, 1), 3)
    assert [said.reason for said in matched if not isinstance(said, str)] == ["item 0", "item 1", "item 2"]


def test_short_duplicated_and_unasked_replies() -> None:
    matched = match_replies(reply(0, 2, 2, 7), 3)
    assert not isinstance(matched[0], str)
    assert matched[1:] == [signals.NO_REPLY, signals.DUPLICATE_REPLY]


def test_scores_that_are_no_probability() -> None:
    for score in (math.nan, math.inf, -0.1, 1.1):
        assert match_replies(reply(0, score=score), 1) == [signals.BAD_SCORE]


@given(st.integers(1, 20), st.data())
def test_any_reply_answers_each_item_exactly_once(count: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, count + 3), max_size=30))
    matched = match_replies(reply(*ids), count)
    assert len(matched) == count
    for number, said in enumerate(matched):
        times = ids.count(number)
        expected = {0: signals.NO_REPLY, 1: None}.get(times, signals.DUPLICATE_REPLY)
        assert (said if isinstance(said, str) else None) == expected
        if not isinstance(said, str):
            assert said.reason == f"item {number}"


@given(st.integers(0, 400), st.integers(0, 2**40))
def test_a_signal_of_parts_is_the_whole(padding: int, offset: int) -> None:
    answered = reply(0)
    answered.replies[0].result.reason = "r" * padding * 40  # lengths on both sides of every varint boundary
    answered.artefacts.add(kind=signal_pb2.ARTEFACT_KIND_MODEL, name="m", version="1", sha256=bytes(32))
    answered.inference_start_unix_nano, answered.inference_end_unix_nano = 30, 40
    writer = SignalWriter(stage=PROMPT, topic=SIGNALS, instance="relay-0")
    g = generation()
    item = StageItem("prompt", generation_pb2.NEXUS_ATTEMPT)
    record = FakeRecord(offset=offset)
    work = Work(record, OffsetTracker(), g, [item], received=5, budget_end=0.0, attempts=1)
    (output,) = writer.scored(answered, [work], batched=10, sent=20, produced=50)

    expected = signal_pb2.Signal(
        signal_id=identity.signal_id("g-1", 1, PROMPT),
        generation_id="g-1",
        attempt=1,
        tenant_id=g.tenant_id,
        stage=PROMPT,
        generation_record=generation_pb2.RecordCoordinates(topic=GENERATIONS, partition=3, offset=offset),
        artefacts=answered.artefacts,
        timings=signal_pb2.StageTimings(
            received_unix_nano=5,
            batched_unix_nano=10,
            sent_unix_nano=20,
            inference_start_unix_nano=30,
            inference_end_unix_nano=40,
            produced_unix_nano=50,
        ),
        relay_instance="relay-0",
        service_instance="svc",
        rpc_attempts=1,
        batch_size=1,
    )
    result = expected.items.add()
    result.CopyFrom(answered.replies[0].result)
    result.item_id, result.nexus = "prompt", generation_pb2.NEXUS_ATTEMPT
    assert control_pb2.JoinRecord.FromString(output.value or b"").signal == expected
    assert (output.topic, output.partition, output.key) == (SIGNALS, 3, b"g-1")
    assert list(output.headers) == [("traceparent", b"00-aa-bb-01")]


def test_each_generation_of_a_batch_gets_its_own_items() -> None:
    writer = SignalWriter(stage=PROMPT, topic=SIGNALS, instance="relay-0")

    def work(generation_id: str, offset: int, *items: str) -> Work:
        made = [StageItem(item, generation_pb2.NEXUS_MODEL_OUTPUT) for item in items]
        g = generation(generation_id)
        return Work(FakeRecord(offset=offset), OffsetTracker(), g, made, received=offset, budget_end=0.0, attempts=2)

    batch = [work("g-1", 7, "a", "b"), work("g-2", 300, "a"), work("g-3", 3_000_000, "a", "b", "c")]
    # Nobody answered for the second of the first and the last of the third.
    outputs = writer.scored(reply(4, 3, 2, 0), batch, batched=1, sent=2, produced=3)
    signals_read = [control_pb2.JoinRecord.FromString(output.value or b"").signal for output in outputs]
    assert [[(item.item_id, item.reason) for item in signal.items] for signal in signals_read] == [
        [("a", "item 0"), ("b", signals.NO_REPLY)],
        [("a", "item 2")],
        [("a", "item 3"), ("b", "item 4"), ("c", signals.NO_REPLY)],
    ]
    assert [signal.generation_id for signal in signals_read] == ["g-1", "g-2", "g-3"]
    assert [signal.generation_record.offset for signal in signals_read] == [7, 300, 3_000_000]
    assert [signal.timings.received_unix_nano for signal in signals_read] == [7, 300, 3_000_000]
    assert {signal.batch_size for signal in signals_read} == {3}
    assert [output.key for output in outputs] == [b"g-1", b"g-2", b"g-3"]
