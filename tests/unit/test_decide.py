"""Decisions as they are written: in wire format, and a message like any other to whoever reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.aggregator.settings import AggregatorSettings
from seawall.api.control.v1 import control_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import decide
from seawall.core.join import Completed, OpenGeneration, Position, ReadSignal
from seawall.core.policy import Lineup, Policy
from seawall.core.wire import is_one_field, varint
from tests.support.records import CLASSIFICATION, GENERATIONS, HASHING, PROMPT, SIGNALS, generation, signal

POLICY = Policy(AggregatorSettings().policy)
STAGES = (CLASSIFICATION, HASHING, PROMPT)


def record(of: signal_pb2.Signal) -> bytes:
    return control_pb2.JoinRecord(signal=of).SerializeToString()


def completed(values: dict[str, bytes | None], *, padding: int = 0, offset: int = 0) -> Completed:
    """A generation with three signals, of which ``values`` are the records."""
    g = generation(media=1)
    joined = OpenGeneration(g, Position(GENERATIONS, 0, offset, 5), "trace", POLICY.required(g))
    for number, stage in enumerate(STAGES):
        made = signal(g, stage, offset=offset, reason="r" * padding)
        joined.signals[stage] = ReadSignal(made, Position(SIGNALS, 0, offset + number, 7), values.get(stage))
    return Completed(joined, Position(SIGNALS, 0, offset + 2, 7))


@given(
    padding=st.sampled_from([0, 1, 10, 50, 100, 200, 20_000]), offset=st.sampled_from([0, 1, 127, 128, 16_384, 1 << 40])
)
def test_a_written_decision_is_a_message(padding: int, offset: int) -> None:
    """Lengths on both sides of every varint's boundary."""
    written = decide.joint(completed({}, padding=padding, offset=offset), Lineup.of(POLICY))
    whole = written.whole()
    assert [one.signal.stage for one in whole.signals] == list(STAGES)
    assert [one.signal.items[0].reason for one in whole.signals] == ["r" * padding] * 3
    assert [one.record for one in whole.signals] == [
        generation_pb2.RecordCoordinates(topic=SIGNALS, partition=0, offset=offset + n) for n in range(3)
    ]
    assert {one.log_unix_nano for one in whole.signals} == {7}
    assert whole.completed_by.offset == offset + 2
    assert [one.threshold for one in whole.comparisons] == [one.name for one in POLICY.thresholds]
    # What the head says and the rest make up the whole, and nothing else.
    rest = decision_pb2.Decision(signals=whole.signals, comparisons=whole.comparisons)
    rest.MergeFrom(written.head)
    assert rest == whole


def test_signals_stand_in_a_decision_byte_for_byte_as_in_the_log() -> None:
    """As a relay writes them: in parts, which protobuf itself would put in another order."""
    g = generation(media=1)
    odd = signal_pb2.Signal(relay_instance="r-1").SerializeToString() + signal(g, PROMPT, offset=0).SerializeToString()
    value = b"\x0a" + varint(len(odd)) + odd
    assert record(signal_pb2.Signal.FromString(odd)) != value
    read = completed({PROMPT: value})
    read.joined.signals[PROMPT] = read.joined.signals[PROMPT]._replace(signal=signal_pb2.Signal.FromString(odd))
    written = decide.joint(read, Lineup.of(POLICY))
    assert value in written.value
    assert written.whole().signals[2].signal == signal_pb2.Signal.FromString(odd)


@pytest.mark.parametrize("value", [None, b"", b"\x0a\x00\x12\x00", b"\x0a\x05", b"\x12\x00"])
def test_a_record_that_holds_more_than_a_signal_is_not_repeated(value: bytes | None) -> None:
    """Beside the signal it could say something else of the decision: the coordinates, say."""
    whole = decide.joint(completed({PROMPT: value}), Lineup.of(POLICY)).whole()
    assert (whole.signals[2].signal.stage, whole.signals[2].record.offset) == (PROMPT, 2)


@given(st.binary(max_size=300), st.binary(max_size=4), st.integers(1, 15))
def test_one_field_is_told_from_several(body: bytes, more: bytes, field: int) -> None:
    value = bytes((field << 3 | 2,)) + varint(len(body)) + body
    assert is_one_field(value, field)
    assert is_one_field(value + more, field) is not bool(more)
    assert not is_one_field(value, field % 15 + 1)
    assert not is_one_field(value[:-1], field)


def test_a_shortened_decision_keeps_everything_but_the_items() -> None:
    written = decide.joint(completed({}, padding=500), Lineup.of(POLICY))
    short = decision_pb2.Decision.FromString(decide.shortened(written.value))
    expected = written.whole()
    expected.truncated = True
    for joined in expected.signals:
        del joined.signal.items[:]
    assert short == expected
    assert decide.shortened(decide.shortened(written.value)) == decide.shortened(written.value)
