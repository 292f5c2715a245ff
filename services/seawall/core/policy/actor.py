"""A policy's actor rules, loaded: what an actor's recent decisions come to, and the rule that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.core.policy.actor_conditions import ActorLanguage
from seawall.core.policy.actor_entry import ActorRuleEntry, ActorsEntry
from seawall.core.policy.document import Place

_NANOS_AN_HOUR: Final = 3600 * 1_000_000_000


class ActorRule(NamedTuple):
    """One rule: while its condition holds, the standing is at least this."""

    rule_id: str
    when: str
    standing: pb.Standing.ValueType
    reason_code: str
    lasts_hours: float
    #: "enforce", "shadow" or "disabled".
    mode: str
    note: str
    condition: Any

    @property
    def lasts_nanos(self) -> int:
        """How long the standing lasts, nanoseconds."""
        return int(self.lasts_hours * _NANOS_AN_HOUR)


class ActorVerdict(NamedTuple):
    """What the rules say of an actor's features."""

    #: The rule that the standing rests on; None: GOOD.
    rule: ActorRule | None
    shadow_rules: Sequence[str]
    errors: Sequence[str]


class ActorPolicy:
    """The section ``actors`` of a bundle. Immutable.

    Args:
        digest: of the bundle it is part of.
        places: where each rule's condition stands.
    """

    def __init__(self, entry: ActorsEntry, digest: str, places: Sequence[Place]) -> None:
        """Compile and check.

        Raises:
            Fatal: BAD_POLICY, naming the rule, the line and the mend.
        """
        self.entry = entry
        self.digest = digest
        #: Stage → its labels that are looked at: True for a rare class, False for evasion.
        self.looked_at: dict[str, dict[str, bool]] = {}
        for name, rare in [*((name, False) for name in entry.evasion), *((name, True) for name in entry.rare)]:
            stage, _, label = name.partition(".")
            self.looked_at.setdefault(stage, {})[label] = rare
        self._language = ActorLanguage(entry.thresholds)
        self.rules: list[ActorRule] = []
        nobody = self._language.activation(pb.ActorFeatures())
        for rule, when in zip(entry.rules, places, strict=True):
            made = _rule(rule, self._language.compile(rule.when, when, rule.id))
            if made.condition.eval(nobody).plain_value() is True:
                raise when.refuse(
                    f"actor rule {rule.id!r} holds for an actor of whom nothing is known: ask for a count of at least 1"
                )
            self.rules.append(made)
        # The highest standing first, and of equals the first listed: the first that holds is the one that counts.
        ordered = sorted(self.rules, key=lambda one: -one.standing)
        self._enforced = [one for one in ordered if one.mode == "enforce"]
        self._shadow = [one for one in ordered if one.mode == "shadow"]
        self._first = self._language.first([one.when for one in self._enforced])

    def judge(self, features: pb.ActorFeatures) -> ActorVerdict:
        """Evaluate the rules; the highest standing wins, and of equals the first that is listed."""
        activation = self._language.activation(features)
        errors: list[str] = []

        def holds(rule: ActorRule) -> bool:
            answer = rule.condition.eval(activation).plain_value()
            if answer is not True and answer is not False:
                # An expression that divides by zero yields an error's text, not an exception.
                errors.append(rule.rule_id)
            return answer is True

        number = self._first.eval(activation).plain_value() if self._first is not None else None
        if isinstance(number, int):
            decisive = self._enforced[number] if number >= 0 else None
        else:
            # One of them errs: each by itself, so that it is named and hides no other.
            held = [rule for rule in self._enforced if holds(rule)]
            decisive = held[0] if held else None
        shadow_rules = [rule.rule_id for rule in self._shadow if holds(rule)]
        return ActorVerdict(decisive, shadow_rules, errors)


def _rule(entry: ActorRuleEntry, condition: Any) -> ActorRule:
    return ActorRule(
        rule_id=entry.id,
        when=entry.when,
        standing=pb.Standing.Value(f"STANDING_{entry.standing}"),
        reason_code=entry.reason,
        lasts_hours=entry.lasts_hours,
        mode=entry.mode,
        note=entry.note,
        condition=condition,
    )
