"""The policy: ordered rules in YAML with CEL conditions, type-checked against the protos when they are loaded.

A policy cannot lower what the engine guarantees: evidence that is missing or broken never becomes ALLOW, whatever the
rules say (see ``Policy.judge``). CEL is evaluated by the CEL project's own C++ runtime (cel-expr-python), which reads
protobuf messages directly; expressions see

* ``generation`` – the seawall.api.generation.v1.Generation (its texts sealed),
* ``evidence``   – the seawall.api.decision.v1.Evidence,
* ``threshold``  – map of the policy's named values.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cel_expr_python import cel
from google.protobuf import descriptor_pool

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal

_OUTCOMES = {
    "ALLOW": decision_pb2.OUTCOME_ALLOW,
    "REVIEW": decision_pb2.OUTCOME_REVIEW,
    "BLOCK": decision_pb2.OUTCOME_BLOCK,
    "BLOCK_AND_REPORT": decision_pb2.OUTCOME_BLOCK_AND_REPORT,
}
_MAX_BYTES = 1 << 20
_MAX_RULES = 500
_SCORE_KEY = re.compile(r"""\bevidence\.score\[\s*["']([^"']*)["']\s*\]""")
_THRESHOLD_KEY = re.compile(r"""\bthreshold\[\s*["']([^"']*)["']\s*\]""")
_NANOS = 1_000_000_000

#: Rules of the engine itself; a policy's own ids may not begin with "engine/".
RULE_NO_MATCH = "engine/no-rule-matched"
RULE_INCOMPLETE = "engine/incomplete-evidence"
RULE_EXHAUSTED = "engine/attempts-exhausted"
RULE_UNSCANNABLE = "engine/unscannable"
RULE_ERRED = "engine/rule-error"
RULE_MALFORMED = "engine/malformed-record"


class Threshold(NamedTuple):
    """A named value that a label's score is compared with."""

    name: str
    #: "<stage>.<label>"
    label: str
    value: float


@dataclass(frozen=True)
class Rule:
    """One rule: when its condition holds, the outcome is at least ``outcome``."""

    rule_id: str
    when: str
    outcome: decision_pb2.Outcome.ValueType
    reason_code: str
    expression: Any


class Verdict(NamedTuple):
    """What the policy says of a generation's evidence."""

    outcome: decision_pb2.Outcome.ValueType
    rule_id: str
    reason_code: str
    hits: list[Rule]
    errors: list[str]
    comparisons: list[decision_pb2.Comparison]


def _refuse(path: Path, where: str, detail: str) -> Fatal:
    return Fatal("BAD_POLICY", f"{path.name}: {where}: {detail}")


class Policy:
    """A loaded policy. Immutable; ``digest`` is the SHA-256 of the file's bytes, lower-case hex."""

    def __init__(self, path: Path) -> None:
        """Load and check the policy file.

        Raises:
            Fatal: BAD_POLICY, naming the rule or key and the mend.
        """
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise Fatal(
                "BAD_POLICY", f"{path}: cannot be read ({error.strerror}): check the path and its mode"
            ) from error
        if len(raw) > _MAX_BYTES:
            raise _refuse(path, "file", f"{len(raw)} bytes, at most {_MAX_BYTES}: split the policy")
        try:
            document = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}" if mark else "file"
            raise _refuse(path, where, f"not YAML ({getattr(error, 'problem', 'unreadable')})") from error
        if not isinstance(document, dict):
            raise _refuse(path, "file", "must be a mapping with name, version, stages, budgets, thresholds and rules")
        self._path = path
        self.digest = hashlib.sha256(raw).hexdigest()
        known = {"name", "version", "owner", "note", "stages", "budgets", "max_attempts", "thresholds", "rules"}
        if unknown := sorted(document.keys() - known):
            raise _refuse(path, f"key {unknown[0]!r}", f"not known; one of {', '.join(sorted(known))}")
        self.name = self._text(document, "name")
        self.version = self._text(document, "version")
        self.max_attempts = self._max_attempts(document)
        self._prompt_stages, self._media_stages = self._stages(document)
        self._budgets = self._load_budgets(document)
        self.thresholds = self._load_thresholds(document)
        self._values = {t.name: t.value for t in self.thresholds}
        self._labels = sorted({t.label for t in self.thresholds})
        self._env = cel.NewEnv(
            descriptor_pool.Default(),
            variables={
                "generation": cel.Type(generation_pb2.Generation.DESCRIPTOR.full_name),
                "evidence": cel.Type(decision_pb2.Evidence.DESCRIPTOR.full_name),
                "threshold": cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE),
            },
        )
        self.rules = self._load_rules(document)

    # ---- what the join asks ------------------------------------------------------------------------------------

    def required(self, generation: generation_pb2.Generation) -> frozenset[str]:
        """The stages that must report, by what the generation carries, and those it names itself."""
        stages: set[str] = set(generation.required_stages)
        if generation.HasField("prompt") or generation.HasField("negative_prompt"):
            stages |= self._prompt_stages
        if generation.media:
            stages |= self._media_stages
        return frozenset(stages)

    def budget_nanos(self, generation: generation_pb2.Generation) -> int:
        """How long a generation may wait for its signals, nanoseconds, where it sets no deadline of its own."""
        return self._budgets[generation.modality]

    # ---- judging -----------------------------------------------------------------------------------------------

    def judge(
        self,
        generation: generation_pb2.Generation,
        signals: Sequence[signal_pb2.Signal],
        missing: Sequence[str],
        *,
        rescannable: bool = True,
    ) -> Verdict:
        """Evaluate every rule and take the highest outcome; the first rule that reaches it decides.

        Above the rules stands the engine: missing stages, ERROR items and rules that erred turn anything below REVIEW
        into HOLD, and HOLD into REVIEW once the attempts are used up or a new scan could not help; UNSCANNABLE items
        turn anything below REVIEW into REVIEW.
        """
        evidence = build_evidence(signals, missing, self._labels)
        hits, errors = self._evaluate(generation, evidence)
        outcome, rule_id, reason = decision_pb2.OUTCOME_ALLOW, RULE_NO_MATCH, "NO_RULE_MATCHED"
        for rule in hits:
            if rule.outcome > outcome or rule_id == RULE_NO_MATCH:
                outcome, rule_id, reason = rule.outcome, rule.rule_id, rule.reason_code
        if outcome < decision_pb2.OUTCOME_REVIEW:
            if evidence.missing or evidence.errors or errors:
                if evidence.missing or evidence.errors:
                    rule_id, reason = RULE_INCOMPLETE, "MISSING_EVIDENCE" if evidence.missing else "STAGE_ERROR"
                else:
                    rule_id, reason = RULE_ERRED, "RULE_ERROR"
                outcome = decision_pb2.OUTCOME_HOLD
                if not rescannable or generation.attempt >= self.max_attempts:
                    outcome, rule_id = decision_pb2.OUTCOME_REVIEW, RULE_EXHAUSTED
            elif evidence.unscannable:
                outcome, rule_id, reason = decision_pb2.OUTCOME_REVIEW, RULE_UNSCANNABLE, "UNSCANNABLE"
        return Verdict(outcome, rule_id, reason, hits, errors, self._compare(evidence))

    def judge_alone(self, generation: generation_pb2.Generation, signal: signal_pb2.Signal) -> Verdict | None:
        """What one late signal says by itself; None unless a rule takes it to REVIEW or above. It can only escalate."""
        evidence = build_evidence([signal], (), self._labels)
        hits, errors = self._evaluate(generation, evidence)
        decisive: Rule | None = None
        for rule in hits:
            if rule.outcome >= decision_pb2.OUTCOME_REVIEW and (decisive is None or rule.outcome > decisive.outcome):
                decisive = rule
        if decisive is None:
            return None
        comparisons = self._compare(evidence)
        return Verdict(decisive.outcome, decisive.rule_id, decisive.reason_code, hits, errors, comparisons)

    def _evaluate(
        self, generation: generation_pb2.Generation, evidence: decision_pb2.Evidence
    ) -> tuple[list[Rule], list[str]]:
        activation = self._env.Activation({"generation": generation, "evidence": evidence, "threshold": self._values})
        hits, errors = [], []
        for rule in self.rules:
            held = rule.expression.eval(activation).plain_value()
            if held is True:
                hits.append(rule)
            elif held is not False:
                # An expression that divides by zero or reads an absent key yields an error's text, not an exception.
                errors.append(rule.rule_id)
        return hits, errors

    def _compare(self, evidence: decision_pb2.Evidence) -> list[decision_pb2.Comparison]:
        measured: set[str] = set()
        for item in evidence.items:
            measured.update(f"{item.stage}.{label}" for label in item.score)
        comparisons = []
        for name, label, value in self.thresholds:
            if label in measured:
                score = evidence.score[label]
                comparisons.append(
                    decision_pb2.Comparison(
                        threshold=name, label=label, value=value, score=score, reached=score >= value
                    )
                )
            else:
                comparisons.append(decision_pb2.Comparison(threshold=name, label=label, value=value))
        return comparisons

    # ---- loading -----------------------------------------------------------------------------------------------

    def _text(self, document: Mapping[str, Any], key: str) -> str:
        value = document.get(key)
        if not isinstance(value, str) or not value:
            raise _refuse(self._path, key, 'must be a non-empty string (quote numbers: version: "1")')
        return value

    def _max_attempts(self, document: Mapping[str, Any]) -> int:
        value = document.get("max_attempts", 3)
        if not isinstance(value, int) or not 1 <= value <= 10:
            raise _refuse(self._path, "max_attempts", "must be a whole number from 1 to 10")
        return value

    def _stages(self, document: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
        stages = document.get("stages")
        if not isinstance(stages, dict) or set(stages) != {"prompt", "media"}:
            raise _refuse(self._path, "stages", "must list the required stages of 'prompt' and of 'media'")
        for key, names in stages.items():
            if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
                raise _refuse(self._path, f"stages.{key}", "must be a list of at least one room name")
        return frozenset(stages["prompt"]), frozenset(stages["media"])

    def _load_budgets(self, document: Mapping[str, Any]) -> dict[int, int]:
        budgets = document.get("budgets")
        names = [name for name, number in generation_pb2.Modality.items() if number]
        expected = {n.removeprefix("MODALITY_").lower(): generation_pb2.Modality.Value(n) for n in names}
        if not isinstance(budgets, dict) or set(budgets) != set(expected):
            raise _refuse(self._path, "budgets", f"must give seconds for each of {', '.join(expected)}")
        loaded: dict[int, int] = {}
        for key, seconds in budgets.items():
            if not isinstance(seconds, int | float) or not 0 < seconds <= 86_400:
                raise _refuse(self._path, f"budgets.{key}", "must be seconds, above 0 and at most 86400")
            loaded[expected[key]] = int(seconds * _NANOS)
        return loaded

    def _load_thresholds(self, document: Mapping[str, Any]) -> list[Threshold]:
        thresholds = document.get("thresholds", {})
        if not isinstance(thresholds, dict):
            raise _refuse(self._path, "thresholds", "must map a name to {label, value}")
        loaded = []
        for name, entry in thresholds.items():
            where = f"thresholds.{name}"
            if not isinstance(entry, dict) or set(entry) != {"label", "value"}:
                raise _refuse(self._path, where, "must have exactly 'label' and 'value'")
            label, value = entry["label"], entry["value"]
            if not isinstance(label, str) or not re.fullmatch(r"[a-z_0-9]+\.[a-z_0-9]+", label):
                raise _refuse(self._path, where, "label must be '<stage>.<label>', for example classification.explicit")
            if not isinstance(value, int | float) or math.isnan(value) or not 0 <= value <= 1:
                raise _refuse(self._path, where, "value must be a number from 0 to 1")
            loaded.append(Threshold(str(name), label, float(value)))
        return loaded

    def _load_rules(self, document: Mapping[str, Any]) -> list[Rule]:
        rules = document.get("rules")
        if not isinstance(rules, list) or not rules:
            raise _refuse(self._path, "rules", "must be a list of at least one rule")
        if len(rules) > _MAX_RULES:
            raise _refuse(self._path, "rules", f"{len(rules)} rules, at most {_MAX_RULES}")
        loaded: list[Rule] = []
        seen: set[str] = set()
        for number, entry in enumerate(rules, 1):
            where = f"rule {number}"
            if not isinstance(entry, dict) or set(entry) != {"id", "when", "outcome", "reason"}:
                raise _refuse(self._path, where, "must have exactly id, when, outcome and reason")
            if not all(isinstance(v, str) and v for v in entry.values()):
                raise _refuse(self._path, where, "id, when, outcome and reason must be non-empty strings")
            rule_id = entry["id"]
            where = f"rule {rule_id!r}"
            if rule_id.startswith("engine/") or rule_id in seen:
                raise _refuse(self._path, where, "the id is taken: ids are unique and do not begin with engine/")
            seen.add(rule_id)
            if entry["outcome"] not in _OUTCOMES:
                raise _refuse(self._path, where, f"outcome must be one of {', '.join(_OUTCOMES)}")
            self._check_keys(where, entry["when"])
            loaded.append(
                Rule(
                    rule_id,
                    entry["when"],
                    _OUTCOMES[entry["outcome"]],
                    entry["reason"],
                    self._compile(where, entry["when"]),
                )
            )
        return loaded

    def _check_keys(self, where: str, when: str) -> None:
        # A misspelt map key would be an error at run time, for each event; here it is an error once, at load.
        for key in _THRESHOLD_KEY.findall(when):
            if key not in self._values:
                raise _refuse(self._path, where, f"threshold {key!r} is not declared under thresholds")
        for key in _SCORE_KEY.findall(when):
            if key not in self._labels:
                raise _refuse(self._path, where, f"score {key!r} has no threshold: declare one with that label")

    def _compile(self, where: str, when: str) -> Any:
        try:
            expression = self._env.compile(when)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise _refuse(self._path, where, f"'when' does not compile: {first}") from error
        if expression.return_type() != cel.Type.BOOL:
            raise _refuse(self._path, where, "'when' must be true or false")
        return expression


def build_evidence(
    signals: Sequence[signal_pb2.Signal], missing: Sequence[str], labels: Iterable[str]
) -> decision_pb2.Evidence:
    """Gather what rules can see. Only OK items contribute scores and matches; ``labels`` are present even if 0."""
    evidence = decision_pb2.Evidence(missing=missing)
    best = dict.fromkeys(labels, 0.0)
    errors, unscannable = set(), set()
    for signal in sorted(signals, key=lambda s: s.stage):
        stage = signal.stage
        for item in signal.items:
            status = item.status
            seen = evidence.items.add(
                stage=stage, item_id=item.item_id, nexus=item.nexus, status=status, reason=item.reason
            )
            if item.matches:
                # A digest match stands even where the picture cannot be decoded.
                seen.matches.extend(item.matches)
                evidence.matches.extend(item.matches)
            if status == signal_pb2.ITEM_STATUS_OK:
                scores = {}
                for label in item.labels:
                    scores[label.label] = label.score
                    name = f"{stage}.{label.label}"
                    if label.score > best.get(name, -1.0):
                        best[name] = label.score
                if scores:
                    seen.score.update(scores)
            elif status == signal_pb2.ITEM_STATUS_UNSCANNABLE:
                unscannable.add(stage)
            elif status != signal_pb2.ITEM_STATUS_SKIPPED:
                # An unknown status is one this version cannot vouch for.
                errors.add(stage)
    evidence.score.update(best)
    evidence.errors.extend(sorted(errors))
    evidence.unscannable.extend(sorted(unscannable))
    return evidence
