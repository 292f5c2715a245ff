"""Cases of actor rules in tests.yaml: what an actor did and when, and the standing and rule that must follow.

    actor_cases:
      - name: fourteen prompts below every threshold, an hour apart
        decisions: [{outcome: ALLOW, score: 0.4, times: 14, hours_apart: 1}]
        expect: {standing: WATCHED, rule: slow-drip}

They run through the same arithmetic as actor_history, decay and windows included.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.core import actor, identity
from seawall.core.policy.actor import ActorPolicy
from seawall.core.policy.actor_entry import Score

_HOUR_NANOS: Final = 3600 * 1_000_000_000
#: Any whole hour: nothing depends on which.
_BEGIN: Final = 480_000 * _HOUR_NANOS
_MAX_TIMES = 1_000

Hours = Annotated[float, Field(ge=0, le=24 * 366, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Decided(_Strict):
    """Decisions that are alike."""

    outcome: Literal["HOLD", "ALLOW", "REVIEW", "BLOCK", "BLOCK_AND_REPORT"]
    #: Of the first label under `rare`, and by how much it rises from one to the next.
    score: Score = 0.0
    rising: Score = 0.0
    evasion: bool = False
    conversation: Annotated[str, Field(max_length=64)] = ""
    times: Annotated[int, Field(ge=1, le=_MAX_TIMES)] = 1
    hours_apart: Hours = 0.0
    #: Since what is listed before.
    hours_later: Hours = 0.0


class ExpectStanding(_Strict):
    """What must follow. ``after_hours``: as a reader sees it so long after the last decision, with nothing new."""

    standing: Literal["GOOD", "WATCHED", "RESTRICTED"]
    rule: str | None = None
    after_hours: Hours = 0.0


class ActorCase(_Strict):
    """One case."""

    name: Annotated[str, Field(min_length=1, max_length=300)]
    decisions: Annotated[tuple[Decided, ...], Field(min_length=1, max_length=100)]
    expect: ExpectStanding


def run(policy: ActorPolicy, case: ActorCase) -> tuple[str, str, str]:
    """The standing, the rule it rests on, and what is wrong with that; empty if it is as expected."""
    history, made, now, number = pb.ActorHistory(), pb.ActorStanding(standing=pb.STANDING_GOOD), _BEGIN, 0
    for decided in case.decisions:
        now += int(decided.hours_later * _HOUR_NANOS)
        for turn in range(decided.times):
            now += int(decided.hours_apart * _HOUR_NANOS) if turn else 0
            number += 1
            event = actor.event_of(_decision(policy, decided, turn, now, number), "decisions.v1", 0, number, policy)
            if event is not None:
                actor.apply(history, event, policy)
                made = actor.standing(history, event.tenant_id, event.actor_id, policy)
    expect = case.expect
    if made.expires_unix_nano <= now + int(expect.after_hours * _HOUR_NANOS):
        standing, rule = "GOOD", ""
    else:
        standing, rule = pb.Standing.Name(made.standing).removeprefix("STANDING_"), made.rule_id
    if standing != expect.standing:
        return standing, rule, f"expected {expect.standing}, got {standing}{f' by {rule}' if rule else ''}"
    if expect.rule is not None and rule != expect.rule:
        return standing, rule, f"expected rule {expect.rule}, got {rule or 'none'}"
    return standing, rule, ""


def _decision(policy: ActorPolicy, decided: Decided, turn: int, now: int, number: int) -> decision_pb2.Decision:
    made = decision_pb2.Decision(
        decision_id=identity.decision_id(str(number), 1, policy.digest),
        tenant_id="tenant",
        actor_id="actor",
        conversation_id=decided.conversation,
        outcome=decision_pb2.Outcome.Value(f"OUTCOME_{decided.outcome}"),
        decided_unix_nano=now,
    )
    scores = [(label, min(decided.score + turn * decided.rising, 1.0)) for label in policy.entry.rare[:1]]
    scores += [(label, 1.0) for label in policy.entry.evasion[:1] if decided.evasion]
    for name, score in scores:
        stage, _, label = name.partition(".")
        signal = made.signals.add().signal
        signal.stage = stage
        signal.items.add(item_id="prompt").labels.add(label=label, score=score)
    return made
