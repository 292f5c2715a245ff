"""A loaded policy: which stages must report and how long they may take, and what the evidence comes to.

A policy cannot lower what the engine guarantees: evidence that is missing or broken never becomes ALLOW, whatever the
rules say (see ``Policy.judge``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.policy import document
from seawall.core.policy.actor import ActorPolicy
from seawall.core.policy.document import PlacedRule, Source
from seawall.core.policy.evidence import Glance, build_evidence
from seawall.core.policy.expressions import Compiled, Language
from seawall.core.policy.reachability import Alternatives, alternatives, always_answered_by
from seawall.core.policy.watch import Watch
from seawall.core.wire import tag, varint

_NANOS = 1_000_000_000
_ALLOW: Final = decision_pb2.OUTCOME_ALLOW
_REVIEW: Final = decision_pb2.OUTCOME_REVIEW
_HOLD: Final = decision_pb2.OUTCOME_HOLD

#: Rules of the engine itself; a policy's own ids may not begin with "engine/".
RULE_NO_MATCH: Final = "engine/no-rule-matched"
RULE_INCOMPLETE: Final = "engine/incomplete-evidence"
RULE_EXHAUSTED: Final = "engine/attempts-exhausted"
RULE_UNSCANNABLE: Final = "engine/unscannable"
RULE_QUARANTINED: Final = "engine/quarantined-match"
RULE_ERRED: Final = "engine/rule-error"
RULE_MALFORMED: Final = "engine/malformed-record"

_SEVERITY: Final = {
    _ALLOW: decision_pb2.SEVERITY_UNSPECIFIED,
    _REVIEW: decision_pb2.SEVERITY_MEDIUM,
    decision_pb2.OUTCOME_BLOCK: decision_pb2.SEVERITY_HIGH,
    decision_pb2.OUTCOME_BLOCK_AND_REPORT: decision_pb2.SEVERITY_CRITICAL,
}
_FOLLOW_UP: Final = {
    "none": decision_pb2.FOLLOW_UP_UNSPECIFIED,
    "confirm": decision_pb2.FOLLOW_UP_CONFIRM,
    "decide_report": decision_pb2.FOLLOW_UP_DECIDE_REPORT,
}
_COMPARISONS_FIELD: Final = decision_pb2.Decision.DESCRIPTOR.fields_by_name["comparisons"].number
_SCORE_FIELD: Final = decision_pb2.Comparison.DESCRIPTOR.fields_by_name["score"].number
_REACHED_FIELD: Final = decision_pb2.Comparison.DESCRIPTOR.fields_by_name["reached"].number


class Threshold(NamedTuple):
    """A named value that a label's score is compared with."""

    name: str
    #: "<stage>.<label>"
    label: str
    value: float


@dataclass(frozen=True, eq=False)
class Rule:
    """One rule: when its condition holds, the outcome is at least ``outcome``."""

    rule_id: str
    when: str
    outcome: decision_pb2.Outcome.ValueType
    reason_code: str
    severity: decision_pb2.Severity.ValueType
    follow_up: decision_pb2.FollowUp.ValueType
    #: What the decision rests on where this rule decides; empty: every item.
    nexus: frozenset[generation_pb2.Nexus.ValueType]
    #: Recorded, never acted on.
    shadow: bool
    condition: Compiled
    note: str

    def hit(self) -> decision_pb2.RuleHit:
        """What a decision says of it."""
        return decision_pb2.RuleHit(
            rule_id=self.rule_id,
            outcome=self.outcome,
            reason_code=self.reason_code,
            severity=self.severity,
            follow_up=self.follow_up,
        )


class Verdict(NamedTuple):
    """What a policy says of a generation's evidence."""

    outcome: decision_pb2.Outcome.ValueType
    rule_id: str
    reason_code: str
    #: None where the engine itself decided.
    rule: Rule | None
    hits: Sequence[Rule]
    errors: Sequence[str]
    shadow_hits: Sequence[Rule]
    shadow_errors: Sequence[str]
    seen: Glance


class Policy:
    """A loaded bundle. Immutable; ``digest`` is SHA-256 over its files, lower-case hex."""

    def __init__(self, path: Path) -> None:
        """Load and check a bundle's folder or a lone policy file.

        Raises:
            Fatal: BAD_POLICY, naming the file, line or rule and the mend.
        """
        source = document.read(path)
        entry = source.entry
        self.path = path
        self.source = source
        self.digest = source.digest
        self.name = entry.name
        self.version = entry.version
        self.owner = entry.owner
        self.note = entry.note
        self.max_attempts = entry.max_attempts
        #: Rules over actors' histories; None where the bundle has none.
        self.actors = ActorPolicy(entry.actors, source.digest, source.actor_rules) if entry.actors else None
        self._stages = _stages_by_modality(source)
        self._budgets = {number: int(getattr(entry.budgets, key) * _NANOS) for key, number in _MODALITIES.items()}
        self.thresholds = [Threshold(t.name, t.entry.label, t.entry.value) for t in source.thresholds]
        self._labels = sorted({t.label for t in self.thresholds})
        values = {t.name: t.value for t in self.thresholds}
        self._language = Language(values, self._labels)
        #: Every rule, the disabled ones too: they must be right when they are switched on.
        compiled = [(placed, self._compile(placed)) for placed in source.rules]
        taken_apart = [alternatives(rule.condition.checked, values) for _, rule in compiled]
        _refuse_unreachable(compiled, taken_apart)
        self.rules = [rule for placed, rule in compiled if placed.entry.mode != "disabled"]
        self.disabled = [rule for placed, rule in compiled if placed.entry.mode == "disabled"]
        apart = dict(zip((rule.rule_id for _, rule in compiled), taken_apart, strict=True))
        self._watch = Watch(apart[rule.rule_id] for rule in self.rules)
        self._wanted: dict[str, dict[str, tuple[str, float]]] = {}
        for label in self._labels:
            stage, _, name = label.partition(".")
            self._wanted.setdefault(stage, {})[name] = (label, self._watch.scores.get(label, math.inf))
        #: Of the rules that may hold though nothing has been seen that is watched for.
        unwatched = [rule for rule, signs in zip(self.rules, self._watch.signs, strict=True) if signs is None]
        self._guard = self._language.guard([rule.condition for rule in unwatched])
        written = [_ComparisonBytes(threshold) for threshold in self.thresholds]
        self._unmeasured = [one.unmeasured for one in written]
        #: Label → its thresholds, with their places among all.
        self._comparisons: dict[str, list[tuple[int, _ComparisonBytes]]] = {}
        for number, threshold in enumerate(self.thresholds):
            self._comparisons.setdefault(threshold.label, []).append((number, written[number]))

    # ---- what the join asks ------------------------------------------------------------------------------------

    def required(self, generation: generation_pb2.Generation) -> frozenset[str]:
        """The stages that must report, by what the generation carries, and those it names itself."""
        by_modality = self._stages.get(generation.modality)
        nothing, prompt, media, both = by_modality if by_modality is not None else self._stages[0]
        has_prompt = generation.HasField("prompt") or generation.HasField("negative_prompt")
        stages = (both if has_prompt else media) if generation.media else (prompt if has_prompt else nothing)
        named = generation.required_stages
        return stages.union(named) if named else stages

    def same_stages(self, other: Policy) -> bool:
        """Whether both wait for the same stages, whatever a generation is."""
        return self._stages == other._stages

    def budget_nanos(self, generation: generation_pb2.Generation) -> int:
        """How long a generation may wait for its signals, nanoseconds, where it sets no deadline of its own."""
        return self._budgets[generation.modality]

    def describe(self) -> list[tuple[str, frozenset[str], frozenset[str], float]]:
        """Modality, stages of a prompt, stages of media, budget in seconds."""
        return [
            (name, self._stages[number][1], self._stages[number][2], self._budgets[number] / _NANOS)
            for name, number in _MODALITIES.items()
        ]

    # ---- judging -----------------------------------------------------------------------------------------------

    def judge(
        self,
        generation: generation_pb2.Generation,
        signals: Sequence[signal_pb2.Signal],
        missing: Sequence[str],
    ) -> Verdict:
        """Evaluate every rule and take the highest outcome; the first rule that reaches it decides.

        Above the rules stands the engine: missing stages, ERROR items and rules that erred turn anything below REVIEW
        into HOLD, and HOLD into REVIEW once the attempts are used up; UNSCANNABLE items and quarantined matches turn
        anything below REVIEW into REVIEW.
        """
        seen = Glance(signals, missing, self._wanted)
        decisive, hits, errors, shadow_hits, shadow_errors = self._evaluate(generation, signals, seen)
        if decisive is not None:
            outcome, rule_id, reason = decisive.outcome, decisive.rule_id, decisive.reason_code
        else:
            outcome, rule_id, reason = _ALLOW, RULE_NO_MATCH, "NO_RULE_MATCHED"
        if outcome < _REVIEW:
            ruled = self._engine(generation, seen, errors)
            if ruled is not None:
                outcome, rule_id, reason = ruled
                decisive = None
        return Verdict(outcome, rule_id, reason, decisive, hits, errors, shadow_hits, shadow_errors, seen)

    def judge_alone(self, generation: generation_pb2.Generation, signal: signal_pb2.Signal) -> Verdict | None:
        """What one late signal says by itself; None unless it comes to REVIEW or above. It can only escalate."""
        seen = Glance([signal], (), self._wanted)
        decisive, hits, errors, shadow_hits, shadow_errors = self._evaluate(generation, [signal], seen)
        if decisive is not None and decisive.outcome >= _REVIEW:
            outcome, rule_id, reason = decisive.outcome, decisive.rule_id, decisive.reason_code
        elif seen.quarantined:
            decisive, outcome, rule_id, reason = None, _REVIEW, RULE_QUARANTINED, "QUARANTINED_MATCH"
        else:
            return None
        return Verdict(outcome, rule_id, reason, decisive, hits, errors, shadow_hits, shadow_errors, seen)

    def _engine(
        self, generation: generation_pb2.Generation, seen: Glance, errors: Sequence[str]
    ) -> tuple[decision_pb2.Outcome.ValueType, str, str] | None:
        """What the engine makes of an outcome below REVIEW."""
        if seen.missing or seen.errors:
            rule_id, reason = RULE_INCOMPLETE, "MISSING_EVIDENCE" if seen.missing else "STAGE_ERROR"
        elif errors:
            rule_id, reason = RULE_ERRED, "RULE_ERROR"
        elif seen.unscannable:
            return _REVIEW, RULE_UNSCANNABLE, "UNSCANNABLE"
        elif seen.quarantined:
            return _REVIEW, RULE_QUARANTINED, "QUARANTINED_MATCH"
        else:
            return None
        if generation.attempt >= self.max_attempts:
            return _REVIEW, RULE_EXHAUSTED, reason
        return _HOLD, rule_id, reason

    def _evaluate(
        self, generation: generation_pb2.Generation, signals: Sequence[signal_pb2.Signal], seen: Glance
    ) -> tuple[Rule | None, Sequence[Rule], Sequence[str], Sequence[Rule], Sequence[str]]:
        """The rule that decides; rules that hold and that err; the same of rules in shadow."""
        watch = self._watch
        alarmed = watch.alarmed(seen)
        if not alarmed and not self._guard:
            return None, (), (), (), ()
        evaluation = self._language.evaluation(
            generation, seen.scores, seen.evidence(), lambda: build_evidence(signals, seen.missing, self._labels)
        )
        cleared = evaluation.clears(self._guard)
        if cleared and not alarmed:
            return None, (), (), (), ()
        hits: list[Rule] = []
        errors: list[str] = []
        shadow_hits: list[Rule] = []
        shadow_errors: list[str] = []
        decisive: Rule | None = None
        for rule, signs in zip(self.rules, watch.signs, strict=True):
            if cleared if signs is None else not any(sign.seen(seen) for sign in signs):
                continue
            held = evaluation.holds(rule.condition)
            if held:
                (shadow_hits if rule.shadow else hits).append(rule)
                if not rule.shadow and (decisive is None or rule.outcome > decisive.outcome):
                    decisive = rule
            elif held is None:
                (shadow_errors if rule.shadow else errors).append(rule.rule_id)
        return decisive, hits, errors, shadow_hits, shadow_errors

    def comparisons(self, scores: dict[str, float]) -> bytes:
        """Every threshold beside its label's score, in wire format: the field ``comparisons`` of a Decision."""
        parts = self._unmeasured.copy()
        for label, score in scores.items():
            for number, comparison in self._comparisons[label]:
                parts[number] = comparison.beside(score)
        return b"".join(parts)

    # ---- loading -----------------------------------------------------------------------------------------------

    def _compile(self, placed: PlacedRule) -> Rule:
        entry = placed.entry
        outcome = decision_pb2.Outcome.Value(f"OUTCOME_{entry.outcome}")
        return Rule(
            rule_id=entry.id,
            when=entry.when,
            outcome=outcome,
            reason_code=entry.reason,
            severity=(
                decision_pb2.Severity.Value(f"SEVERITY_{entry.severity.upper()}")
                if entry.severity
                else _SEVERITY[outcome]
            ),
            follow_up=_FOLLOW_UP[entry.follow_up],
            nexus=frozenset(generation_pb2.Nexus.Value(f"NEXUS_{name.upper()}") for name in entry.nexus),
            shadow=entry.mode == "shadow",
            condition=self._language.compile(entry.when, placed.when, entry.id),
            note=entry.note,
        )


_MODALITIES: Final = {
    name.removeprefix("MODALITY_").lower(): number for name, number in generation_pb2.Modality.items() if number
}
_Sets = tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]


def _stages_by_modality(source: Source) -> dict[int, _Sets]:
    """Modality → stages for neither, for a prompt, for media, for both; 0 → those of every other modality."""
    stages = source.entry.stages

    def sets(prompt: Sequence[str], media: Sequence[str]) -> _Sets:
        return frozenset(), frozenset(prompt), frozenset(media), frozenset(prompt) | frozenset(media)

    found = {0: sets(stages.prompt, stages.media)}
    for key, number in _MODALITIES.items():
        own = getattr(stages, key)
        found[number] = found[0] if own is None else sets(own.prompt, own.media)
    return found


def _refuse_unreachable(
    compiled: Sequence[tuple[PlacedRule, Rule]], taken_apart: Sequence[Alternatives | None]
) -> None:
    """Raise Fatal for a rule that can never decide. What is in shadow or disabled stands in no other rule's way."""
    known: list[tuple[PlacedRule, Rule, Alternatives]] = []
    for (placed, rule), apart in zip(compiled, taken_apart, strict=True):
        if apart is None:
            continue
        found: Alternatives = [alternative for alternative in apart if alternative.possible()]
        if not found:
            raise placed.when.refuse(
                f"rule {rule.rule_id!r} can never hold: its condition contradicts itself; correct it or take it out"
            )
        known.append((placed, rule, found))
    enforced = [one for one in known if one[0].entry.mode == "enforce"]
    for number, (placed, rule, mine) in enumerate(enforced):
        for other_number, (other_placed, other, others) in enumerate(enforced):
            earlier = other.outcome > rule.outcome or (other.outcome == rule.outcome and other_number < number)
            if other is not rule and earlier and always_answered_by(mine, others):
                raise placed.when.refuse(
                    f"rule {rule.rule_id!r} is unreachable: whenever it holds, {other.rule_id!r} "
                    f"({other_placed.place}) decides; narrow that one, or take one of them out"
                )


class _ComparisonBytes:
    """A threshold's Comparison as bytes, but for the score: what a decision says of it costs one pack."""

    __slots__ = ("_below", "_reached", "_value", "unmeasured")
    _REACHED = tag(_REACHED_FIELD, 0) + b"\x01"

    def __init__(self, threshold: Threshold) -> None:
        self._value = threshold.value
        head = decision_pb2.Comparison(
            threshold=threshold.name, label=threshold.label, value=threshold.value
        ).SerializeToString(deterministic=True)
        self.unmeasured = _framed(head, len(head))
        self._below = _framed(head, len(head) + 9) + tag(_SCORE_FIELD, 1)
        self._reached = _framed(head, len(head) + 11) + tag(_SCORE_FIELD, 1)

    def beside(self, score: float) -> bytes:
        if score >= self._value:
            return self._reached + _DOUBLE.pack(score) + self._REACHED
        return self._below + _DOUBLE.pack(score)


_DOUBLE: Final = struct.Struct("<d")


def _framed(head: bytes, size: int) -> bytes:
    return tag(_COMPARISONS_FIELD, 2) + varint(size) + head
