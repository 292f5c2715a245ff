"""Counts of an actor's hours: what a decision adds, and what it adds once a person has had a word. Pure."""

from __future__ import annotations

from typing import Final

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2

HOUR_NANOS: Final = 3600 * 1_000_000_000
#: Nobody has had a word, or it was taken back.
NO_WORD: Final = decision_pb2.OUTCOME_UNSPECIFIED


def count_decision(
    history: pb.ActorHistory, one: pb.CountedDecision, word: decision_pb2.Outcome.ValueType, oldest: int, sign: int = 1
) -> None:
    """Add to its hour what a decision adds while ``word`` is a person's on it, or take it away (``sign`` -1).

    A word stands in place of the outcome, and of everything if it is ALLOW; what was done to hide it, and how its
    conversation went, stay what they were otherwise. Hours up to ``oldest`` are forgotten.
    """
    if word == decision_pb2.OUTCOME_ALLOW or one.hour <= oldest:
        return
    hour = _hour(history, one.hour)
    if word == NO_WORD:
        _count_outcome(hour, one.outcome, sign)
        if one.drip:
            hour.drips = max(hour.drips + sign, 0)
            # Of nothing the sum is nothing, whatever adding and taking away have left.
            hour.drip_sum = hour.drip_sum + sign * one.drip if hour.drips else 0.0
    if one.evasion:
        hour.evasions = max(hour.evasions + sign, 0)
    if one.escalation:
        hour.escalations = max(hour.escalations + sign, 0)


def count_word(history: pb.ActorHistory, word: pb.KeptOverride, oldest: int, sign: int = 1) -> None:
    """Add to its hour what a person's word adds by itself, or take it away."""
    if word.outcome > decision_pb2.OUTCOME_ALLOW and word.hour > oldest:
        _count_outcome(_hour(history, word.hour), word.outcome, sign)


def move_on(history: pb.ActorHistory, decided_unix_nano: int, window_hours: int) -> int:
    """The newest decision may be this one: hours that the window leaves behind are forgotten. Returns the last of them,
    hours since 1970."""
    history.newest_unix_nano = max(history.newest_unix_nano, decided_unix_nano)
    oldest: int = history.newest_unix_nano // HOUR_NANOS - window_hours
    gone = 0
    while gone < len(history.hours) and history.hours[gone].hour <= oldest:
        gone += 1
    del history.hours[:gone]
    return oldest


def short(decision_id: str) -> int:
    """The first 8 bytes of a decision id, 32 hex digits; of anything else, a digest of it would do as well."""
    try:
        return int(decision_id[:16], 16)
    except ValueError:
        return 0


def _count_outcome(hour: pb.HourCounts, outcome: decision_pb2.Outcome.ValueType, sign: int) -> None:
    # Never below 0: a policy whose window has grown lets hours back in that were forgotten.
    match outcome:
        case decision_pb2.OUTCOME_REVIEW:
            hour.near_misses = max(hour.near_misses + sign, 0)
        case decision_pb2.OUTCOME_BLOCK:
            hour.blocks = max(hour.blocks + sign, 0)
        case decision_pb2.OUTCOME_BLOCK_AND_REPORT:
            hour.reports = max(hour.reports + sign, 0)


def _hour(history: pb.ActorHistory, hour: int) -> pb.HourCounts:
    """The counts of an hour; decisions of several partitions come out of order, if not by much."""
    place = len(history.hours)
    while place and history.hours[place - 1].hour > hour:
        place -= 1
    if place and history.hours[place - 1].hour == hour:
        return history.hours[place - 1]
    if place == len(history.hours):
        return history.hours.add(hour=hour)
    history.hours.insert(place, pb.HourCounts(hour=hour))
    return history.hours[place]
