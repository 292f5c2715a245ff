"""What differs between two bundles, by meaning rather than by line."""

from __future__ import annotations

from typing import NamedTuple

from seawall.api.decision.v1 import decision_pb2
from seawall.core.policy.bundle import Policy, Rule


class Change(NamedTuple):
    """One difference."""

    kind: str
    what: str
    before: str
    after: str


def compare(before: Policy, after: Policy) -> list[Change]:
    """Stages, budgets and attempts first, then thresholds, then rules; empty if the two decide the same."""
    changes: list[Change] = []

    def differ(what: str, old: str | None, new: str | None) -> None:
        if old != new:
            kind = "added" if old is None else "removed" if new is None else "changed"
            changes.append(Change(kind, what, old or "", new or ""))

    for old, new in zip(before.describe(), after.describe(), strict=True):
        for name, was, now in (("prompt", old[1], new[1]), ("media", old[2], new[2])):
            differ(f"stages of {name} in {old[0]}", ", ".join(sorted(was)), ", ".join(sorted(now)))
        differ(f"budget of {old[0]}", f"{old[3]:g} s", f"{new[3]:g} s")
    differ("max_attempts", str(before.max_attempts), str(after.max_attempts))
    olds = {t.name: f"{t.label} {t.value:g}" for t in before.thresholds}
    news = {t.name: f"{t.label} {t.value:g}" for t in after.thresholds}
    for name in dict.fromkeys((*olds, *news)):
        differ(f"threshold {name}", olds.get(name), news.get(name))
    rules_before, rules_after = _rules(before), _rules(after)
    for rule_id in dict.fromkeys((*rules_before, *rules_after)):
        differ(f"rule {rule_id}", rules_before.get(rule_id), rules_after.get(rule_id))
    order_before = [rule_id for rule_id in rules_before if rule_id in rules_after]
    order_after = [rule_id for rule_id in rules_after if rule_id in rules_before]
    differ("order of rules", ", ".join(order_before), ", ".join(order_after))
    actors_before, actors_after = _actors(before), _actors(after)
    for what in dict.fromkeys((*actors_before, *actors_after)):
        differ(what, actors_before.get(what), actors_after.get(what))
    return changes


def _actors(policy: Policy) -> dict[str, str]:
    """What is written of actors, by what it is called."""
    if policy.actors is None:
        return {}
    entry = policy.actors.entry
    whole = entry.model_dump(exclude={"rules", "weights", "thresholds"}, mode="json")
    written = {
        f"actors {key}": ", ".join(value) if isinstance(value, list) else f"{value:g}" for key, value in whole.items()
    }
    written |= {f"actors weight {key}": f"{value:g}" for key, value in entry.weights}
    written |= {f"actors threshold {key}": f"{value:g}" for key, value in entry.thresholds.items()}
    for rule in entry.rules:
        condition = " ".join(rule.when.split())
        said = f"{rule.mode} {rule.standing} {rule.reason} {rule.lasts_hours:g} h when {condition}"
        written[f"actor rule {rule.id}"] = said
    written["order of actor rules"] = ", ".join(rule.id for rule in entry.rules)
    return written


def _rules(policy: Policy) -> dict[str, str]:
    written = {rule.rule_id: _rule(rule, "shadow" if rule.shadow else "enforce") for rule in policy.rules}
    return {**written, **{rule.rule_id: _rule(rule, "disabled") for rule in policy.disabled}}


def _rule(rule: Rule, mode: str) -> str:
    outcome = decision_pb2.Outcome.Name(rule.outcome).removeprefix("OUTCOME_")
    severity = decision_pb2.Severity.Name(rule.severity).removeprefix("SEVERITY_").lower()
    follow_up = decision_pb2.FollowUp.Name(rule.follow_up).removeprefix("FOLLOW_UP_").lower()
    nexus = "".join(f" nexus {number}" for number in sorted(rule.nexus))
    condition = " ".join(rule.when.split())
    return f"{mode} {outcome} {rule.reason_code} {severity} {follow_up}{nexus} when {condition}"
