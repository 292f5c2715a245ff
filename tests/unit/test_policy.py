"""The policy: what it refuses at load, how rules decide, and what no rule can lower."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from seawall.aggregator.settings import AggregatorSettings
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import policy as engine
from seawall.core.errors import Fatal
from seawall.core.policy import Policy
from tests.support.records import CLASSIFICATION, HASHING, PROMPT, generation, signal

DEFAULT: Path = AggregatorSettings().policy


@pytest.fixture(scope="module")
def default() -> Policy:
    return Policy(DEFAULT)


def write(tmp_path: Path, **changes: object) -> Path:
    document = yaml.safe_load((DEFAULT / "policy.yaml").read_text())
    document.update(changes)
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return path


def rule(when: str, outcome: str = "BLOCK", rule_id: str = "r") -> dict[str, str]:
    return {"id": rule_id, "when": when, "outcome": outcome, "reason": "TEST"}


def prompt_signal(g: generation_pb2.Generation, **scores: float) -> signal_pb2.Signal:
    return signal(g, PROMPT, offset=0, scores=scores)


# ---- the default policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "outcome", "rule_id"),
    [
        ({}, "ALLOW", engine.RULE_NO_MATCH),
        ({"minor_sexual": 0.9}, "REVIEW", "prompt-needs-review"),
        ({"minor_sexual": 0.9, "minor_sexual_semantic": 0.9}, "BLOCK", "attempt-in-prompt"),
        (
            {"minor_sexual": 0.9, "minor_sexual_semantic": 0.725, "benign_context": 0.9},
            "REVIEW",
            "prompt-needs-review",
        ),
        # A pair that the encoder reads as about something else; disguised, a person looks all the same.
        ({"minor_sexual": 0.9, "minor_sexual_semantic": 0.01}, "ALLOW", engine.RULE_NO_MATCH),
        ({"minor_sexual": 0.9, "minor_sexual_semantic": 0.01, "evasion": 1.0}, "REVIEW", "prompt-needs-review"),
        ({"minor_sexual": 0.9, "minor_sexual_semantic": 0.06}, "REVIEW", "prompt-needs-review"),
        # Benign words never clear a detection, nor soften one that is sure.
        ({"minor_sexual": 0.9, "minor_sexual_semantic": 0.9, "benign_context": 0.9}, "BLOCK", "attempt-in-prompt"),
        ({"minor_sexual_paraphrase": 0.98}, "REVIEW", "prompt-needs-review"),
        ({"undressing_request": 0.9, "real_person_photo": 0.9}, "BLOCK", "undress-real-person"),
        (
            {
                "undressing_request": 0.9,
                "minor_reference": 0.9,
                "minor_sexual": 1.0,
                "minor_sexual_semantic": 0.725,
                "benign_context": 1.0,
            },
            "BLOCK",
            "undress-minor-reference",
        ),
        # "How do I undress a newborn for a bath": terms alone block nothing.
        (
            {"undressing_request": 0.9, "minor_reference": 0.9, "minor_sexual": 1.0, "minor_sexual_semantic": 0.02},
            "ALLOW",
            engine.RULE_NO_MATCH,
        ),
        ({"undressing_request": 0.9}, "ALLOW", engine.RULE_NO_MATCH),
    ],
)
def test_prompts(default: Policy, scores: dict[str, float], outcome: str, rule_id: str) -> None:
    g = generation()
    verdict = default.judge(g, [prompt_signal(g, **scores)], [])
    assert (decision_pb2.Outcome.Name(verdict.outcome), verdict.rule_id) == (f"OUTCOME_{outcome}", rule_id)


def test_a_bank_match_is_reported(default: Policy) -> None:
    g = generation(media=1)
    match = signal_pb2.BankMatch(bank="b", entry_id="e", distance=3, hash_type="pdq")
    verdict = default.judge(g, [prompt_signal(g), signal(g, HASHING, offset=0, matches=[match])], [])
    assert (verdict.outcome, verdict.rule_id) == (decision_pb2.OUTCOME_BLOCK_AND_REPORT, "known-hash")


def test_undressing_an_uploaded_photograph_is_blocked(default: Policy) -> None:
    g = generation(media=1)
    g.media[0].nexus = generation_pb2.NEXUS_UPLOADED_INPUT
    verdict = default.judge(g, [prompt_signal(g, undressing_request=0.9)], [])
    assert verdict.rule_id == "undress-uploaded-photo"


def test_comparisons_tell_measured_from_unmeasured(default: Policy) -> None:
    g = generation()
    verdict = default.judge(g, [prompt_signal(g, minor_sexual=0.7)], [])
    written = decision_pb2.Decision.FromString(default.comparisons(verdict.seen.scores))
    by_name = {comparison.threshold: comparison for comparison in written.comparisons}
    assert [comparison.threshold for comparison in written.comparisons] == [t.name for t in default.thresholds]
    assert by_name["prompt_detect"].score == pytest.approx(0.7)
    assert by_name["prompt_detect"].reached
    assert not by_name["explicit"].HasField("score")


# ---- what no rule can lower ------------------------------------------------------------------------------------------


def test_missing_evidence_is_held_then_reviewed(default: Policy) -> None:
    for attempt, outcome in (
        (1, decision_pb2.OUTCOME_HOLD),
        (2, decision_pb2.OUTCOME_HOLD),
        (3, decision_pb2.OUTCOME_REVIEW),
    ):
        g = generation(media=1, attempt=attempt)
        verdict = default.judge(g, [prompt_signal(g)], [CLASSIFICATION, HASHING])
        assert verdict.outcome == outcome
        assert verdict.reason_code == "MISSING_EVIDENCE"


@pytest.mark.parametrize("status", [signal_pb2.ITEM_STATUS_ERROR, signal_pb2.ITEM_STATUS_UNSPECIFIED, 99])
def test_a_status_nobody_can_vouch_for_is_held(default: Policy, status: signal_pb2.ItemStatus.ValueType) -> None:
    g = generation()
    verdict = default.judge(g, [signal(g, PROMPT, offset=0, status=status)], [])
    assert (verdict.outcome, verdict.reason_code) == (decision_pb2.OUTCOME_HOLD, "STAGE_ERROR")


def test_unscannable_media_is_reviewed(default: Policy) -> None:
    g = generation(media=1)
    unscannable = signal(g, CLASSIFICATION, offset=0, status=signal_pb2.ITEM_STATUS_UNSCANNABLE)
    assert default.judge(g, [prompt_signal(g), unscannable], []).outcome == decision_pb2.OUTCOME_REVIEW


def test_missing_evidence_does_not_hide_what_is_known(default: Policy) -> None:
    g = generation(media=1)
    verdict = default.judge(g, [prompt_signal(g, minor_sexual=0.9, minor_sexual_semantic=0.9)], [CLASSIFICATION])
    assert verdict.outcome == decision_pb2.OUTCOME_BLOCK


def test_scores_of_an_item_in_error_do_not_count(default: Policy) -> None:
    g = generation()
    broken = signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR, scores={"minor_sexual": 0.9})
    assert default.judge(g, [broken], []).outcome == decision_pb2.OUTCOME_HOLD


@pytest.mark.parametrize(
    "when", ["1 / generation.attempt.size() == 0", "1 / 0 == 1", 'evidence.items[9].score["x"] > 0.0']
)
def test_a_rule_that_errs_is_held_and_named(tmp_path: Path, when: str) -> None:
    if "size" in when:
        with pytest.raises(Fatal, match="does not compile"):
            Policy(write(tmp_path, rules=[rule(when)]))
        return
    g = generation()
    verdict = Policy(write(tmp_path, rules=[rule(when, rule_id="broken")])).judge(g, [prompt_signal(g)], [])
    assert verdict.outcome == decision_pb2.OUTCOME_HOLD
    assert verdict.errors == ["broken"]


def test_an_allow_rule_cannot_wave_broken_evidence_through(tmp_path: Path) -> None:
    g = generation(media=1)
    verdict = Policy(write(tmp_path, rules=[rule("true", "ALLOW")])).judge(g, [prompt_signal(g)], [HASHING])
    assert verdict.outcome == decision_pb2.OUTCOME_HOLD


# ---- late signals ----------------------------------------------------------------------------------------------------


def test_a_late_signal_can_only_escalate(default: Policy) -> None:
    g = generation()
    assert default.judge_alone(g, prompt_signal(g)) is None
    assert default.judge_alone(g, signal(g, PROMPT, offset=0, status=signal_pb2.ITEM_STATUS_ERROR)) is None
    verdict = default.judge_alone(g, prompt_signal(g, minor_sexual=0.9))
    assert verdict is not None
    assert verdict.outcome == decision_pb2.OUTCOME_REVIEW


# ---- required stages, digest -----------------------------------------------------------------------------------------


def test_required_stages_follow_what_is_carried_and_what_is_asked(default: Policy) -> None:
    assert default.required(generation()) == {PROMPT}
    assert default.required(generation(prompt=False, media=1)) == {HASHING, CLASSIFICATION}
    assert default.required(generation(required_stages=["extra"])) == {PROMPT, "extra"}


def test_the_digest_is_of_the_file(default: Policy, tmp_path: Path) -> None:
    assert Policy(write(tmp_path)).digest != default.digest
    assert Policy(DEFAULT).digest == default.digest


# ---- what is refused at load -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rules": [rule("evidence.promt == 1")]}, "line \\d+: rule 'r'.*undefined field 'promt'.*seawall"),
        ({"rules": [rule("1 + 1")]}, "must be true or false"),
        ({"rules": [rule('threshold["nope"] > 0.1')]}, "'nope' is not declared"),
        ({"rules": [rule('evidence.score["a.b"] > 0.1')]}, "'a.b' has no threshold"),
        ({"rules": [rule("true"), rule("true")]}, "the id is taken"),
        ({"rules": [rule("true", rule_id="engine/x")]}, "the engine's own"),
        ({"rules": [rule("true", "HOLD")]}, "rules.0.outcome: Input should be 'ALLOW'"),
        ({"rules": []}, "there is none"),
        ({"rules": [{"id": "x"}]}, "rules.0.when: missing"),
        ({"thresholds": {"t": {"label": "a.b", "value": 1.5}}}, "less than or equal to 1"),
        ({"thresholds": {"t": {"label": "a.b", "value": -0.1}}}, "greater than or equal to 0"),
        ({"thresholds": {"t": {"label": "a.b", "value": True}}}, "valid number"),
        ({"thresholds": {"t": {"label": "a.b", "value": float("nan")}}}, "finite number"),
        ({"thresholds": {"t": {"label": "nolabel", "value": 1}}}, "thresholds.t.label"),
        ({"budgets": {"text": 1}}, "budgets"),
        ({"stages": {"prompt": []}}, "stages"),
        ({"max_attempts": 0}, "max_attempts.*greater than or equal to 1"),
        ({"surprise": 1}, "surprise: unknown key"),
        ({"name": None}, "name: missing"),
        ({"rules": [rule("false")]}, "rule 'r' can never hold"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(Fatal, match=said) as caught:
        Policy(write(tmp_path, **changes))
    assert caught.value.reason == "BAD_POLICY"


def test_not_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("name: x\nrules: [\n")
    with pytest.raises(Fatal, match="line 3"):
        Policy(path)


def test_absent_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="cannot be read"):
        Policy(tmp_path / "none.yaml")
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"#" * (10 << 20) + b"\n")
    with pytest.raises(Fatal, match="at most"):
        Policy(path)
