"""The section ``actors`` of a policy as it is written: what counts of an actor's decisions, and the rules over it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_MAX_RULES = 50
_MAX_LABELS = 50

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Weight = Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False, strict=True)]
Hours = Annotated[float, Field(gt=0, le=24 * 365, allow_inf_nan=False, strict=True)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9_]+\.[a-z0-9_]+$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ActorWeights(_Strict):
    """What one of each adds to the pressure; a drip its score times this."""

    near_miss: Weight = 1.0
    block: Weight = 3.0
    report: Weight = 10.0
    evasion: Weight = 2.0
    escalation: Weight = 2.0
    drip: Weight = 1.0


class ActorRuleEntry(_Strict):
    """A rule over an actor's features."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/-]{0,63}$")]
    when: Annotated[str, Field(min_length=1, max_length=8_000)]
    standing: Literal["WATCHED", "RESTRICTED"]
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
    #: How long the standing lasts from the newest decision for which the rule holds.
    lasts_hours: Hours
    mode: Literal["enforce", "shadow", "disabled"] = "enforce"
    note: Annotated[str, Field(max_length=2_000)] = ""


class ActorsEntry(_Strict):
    """What counts, how much and for how long, and what it comes to."""

    #: "<stage>.<label>" of the rare classes whose scores add up.
    rare: Annotated[tuple[Label, ...], Field(max_length=_MAX_LABELS)]
    #: Labels that say: what was found stood only in a reading that undoes obfuscation.
    evasion: Annotated[tuple[Label, ...], Field(max_length=_MAX_LABELS)] = ()
    #: A score below it is noise and adds nothing.
    drip_floor: Score
    #: A conversation escalates with so many rises of at least `rise` above the score before.
    rises: Annotated[int, Field(ge=1, le=100, strict=True)] = 3
    rise: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)] = 0.08
    #: How far back counts go; and what has happened weighs half as much after so long.
    window_hours: Annotated[int, Field(ge=1, le=24 * 31, strict=True)] = 168
    half_life_hours: Hours = 48.0
    weights: ActorWeights = ActorWeights()
    thresholds: Annotated[dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]], Field()] = Field(
        default_factory=dict, max_length=200
    )
    rules: Annotated[tuple[ActorRuleEntry, ...], Field(min_length=1, max_length=_MAX_RULES)]
