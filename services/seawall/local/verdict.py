"""What several decisions of one generation amount to. Attempts, repeats and late signals make them several."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1 import override_pb2

Decision = decision_pb2.Decision


def distinct(decisions: Iterable[Decision]) -> list[Decision]:
    """Without repeats (a replay writes the same decision again), by attempt and time."""
    by_id = {decision.decision_id: decision for decision in decisions}
    return sorted(by_id.values(), key=lambda one: (one.attempt, one.decided_unix_nano, one.decision_id))


def effective(decisions: Collection[Decision]) -> Decision | None:
    """The decision that counts: the highest outcome, and of equals the latest attempt's. None if there is none."""
    return max(decisions, key=lambda one: (one.outcome, one.attempt, one.decided_unix_nano), default=None)


def outcome(
    decisions: Collection[Decision], override: override_pb2.Override | None
) -> decision_pb2.Outcome.ValueType | None:
    """What counts: a person's word for all that the person had seen, and the highest of what was decided without it.

    None if nothing is decided.
    """
    if override is None or not override.outcome:
        counts = effective(decisions)
        return counts.outcome if counts else None
    unseen = (one.outcome for one in decisions if one.decision_id not in override.decision_ids)
    return max([override.outcome, *unseen])


def is_settled(decisions: Collection[Decision]) -> bool:
    """True once an outcome is decided, or the last attempt is held and will not be scanned again."""
    if any(decision.outcome > decision_pb2.OUTCOME_HOLD for decision in decisions):
        return True
    last = max(decisions, key=lambda one: one.attempt, default=None)
    return last is not None and not last.rescanned


def conflicts(decisions: Iterable[Decision]) -> list[tuple[int, str]]:
    """(attempt, policy digest) of which more than one distinct joint decision was seen. It must stay empty."""
    seen: dict[tuple[int, str], bytes] = {}
    conflicting = []
    for decision in decisions:
        if decision.kind != decision_pb2.DECISION_KIND_JOINT:
            continue
        attempt = (decision.attempt, decision.policy_digest)
        value = decision.SerializeToString(deterministic=True)
        if seen.setdefault(attempt, value) != value and attempt not in conflicting:
            conflicting.append(attempt)
    return conflicting


def outcome_name(outcome: decision_pb2.Outcome.ValueType) -> str:
    """``ALLOW`` for OUTCOME_ALLOW; ``OUTCOME_7`` for one that this version does not know."""
    try:
        return decision_pb2.Outcome.Name(outcome).removeprefix("OUTCOME_")
    except ValueError:
        return f"OUTCOME_{int(outcome)}"
