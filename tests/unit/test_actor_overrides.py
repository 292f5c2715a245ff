"""A person's word in an actor's history: what stands counts, whichever comes first, however often it is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.core import actor, actor_overrides, identity
from tests.unit.test_actor_history import ALLOW, BLOCK, HOUR, REVIEW, RULES, START, decision, event, standing

REPORT, WITHDRAWN = decision_pb2.OUTCOME_BLOCK_AND_REPORT, decision_pb2.OUTCOME_UNSPECIFIED


def word(
    number: int, outcome: decision_pb2.Outcome.ValueType, offset: int, *also: int, decided: int = START
) -> pb.ActorEvent:
    """A person's on generation ``number``, who had seen its decision, and those of ``also``."""
    made = actor_overrides.event_of(
        Override(
            generation_id=f"g-{number}",
            tenant_id="t",
            actor_id="a",
            outcome=outcome,
            decision_ids=[identity.decision_id(f"g-{one}", 1, "p") for one in (*also, number)],
            decided_unix_nano=decided,
        ),
        "overrides.v1",
        0,
        offset,
    )
    assert made is not None
    return made


def take(kept: pb.ActorHistory, *events: pb.ActorEvent) -> None:
    """As the room's agent does."""
    for one in events:
        if not one.HasField("override"):
            actor.apply(kept, one, RULES)
        elif actor_overrides.apply(kept, one, RULES.entry.window_hours):
            actor.reconsider(kept, "t", RULES)


def kinds(kept: pb.ActorHistory) -> dict[str, int]:
    return {pb.ReasonKind.Name(one.kind).removeprefix("REASON_KIND_"): one.count for one in standing(kept).reasons}


# ---- what stands -----------------------------------------------------------------------------------------------------


def test_what_is_overturned_counts_no_longer_and_counts_again_when_that_is_taken_back() -> None:
    made = decision(1, BLOCK, 0.9)
    made.signals[0].signal.items[0].labels.add(label="evasion", score=1.0)
    kept = pb.ActorHistory()
    take(kept, event(made, 0), event(decision(2, REVIEW), 1))
    assert kinds(kept) == {"BLOCK": 1, "EVASION": 1, "NEAR_MISS": 1}
    take(kept, word(1, ALLOW, 0))
    assert kinds(kept) == {"NEAR_MISS": 1}
    take(kept, word(1, WITHDRAWN, 1))
    assert kinds(kept) == {"BLOCK": 1, "EVASION": 1, "NEAR_MISS": 1}
    assert len(kept.overrides) == 0


def test_what_is_raised_counts_as_raised_though_it_was_not_worth_noting() -> None:
    kept = pb.ActorHistory()
    # Allowed without a score: no event was ever written about it.
    assert actor.event_of(decision(1), "decisions.v1", 0, 0, RULES) is None
    take(kept, word(1, REPORT, 0))
    assert kinds(kept) == {"REPORT": 1}
    take(kept, event(decision(2, score=0.4), 1), word(2, BLOCK, 1))
    assert kinds(kept) == {"REPORT": 1, "BLOCK": 1}, "not as a drip beside"


def test_several_decisions_of_a_generation_become_one_word() -> None:
    kept = pb.ActorHistory()
    take(kept, event(decision(1, REVIEW), 0), event(decision(2, BLOCK), 1), word(2, REVIEW, 0, 1))
    assert kinds(kept) == {"NEAR_MISS": 1}


def test_what_was_decided_after_the_word_counts_beside_it() -> None:
    kept = pb.ActorHistory()
    take(kept, event(decision(1, BLOCK), 0), word(1, ALLOW, 0), event(decision(9, REVIEW), 1))
    assert kinds(kept) == {"NEAR_MISS": 1}


def test_a_word_that_names_nobody_is_not_passed_on() -> None:
    said = Override(generation_id="g", outcome=ALLOW, decision_ids=["d"])
    assert actor_overrides.event_of(said, "overrides.v1", 0, 0) is None


def test_an_earlier_word_that_is_read_again_changes_nothing() -> None:
    kept = pb.ActorHistory()
    take(kept, *(event(decision(n, BLOCK), n) for n in range(3)))
    said = [word(0, ALLOW, 0), word(0, BLOCK, 1)]
    take(kept, *said)
    assert standing(kept).standing == pb.STANDING_RESTRICTED
    before = kept.SerializeToString(deterministic=True)
    take(kept, said[0])
    # Not even on its way to the word that stands: a standing would be lost by it.
    assert kept.SerializeToString(deterministic=True) == before


# ---- standings -------------------------------------------------------------------------------------------------------


def test_a_standing_that_rested_on_what_was_overturned_ends() -> None:
    kept = pb.ActorHistory()
    take(kept, *(event(decision(n, BLOCK), n) for n in range(3)))
    assert standing(kept).standing == pb.STANDING_RESTRICTED
    take(kept, word(0, ALLOW, 0))
    lower = standing(kept)
    assert (lower.standing, lower.rule_id) == (pb.STANDING_WATCHED, "actor-pressure")
    take(kept, word(1, ALLOW, 1), word(2, ALLOW, 2))
    good = standing(kept)
    assert (good.standing, good.expires_unix_nano, good.pressure) == (pb.STANDING_GOOD, 0, 0.0)


def test_a_standing_that_was_given_without_it_stays_and_is_not_shortened() -> None:
    kept = pb.ActorHistory()
    take(kept, *(event(decision(n, BLOCK), n) for n in range(4)))
    first = standing(kept)
    later = START + 60 * HOUR
    take(kept, event(decision(5, REVIEW, decided_unix_nano=later), 5))
    assert standing(kept).standing == pb.STANDING_RESTRICTED
    take(kept, word(5, ALLOW, 0, decided=later))
    # By now what is left would not give it again; it was given, and rightly, for so long.
    found = standing(kept)
    assert (found.standing, found.expires_unix_nano) == (pb.STANDING_RESTRICTED, first.expires_unix_nano)
    take(kept, word(0, ALLOW, 1))
    assert standing(kept).standing == pb.STANDING_RESTRICTED, "three are enough"
    take(kept, word(1, ALLOW, 2))
    assert standing(kept).standing != pb.STANDING_RESTRICTED


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_words_leave_a_history_of_bounded_size() -> None:
    kept = pb.ActorHistory()
    for number in range(1_000):
        take(kept, event(decision(number, ALLOW, 0.4), number), word(number, REVIEW, number))
    assert len(kept.overrides) == actor_overrides.MAX_WORDS
    assert kinds(kept) == {"NEAR_MISS": 1_000}
    many = Override(generation_id="g", actor_id="a", outcome=ALLOW, decision_ids=["0" * 32] * 999)
    found = actor_overrides.event_of(many, "overrides.v1", 0, 0)
    assert found is not None
    assert len(found.override.decisions) == actor_overrides.MAX_NAMED


def test_a_history_of_an_earlier_version_goes_on() -> None:
    kept = pb.ActorHistory()
    take(kept, event(decision(1, BLOCK), 0))
    # It did not keep what each decision added.
    del kept.counted[:]
    take(kept, event(decision(2, BLOCK), 1), word(1, ALLOW, 0), word(2, ALLOW, 1))
    assert kinds(kept) == {"BLOCK": 1}, "what is not known cannot be taken back"


# ---- any order -------------------------------------------------------------------------------------------------------


class Made(NamedTuple):
    """A decision of the generation of its place in the list."""

    outcome: decision_pb2.Outcome.ValueType
    score: float
    evasion: bool
    hours: int


class Said(NamedTuple):
    """A person's word on a generation."""

    generation: int
    outcome: decision_pb2.Outcome.ValueType


_MADE = st.builds(
    Made,
    st.sampled_from([ALLOW, REVIEW, BLOCK, REPORT]),
    st.sampled_from([0.0, 0.4]),
    st.booleans(),
    st.integers(0, 250),
)
_SAID = st.builds(Said, st.integers(0, 7), st.sampled_from([WITHDRAWN, ALLOW, REVIEW, BLOCK, REPORT]))
_FIELDS = {REVIEW: "near_misses", BLOCK: "blocks", REPORT: "reports"}


def _decision(number: int, made: Made) -> decision_pb2.Decision:
    whole = decision(number, made.outcome, made.score, decided_unix_nano=START + made.hours * HOUR)
    whole.signals[0].signal.items[0].labels.add(label="evasion", score=float(made.evasion))
    return whole


def _expected(made: Sequence[Made], said: Sequence[Said]) -> dict[int, dict[str, float]]:
    """By the words alone that stand in the end."""
    last = {one.generation: one.outcome for one in said if one.generation < len(made)}
    stands = {number: outcome for number, outcome in last.items() if outcome != WITHDRAWN}
    seen = [n for n, one in enumerate(made) if one.outcome != ALLOW or one.score]
    newest = max([made[n].hours for n in (*seen, *last)], default=0)
    counts: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for number, one in enumerate(made):
        outcome = stands.get(number, one.outcome)
        if newest - one.hours >= RULES.entry.window_hours:
            continue
        hour = counts[one.hours]
        if outcome in _FIELDS:
            hour[_FIELDS[outcome]] += 1
        if number not in seen or stands.get(number) == ALLOW:
            continue
        hour["evasions"] += one.evasion
        if number not in stands and outcome == ALLOW:
            hour["drips"] += 1
            hour["drip_sum"] += 0.4
    return {hour: filled for hour, of in counts.items() if (filled := {k: v for k, v in of.items() if v})}


#: Which topic is read on, and how far back both are read again after it: 0 where nothing crashes.
_TURN = st.tuples(st.integers(0, 1), st.sampled_from([0, 0, 0, 1, 3, 20]))


@given(st.lists(_MADE, max_size=8), st.lists(_SAID, max_size=12), st.lists(_TURN, max_size=40))
def test_what_stands_counts_in_any_order_and_however_often_it_is_read(
    made: list[Made], said: list[Said], turns: list[tuple[int, int]]
) -> None:
    """Decisions and words come from two topics, each in its order; after a crash some of both are read again."""
    said = [one for one in said if one.generation < len(made)]
    decided = [_decision(number, one) for number, one in enumerate(made)]

    def events(begin: int) -> list[pb.ActorEvent]:
        found = (actor.event_of(one, "decisions.v1", 0, at, RULES) for at, one in enumerate(decided, begin))
        return [one for one in found if one is not None]

    words = [
        word(one.generation, one.outcome, offset, decided=START + made[one.generation].hours * HOUR)
        for offset, one in enumerate(said)
    ]
    kept = pb.ActorHistory()
    place, read = [0, 0], [events(0), words]
    for topic, back in turns:
        take(kept, *read[topic][place[topic] : place[topic] + 1])
        place[topic] += 1
        standing(kept)
        if back:
            kept = pb.ActorHistory.FromString(kept.SerializeToString())
            place = [max(0, at - back) for at in place]
    for at, records in zip(place, read, strict=True):
        take(kept, *records[at:])
    # And the aggregator's own replay: the same decisions further up the log.
    take(kept, *events(len(decided)))
    counts = {
        int(one.hour - START // HOUR): {
            name: pytest.approx(getattr(one, name), abs=1e-6)
            for name in (*_FIELDS.values(), "evasions", "drips", "drip_sum")
            if getattr(one, name)
        }
        for one in kept.hours
    }
    assert {hour: of for hour, of in counts.items() if of} == _expected(made, said)
