"""The join: what completes when, what is late, and how far the log may be forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.aggregator.settings import AggregatorSettings
from seawall.api.control.v1 import control_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import decide
from seawall.core.join import Completed, Decided, Event, Join, LateSignal, Position
from seawall.core.policy import Lineup, Policy
from tests.support.records import CLASSIFICATION, GENERATIONS, HASHING, PROMPT, SIGNALS, deadline, generation, signal

POLICY = Policy(AggregatorSettings().policy)


def join(next_generation: int = 0, next_signal: int = 0) -> Join:
    return Join(POLICY.required, next_generation=next_generation, next_signal=next_signal)


def at_generation(offset: int) -> Position:
    return Position(GENERATIONS, 0, offset, 1_000 + offset)


def at_signal(offset: int) -> Position:
    return Position(SIGNALS, 0, offset, 2_000 + offset)


def completed(events: Sequence[Event]) -> Completed:
    assert len(events) == 1
    assert isinstance(events[0], Completed)
    return events[0]


def test_a_prompt_alone_needs_no_image_stage() -> None:
    state = join()
    g = generation()
    assert not state.on_generation(g, at_generation(0))
    done = completed(state.on_signal(signal(g, PROMPT, offset=0), at_signal(0)))
    assert done.joined.missing == []
    assert done.completed_by == at_signal(0)


def test_media_waits_for_both_image_stages() -> None:
    state = join()
    g = generation(media=1)
    state.on_generation(g, at_generation(0))
    assert not state.on_signal(signal(g, PROMPT, offset=0), at_signal(0))
    assert not state.on_signal(signal(g, HASHING, offset=0), at_signal(1))
    assert state.open_count == 1
    done = completed(state.on_signal(signal(g, CLASSIFICATION, offset=0), at_signal(2)))
    assert sorted(done.joined.signals) == [CLASSIFICATION, HASHING, PROMPT]
    assert state.open_count == 0


def test_a_deadline_closes_with_what_is_there() -> None:
    state = join()
    g = generation(media=1)
    state.on_generation(g, at_generation(0))
    state.on_signal(signal(g, PROMPT, offset=0), at_signal(0))
    done = completed(state.on_deadline(deadline(g, offset=0), at_signal(1)))
    assert done.joined.missing == [CLASSIFICATION, HASHING]


def test_a_deadline_for_a_closed_generation_means_nothing() -> None:
    state = join()
    g = generation()
    state.on_generation(g, at_generation(0))
    completed(state.on_signal(signal(g, PROMPT, offset=0), at_signal(0)))
    assert not state.on_deadline(deadline(g, offset=0), at_signal(1))


def test_early_signals_wait_for_their_generation_in_log_order() -> None:
    state = join()
    g = generation(media=1)
    state.on_signal(signal(g, HASHING, offset=0), at_signal(0))
    state.on_deadline(deadline(g, offset=0), at_signal(1))
    state.on_signal(signal(g, CLASSIFICATION, offset=0), at_signal(2))
    assert state.early_count == 3
    events = state.on_generation(g, at_generation(0))
    assert isinstance(events[0], Completed)
    assert events[0].joined.missing == [CLASSIFICATION, PROMPT]  # the deadline stood before the second signal
    assert isinstance(events[1], LateSignal)
    assert state.early_count == 0


def test_a_repeated_signal_is_absorbed_before_and_after_the_decision() -> None:
    state = join()
    g = generation(media=1)
    state.on_generation(g, at_generation(0))
    for offset, stage in enumerate((PROMPT, PROMPT, HASHING)):
        assert not state.on_signal(signal(g, stage, offset=0), at_signal(offset))
    completed(state.on_signal(signal(g, CLASSIFICATION, offset=0), at_signal(3)))
    assert not state.on_signal(signal(g, CLASSIFICATION, offset=0), at_signal(4))


def test_a_later_signal_replaces_one_that_reports_an_error() -> None:
    state = join()
    g = generation(media=1)
    state.on_generation(g, at_generation(0))
    state.on_signal(signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR), at_signal(0))
    state.on_signal(signal(g, PROMPT, offset=0), at_signal(1))
    state.on_signal(signal(g, HASHING, offset=0), at_signal(2))
    done = completed(state.on_signal(signal(g, CLASSIFICATION, offset=0), at_signal(3)))
    assert done.joined.signals[PROMPT].position.offset == 1


def test_a_signal_after_an_error_was_decided_on_is_late() -> None:
    state = join()
    g = generation()
    state.on_generation(g, at_generation(0))
    completed(state.on_signal(signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR), at_signal(0)))
    [late] = state.on_signal(signal(g, PROMPT, offset=0), at_signal(1))
    assert isinstance(late, LateSignal)


def test_the_same_generation_twice_is_joined_once() -> None:
    state = join()
    g = generation()
    state.on_generation(g, at_generation(0))
    assert not state.on_generation(g, at_generation(1))  # while open
    completed(state.on_signal(signal(g, PROMPT, offset=0), at_signal(0)))
    assert not state.on_generation(g, at_generation(2))  # once decided
    assert not state.on_signal(signal(g, PROMPT, offset=1), at_signal(1))
    assert not state.on_signal(signal(g, PROMPT, offset=2), at_signal(2))
    state.settle(0)
    assert (state.generation_watermark(), state.signal_watermark()) == (3, 3)


def test_what_a_repeat_measured_counts_where_the_first_knew_nothing() -> None:
    """A re-scan that was written twice, about a crash: the first copy's stage erred, the second's measured."""
    state = join()
    g = generation()
    state.on_generation(g, at_generation(0))
    state.on_generation(g, at_generation(1))
    erred = signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR)
    completed(state.on_signal(erred, at_signal(0)))
    (late,) = state.on_signal(signal(g, PROMPT, offset=1), at_signal(1))
    assert isinstance(late, LateSignal)


@pytest.mark.parametrize("repeat_is_read", ["before", "between", "after"])
def test_what_a_repeat_measured_before_the_first_erred_is_late_once_that_is_decided(repeat_is_read: str) -> None:
    """However the two topics interleave, and also if the first never reports."""
    for closing in ("error", "deadline"):
        state = join()
        g = generation()
        state.on_generation(g, at_generation(0))
        if repeat_is_read == "before":
            state.on_generation(g, at_generation(1))
        events = [*state.on_signal(signal(g, PROMPT, offset=1), at_signal(0))]
        assert not events
        assert state.signal_watermark() == 0  # a crash would read it again
        if repeat_is_read == "between":
            events += state.on_generation(g, at_generation(1))
        if closing == "error":
            erred = signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR)
            events += state.on_signal(erred, at_signal(1))
        else:
            events += state.on_deadline(deadline(g, offset=0), at_signal(1))
        if repeat_is_read == "after":
            events += state.on_generation(g, at_generation(1))
        first, late = events
        assert isinstance(first, Completed)
        assert isinstance(late, LateSignal)
        assert late.read.position == at_signal(0)
        state.settle(0)
        assert state.signal_watermark() == 0
        state.settle_signal(0)
        assert state.signal_watermark() == 2


def test_what_a_repeat_measured_adds_nothing_where_the_first_was_measured() -> None:
    state = join()
    g = generation()
    state.on_generation(g, at_generation(0))
    state.on_generation(g, at_generation(1))
    assert not state.on_signal(signal(g, PROMPT, offset=1), at_signal(0))
    completed(state.on_signal(signal(g, PROMPT, offset=0), at_signal(1)))


def test_a_recalled_decision_absorbs_a_repeat_but_not_its_own_replay() -> None:
    state = join(next_generation=5)
    g = generation()
    state.remember((g.generation_id, 1), Decided(5, frozenset({PROMPT}), 1_005))
    state.on_generation(g, at_generation(5))
    assert state.is_open(5)  # the record itself is decided again, with the same bytes
    assert not state.on_generation(g, at_generation(6))


def test_a_recalled_decision_absorbs_the_signals_it_rests_on() -> None:
    state = join(next_generation=6)
    g = generation()
    state.remember((g.generation_id, 1), Decided(5, frozenset({PROMPT}), 1_005))
    assert not state.on_signal(signal(g, PROMPT, offset=5), at_signal(0))


@pytest.mark.parametrize(("after", "repeated"), [(0, True), (99, True), (100, True), (101, False), (10_000, False)])
def test_how_long_a_decision_is_remembered_is_told_by_log_times(after: int, repeated: bool) -> None:
    g = generation()
    for read_first in (True, False):
        state = Join(POLICY.required, next_generation=0, next_signal=0, remember_nanos=100)
        state.on_generation(g, at_generation(0))
        again = Position(GENERATIONS, 0, 1, at_generation(0).log_nanos + after)
        if read_first and repeated:  # whether the first is open or decided when the repeat is read changes nothing
            assert not state.on_generation(g, again)
        completed(state.on_signal(signal(g, PROMPT, offset=0), at_signal(0)))
        if not read_first or not repeated:
            state.on_generation(g, again)
        assert state.is_open(1) is not repeated
    state = Join(POLICY.required, next_generation=0, next_signal=0, remember_nanos=100)
    state.on_generation(g, at_generation(0))
    completed(state.on_signal(signal(g, PROMPT, offset=0), at_signal(0)))
    late = Position(SIGNALS, 0, 1, at_generation(0).log_nanos + after)
    assert bool(state.on_signal(signal(g, PROMPT, offset=0), late)) is not repeated


def test_what_is_remembered_is_bounded_by_time_and_by_count() -> None:
    state = Join(POLICY.required, next_generation=0, next_signal=0, remember=3, remember_nanos=100)
    for offset, log_nanos in enumerate((0, 60, 90, 110, 120, 500)):
        g = generation(f"g-{offset}")
        state.on_generation(g, Position(GENERATIONS, 0, offset, log_nanos))
        completed(state.on_signal(signal(g, PROMPT, offset=offset), Position(SIGNALS, 0, offset, log_nanos)))
        late = retroactive(g, str(offset), offset=offset)
        state.remember_judged(late, log_nanos)
    assert [decided.offset for decided in state._decided.values()] == [5], "the others are too old"
    assert list(state._judged) == ["id-5"]
    for offset in range(6, 11):
        state.remember((f"g-{offset}", 1), Decided(offset, frozenset(), 500))
        state.remember_judged(retroactive(generation(), str(offset), offset=offset), 500)
    assert [decided.offset for decided in state._decided.values()] == [8, 9, 10], "three are remembered"
    assert list(state._judged) == ["id-8", "id-9", "id-10"]


def test_a_second_attempt_is_a_join_of_its_own() -> None:
    state = join()
    first, second = generation(), generation(attempt=2)
    state.on_generation(first, at_generation(0))
    state.on_generation(second, at_generation(1))
    assert completed(state.on_signal(signal(second, PROMPT, offset=1), at_signal(0))).joined.generation.attempt == 2
    assert state.is_open(0)


def test_watermarks_keep_what_a_replay_needs() -> None:
    state = join()
    slow, quick = generation("slow", media=1), generation("quick")
    state.on_generation(slow, at_generation(0))
    state.on_generation(quick, at_generation(1))
    state.on_signal(signal(quick, PROMPT, offset=1), at_signal(0))
    state.settle(1)
    state.on_signal(signal(slow, PROMPT, offset=0), at_signal(1))
    # `quick` is settled, yet it stands above the open `slow`: read again, it must find its signal again.
    assert (state.generation_watermark(), state.signal_watermark()) == (0, 0)
    state.on_deadline(deadline(slow, offset=0), at_signal(2))
    assert state.generation_watermark() == 0  # decided, not settled
    state.settle(0)
    assert (state.generation_watermark(), state.signal_watermark()) == (2, 3)


def test_an_early_signal_holds_the_signal_watermark() -> None:
    state = join()
    state.on_signal(signal(generation("later"), PROMPT, offset=7), at_signal(0))
    state.on_signal(signal(generation("later"), PROMPT, offset=7), at_signal(1))
    assert state.signal_watermark() == 0


def test_a_late_signal_holds_the_signal_watermark_until_it_is_settled() -> None:
    state = join(next_generation=10)
    [late] = state.on_signal(signal(generation(), PROMPT, offset=3), at_signal(0))
    assert isinstance(late, LateSignal)
    assert state.signal_watermark() == 0
    state.settle_signal(0)
    assert state.signal_watermark() == 1


def test_signals_of_a_generation_that_the_topic_no_longer_holds_are_late() -> None:
    state = join()
    state.on_signal(signal(generation("gone"), PROMPT, offset=3), at_signal(0))
    events = state.on_generation(generation("here"), at_generation(9))
    assert [type(event) for event in events] == [LateSignal]
    assert state.early_count == 0


def test_a_signal_with_the_coordinates_of_another_generation_is_not_evidence() -> None:
    state = join()
    state.on_generation(generation("g-1"), at_generation(0))
    assert not state.on_signal(signal(generation("g-2"), PROMPT, offset=0), at_signal(0))
    assert state.is_open(0)


# ---- any interleaving, any crash: the same decisions, byte for byte --------------------------------------------------

Log = list[generation_pb2.Generation]
SignalLog = list[signal_pb2.Signal | control_pb2.Deadline]


@st.composite
def logs(draw: st.DrawFn) -> tuple[Log, SignalLog]:
    """Two logs: generations (some sent twice) and, in any order, their signals, repeats and deadlines."""
    count = draw(st.integers(1, 5))
    distinct = [generation(f"g-{n}", media=draw(st.integers(0, 1))) for n in range(count)]
    repeats = draw(st.lists(st.sampled_from(distinct), max_size=2))
    log = [*distinct, *repeats]
    pool: SignalLog = []
    for offset, g in enumerate(log):
        stages = sorted(POLICY.required(g))
        for stage in stages:
            status = draw(st.sampled_from([signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_ERROR]))
            scores = {"minor_sexual": draw(st.sampled_from([0.0, 0.9]))} if stage == PROMPT else {"explicit": 0.1}
            copies = draw(st.integers(0, 2))
            pool.extend(signal(g, stage, offset=offset, status=status, scores=scores) for _ in range(copies))
        pool.append(deadline(g, offset=offset))
    return log, list(draw(st.permutations(pool)))


class Run:
    """Feeds both logs to a join in a given interleaving and collects the joint decisions' bytes."""

    def __init__(self, log: Log, signals: SignalLog, from_: tuple[int, int] = (0, 0)) -> None:
        self.log, self.signals = log, signals
        self.join = join(*from_)
        self.next = list(from_)
        self.decisions: list[tuple[str, bytes]] = []

    def step(self, signals_first: bool) -> None:
        generations_left = self.next[0] < len(self.log)
        if (signals_first or not generations_left) and self.next[1] < len(self.signals):
            offset = self.next[1]
            self.next[1] += 1
            record = self.signals[offset]
            if isinstance(record, signal_pb2.Signal):
                self._follow(self.join.on_signal(record, at_signal(offset)))
            else:
                self._follow(self.join.on_deadline(record, at_signal(offset)))
        elif generations_left:
            offset = self.next[0]
            self.next[0] += 1
            self._follow(self.join.on_generation(self.log[offset], at_generation(offset)))

    def _follow(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Completed):
                written = decide.joint(event, Lineup.of(POLICY))
                self.decisions.append((written.head.decision_id, written.value))
                self.join.settle(event.joined.position.offset)
            else:
                self.join.settle_signal(event.read.position.offset)

    @property
    def ended(self) -> bool:
        return self.next == [len(self.log), len(self.signals)]


@settings(max_examples=200, deadline=None)
@given(logs(), st.lists(st.booleans(), max_size=60), st.lists(st.booleans(), max_size=60), st.integers(0, 60))
def test_interleaving_and_crashes_do_not_change_a_decision(
    made: tuple[Log, SignalLog], order: list[bool], other: list[bool], crash_after: int
) -> None:
    log, signals = made
    steady = Run(log, signals)
    for turn in range(len(log) + len(signals)):
        steady.step(order[turn % len(order)] if order else False)
    assert steady.ended
    assert steady.join.open_count == 0
    expected = dict(steady.decisions)
    assert len(expected) == len(steady.decisions) == len({g.generation_id for g in log})

    crashing = Run(log, signals)
    for turn in range(min(crash_after, len(log) + len(signals))):
        crashing.step(other[turn % len(other)] if other else True)
    low = (crashing.join.generation_watermark(), crashing.join.signal_watermark())
    again = Run(log, signals, low)
    for decision_id, value in crashing.decisions:  # what recall_decisions reads back
        decision = decision_pb2.Decision.FromString(value)
        stages = frozenset(j.signal.stage for j in decision.signals)
        about = Decided(decision.generation_record.offset, stages, decision.generation_log_unix_nano)
        again.join.remember((decision.generation_id, decision.attempt), about)
        assert expected[decision_id] == value
    while not again.ended:
        again.step(False)
    for decision_id, value in again.decisions:
        assert expected[decision_id] == value
    assert {i for i, _ in crashing.decisions} | {i for i, _ in again.decisions} == set(expected)


# ---- signals that a bank's change caused -----------------------------------------------------------------------------


def retroactive(g: generation_pb2.Generation, entry: str, *, offset: int) -> signal_pb2.Signal:
    """A match found after the generation was measured; of several each has its own id."""
    made = signal(g, f"{HASHING}.retroactive", offset=offset, matches=[signal_pb2.BankMatch(bank="b", entry_id=entry)])
    made.signal_id = f"id-{entry}"
    made.caused_by.topic = "bank_entries.v1"
    return made


def test_every_retroactive_signal_of_an_open_generation_joins() -> None:
    state = join()
    g = generation()
    state.on_generation(g, at_generation(0))
    for offset, entry in enumerate(("one", "two", "one")):
        assert not state.on_signal(retroactive(g, entry, offset=0), at_signal(offset))
    done = completed(state.on_signal(signal(g, PROMPT, offset=0), at_signal(3)))
    assert sorted(done.joined.signals) == ["id-one", "id-two", PROMPT]
    assert not state.on_signal(retroactive(g, "two", offset=0), at_signal(4)), "the decision rests on it already"
    assert len(state.on_signal(retroactive(g, "three", offset=0), at_signal(5))) == 1


def test_a_retroactive_signal_is_judged_once_by_its_id() -> None:
    state = join(next_generation=9)
    for offset, (entry, events) in enumerate((("one", 1), ("two", 1), ("one", 0), ("two", 0))):
        found = state.on_signal(retroactive(generation(), entry, offset=3), at_signal(offset))
        assert len(found) == events
        assert all(isinstance(event, LateSignal) for event in found)


def test_what_was_judged_before_a_take_over_is_recalled() -> None:
    state = join(next_generation=9)
    state.remember_judged(retroactive(generation(), "one", offset=3), 2_000)
    state.remember_judged(signal(generation(), PROMPT, offset=3), 2_000)
    assert not state.on_signal(retroactive(generation(), "one", offset=3), at_signal(0))
    assert len(state.on_signal(signal(generation(), PROMPT, offset=3), at_signal(1))) == 1, "a stage may say more"
