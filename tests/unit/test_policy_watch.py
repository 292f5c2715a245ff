"""What is not evaluated could not have held: the quick way to a verdict and CEL over everything say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cel_expr_python import cel
from google.protobuf import descriptor_pool
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.core.policy import Policy, build_evidence
from seawall.core.policy.expressions import Language
from tests.support.records import CLASSIFICATION, HASHING, PROMPT, generation, signal
from tests.unit.test_policy_bundle import A_HIGH, A_LOW, THRESHOLDS, B, bundle, rule

_PARTS = [
    A_LOW, A_HIGH, B, 'evidence.score["classification.b"] < 0.25',
    "threshold.low <= evidence.score['classification.b']",
    'evidence.score["prompt_scoring.a"] == 0.7',
    "evidence.score['prompt_scoring.a'] >= evidence.score['classification.b']",
    "evidence.matches.size() > 0", "evidence.matches.exists(m, m.bank == 'one')", "size(evidence.held_matches) != 0",
    "evidence.held_matches.all(m, m.bank == 'two')", "evidence.missing.size() > 0", "generation.attempt > 1u",
    "evidence.items.exists(i, i.stage == 'prompt_scoring' && i.score['a'] > 0.6)", "1 / evidence.matches.size() == 1",
    "evidence.score['prompt_scoring.' + evidence.matches[0].bank] > 0.1", "'threshold.low' == \"evidence.score\"",
    "(generation.attempt > 1u ? evidence.score['prompt_scoring.a'] : 0.9) > 0.5", "1 / 0 == 1",
]  # fmt: skip
_CONDITIONS = st.recursive(
    st.sampled_from(_PARTS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: f"({two[0]}) && ({two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}) || ({two[1]})"),
        inner.map(lambda one: f"!({one})"),
    ),
    max_leaves=4,
)
_SCORES = st.sampled_from([None, 0.0, 0.2999, 0.3, 0.5, 0.7, 1.0, 1.5])
_MATCH = st.lists(st.sampled_from(["one", "two"]), max_size=2)


@settings(max_examples=80, deadline=None)
@given(st.lists(_CONDITIONS, min_size=1, max_size=4), _SCORES, _SCORES, _MATCH, _MATCH, st.booleans())
def test_a_verdict_is_what_every_condition_says_by_itself(
    tmp_path_factory: pytest.TempPathFactory,
    conditions: list[str],
    a: float | None,
    b: float | None,
    matches: list[str],
    held: list[str],
    missing: bool,
) -> None:
    # In shadow, so that no rule stands in another's way.
    rules = [rule(f"r{number}", when, mode="shadow") for number, when in enumerate(conditions)]
    try:
        policy = Policy(bundle(tmp_path_factory.mktemp("watch"), rule("own", A_HIGH), *rules))
    except Fatal as error:
        assert "can never hold" in error.detail
        assume(False)
    g = generation(media=1)
    signals = [
        signal(g, CLASSIFICATION, offset=0, scores={} if b is None else {"b": b}),
        signal(g, HASHING, offset=0, matches=[signal_pb2.BankMatch(bank=bank) for bank in matches]),
        signal(g, PROMPT, offset=0, scores={} if a is None else {"a": a}),
    ]
    signals[1].items[0].held_matches.extend([signal_pb2.BankMatch(bank=bank) for bank in held])
    lacking = ["another"] if missing else []
    verdict = policy.judge(g, signals, lacking)
    said = {one.rule_id: True for one in verdict.shadow_hits} | dict.fromkeys(verdict.shadow_errors)
    evidence = build_evidence(signals, lacking, [str(one["label"]) for one in THRESHOLDS.values()])
    assert {f"r{n}": said.get(f"r{n}", False) for n in range(len(conditions))} == {
        f"r{n}": _alone(when, g, evidence) for n, when in enumerate(conditions)
    }


def _alone(when: str, g: generation_pb2.Generation, evidence: decision_pb2.Evidence) -> bool | None:
    """The condition as it is written, by CEL alone; None if it fails."""
    held = _ENV.compile(when).eval(_ENV.Activation({"generation": g, "evidence": evidence, "threshold": _VALUES}))
    value = held.plain_value()
    return value if isinstance(value, bool) else None


_VALUES = {name: one["value"] for name, one in THRESHOLDS.items()}
_ENV: Any = cel.NewEnv(
    descriptor_pool.Default(),
    variables={
        "generation": cel.Type(generation_pb2.Generation.DESCRIPTOR.full_name),
        "evidence": cel.Type(decision_pb2.Evidence.DESCRIPTOR.full_name),
        "threshold": cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE),
    },
)


def test_nothing_is_evaluated_while_nothing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [rule("a", A_HIGH), rule("b", f"{B} && generation.attempt > 1u"), rule("c", "evidence.matches.size() > 0")]
    policy = Policy(bundle(tmp_path, *rules))
    evaluated = []
    monkeypatch.setattr(Language, "evaluation", lambda self, *given: evaluated.append(given))
    g = generation()
    assert policy.judge(g, [signal(g, PROMPT, offset=0, scores={"a": 0.69})], []).hits == ()
    assert not evaluated
    with pytest.raises(AttributeError):  # no evaluation comes of it
        policy.judge(g, [signal(g, PROMPT, offset=0, scores={"a": 0.7})], [])
    assert len(evaluated) == 1
