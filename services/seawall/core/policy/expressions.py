"""Conditions in CEL, type-checked against the protos, evaluated by the CEL project's own C++ runtime.

A condition sees

* ``generation`` – the seawall.api.generation.v1.Generation (its texts sealed),
* ``evidence``   – the seawall.api.decision.v1.Evidence,
* ``threshold``  – map of the policy's named values.

Each condition is compiled twice: as it is written, and rewritten, with thresholds as literals, ``evidence.score["…"]``
as plain variables, and no items. Items are costly to gather, and few conditions come to read them: to CEL a variable
without a value is an error, and `false && error` is false. Only where the rewritten one fails is it evaluated as it is
written.

A *guard* is several conditions joined by ``||``. In CEL that is false only if every one of them is false and none has
failed; so one evaluation clears the generations that none of them speaks of.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cel_expr_python import cel
from google.protobuf import descriptor_pool

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core.policy.document import Place

_EVIDENCE: Final = decision_pb2.Evidence.DESCRIPTOR.full_name
_GENERATION: Final = generation_pb2.Generation.DESCRIPTOR.full_name
_VARIABLES: Final = {
    "generation": cel.Type(_GENERATION),
    "evidence": cel.Type(_EVIDENCE),
    "threshold": cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE),
}
#: String literals (raw, triple-quoted) and comments, which no rewriting may touch, then what is rewritten.
_STRING = r"""(?:[rRbB]{0,2}(?:\"{3}[\s\S]*?\"{3}|'{3}[\s\S]*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))|//[^\n]*"""
_KEY = r"""\s*\[\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\]"""
_TOKENS = re.compile(
    rf"(?<![\w.])evidence\s*\.\s*score{_KEY}|(?<![\w.])threshold{_KEY}|(?<![\w.])threshold\s*\.\s*([A-Za-z_]\w*)|{_STRING}"
)
_USES = re.compile(rf"(?<![\w.])evidence\s*\.\s*(\w+)|(?<![\w.])(evidence)\b|{_STRING}")
#: In rewritten conditions, the evidence with all its fields. It never has a value.
_WHOLE: Final = "seawall_evidence_"
#: Fields of Evidence that cost little to gather.
_CHEAP: Final = frozenset({"matches", "held_matches", "missing", "errors", "unscannable"})
#: Conditions of one guard, and its length: CEL limits depth and size.
_GUARD_RULES = 64
_GUARD_CHARACTERS = 32_000
_POSITION = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_UNDEFINED_FIELD = re.compile(r"undefined field '(\w+)' not found in struct '([\w.]+)'")


class Compiled(NamedTuple):
    """A condition that has passed the type checker."""

    expression: Any
    #: The same, rewritten.
    quick: Any
    #: The checked expression's wire format, for analysis.
    checked: bytes
    text: str


class Language:
    """The language of one policy's conditions.

    Args:
        thresholds: named values.
        labels: labels that have a threshold: their scores are always present.
    """

    def __init__(self, thresholds: Mapping[str, float], labels: Sequence[str]) -> None:
        self._thresholds = dict(thresholds)
        self._index = {label: number for number, label in enumerate(labels)}
        self._env = cel.NewEnv(descriptor_pool.Default(), variables=_VARIABLES)
        #: Labels that a condition reads.
        self._read: set[str] = set()
        scalars = {_scalar(number): cel.Type.DOUBLE for number in range(len(labels))}
        variables = {**_VARIABLES, **scalars, _WHOLE: cel.Type(_EVIDENCE)}
        self._quick_env = cel.NewEnv(descriptor_pool.Default(), variables=variables)

    def compile(self, text: str, at: Place, rule_id: str) -> Compiled:
        """Type-check a condition.

        Raises:
            Fatal: BAD_POLICY with file, line, rule and mend.
        """
        self._check_keys(text, at, rule_id)
        try:
            expression = self._env.compile(text)
        except (RuntimeError, ValueError) as error:
            raise at.refuse(f"rule {rule_id!r}: 'when' does not compile: {explain(str(error))}") from error
        if expression.return_type() != cel.Type.BOOL:
            name = expression.return_type().name()
            raise at.refuse(f"rule {rule_id!r}: 'when' must be true or false, and is {name}: compare it with something")
        rewritten = self._rewrite(text)
        self._read.update(label for label, number in self._index.items() if _scalar(number) in rewritten)
        return Compiled(expression, self._quick_env.compile(rewritten), expression.serialize(), text)

    def evaluation(
        self,
        generation: generation_pb2.Generation,
        scores: Mapping[str, float],
        evidence: decision_pb2.Evidence,
        whole: Callable[[], decision_pb2.Evidence],
    ) -> Evaluation:
        """Conditions over one generation.

        Args:
            scores: of the labels that were measured.
            evidence: its cheap fields.
            whole: gathers all of it; called only if a condition comes to read the rest.
        """
        data: dict[str, Any] = {_scalar(self._index[label]): scores.get(label, 0.0) for label in self._read}
        data["generation"] = generation
        data["evidence"] = evidence

        def written() -> Any:
            given = {"generation": generation, "evidence": whole(), "threshold": self._thresholds}
            return self._env.Activation(given)

        return Evaluation(self._quick_env.Activation(data), written)

    def guard(self, conditions: Sequence[Compiled]) -> Sequence[Any]:
        """Expressions that are false only if all these conditions are, and none fails; as few as may be."""
        chunks: list[list[str]] = [[]]
        for condition in conditions:
            text = f"({self._rewrite(condition.text)}\n)"
            if len(chunks[-1]) >= _GUARD_RULES or sum(map(len, chunks[-1])) + len(text) > _GUARD_CHARACTERS:
                chunks.append([])
            chunks[-1].append(text)
        try:
            return [self._quick_env.compile(" || ".join(chunk)) for chunk in chunks if chunk]
        except (RuntimeError, ValueError):
            # Too deep together, though each alone is not.
            return [condition.quick for condition in conditions]

    def _rewrite(self, text: str) -> str:
        """The condition with thresholds as literals, scores of known labels as variables, and evidence that is costly
        to gather under a name of its own. Strings stay."""

        def replace(found: re.Match[str]) -> str:
            score = found[1] or found[2]
            if score in self._index:
                return _scalar(self._index[score])
            name = found[3] or found[4] or found[5]
            if name in self._thresholds:
                return f"{self._thresholds[name]!r}"
            return found[0]

        def rename(found: re.Match[str]) -> str:
            costly = found[2] or (found[1] and found[1] not in _CHEAP)
            return f"{_WHOLE}{found[0].removeprefix('evidence')}" if costly else found[0]

        return _USES.sub(rename, _TOKENS.sub(replace, text))

    def _check_keys(self, text: str, at: Place, rule_id: str) -> None:
        # A misspelt map key would be an error at run time, for each generation; here it is an error once, at load.
        for found in _TOKENS.finditer(text):
            score = found[1] or found[2]
            name = found[3] or found[4] or found[5]
            if score and score not in self._index:
                raise at.refuse(
                    f"rule {rule_id!r}: score {score!r} has no threshold: declare one with that label"
                    f"{near(score, self._index)}"
                )
            if name and name not in self._thresholds:
                raise at.refuse(
                    f"rule {rule_id!r}: threshold {name!r} is not declared under thresholds"
                    f"{near(name, self._thresholds)}"
                )


class Evaluation:
    """Conditions over one generation; its evidence is gathered no further than they come to read it."""

    __slots__ = ("_quick", "_whole", "_written")

    def __init__(self, quick: Any, written: Callable[[], Any]) -> None:
        self._quick = quick
        self._written = written
        self._whole: Any = None

    def clears(self, guard: Sequence[Any]) -> bool:
        """True only if every condition of the guard is false, and none has failed."""
        return all(expression.eval(self._quick).plain_value() is False for expression in guard)

    def holds(self, condition: Compiled) -> bool | None:
        """Whether a condition holds; None if it fails."""
        held = condition.quick.eval(self._quick).plain_value()
        if held is True or held is False:
            return held
        if self._whole is None:
            self._whole = self._written()
        held = condition.expression.eval(self._whole).plain_value()
        # An expression that divides by zero or reads an absent key yields an error's text, not an exception.
        return held if held is True or held is False else None


def _scalar(number: int) -> str:
    return f"seawall_score_{number}_"


def near(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """What a misspelt word may mean, to be put behind an error; empty if nothing is near."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain(message: str) -> str:
    """CEL's own error, with its place in the condition and a mend where there is one."""
    found = _POSITION.search(message)
    if not found:
        return message.splitlines()[0]
    line, column, problem = found.groups()
    mend = ""
    if undefined := _UNDEFINED_FIELD.search(problem):
        try:
            fields = descriptor_pool.Default().FindMessageTypeByName(undefined[2]).fields_by_name
            mend = near(undefined[1], list(fields)) or f"; it has {', '.join(sorted(fields))}"
        except KeyError:
            mend = ""
    elif "(double, int)" in problem or "(int, double)" in problem:
        mend = "; a score is compared with a decimal: write 1.0, not 1"
    where = f" (line {line}, column {column} of the condition)" if int(line) > 0 else ""
    return f"{problem}{mend}{where}"
