"""Policy bundles: includes, unreachable rules, modes, rules that err, cases, comparison, the archive."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from seawall.aggregator.settings import AggregatorSettings
from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.core.policy import Policy, cases
from seawall.core.policy.archive import Archive, find_bundle
from seawall.core.policy.compare import compare
from tests.support.records import CLASSIFICATION, HASHING, PROMPT, generation, signal

DEFAULT: Path = AggregatorSettings().policy
THRESHOLDS = {
    "low": {"label": "prompt_scoring.a", "value": 0.3},
    "high": {"label": "prompt_scoring.a", "value": 0.7},
    "other": {"label": "classification.b", "value": 0.5},
}
A_LOW, A_HIGH = ('evidence.score["prompt_scoring.a"] >= threshold["low"]',
                 "evidence.score['prompt_scoring.a'] >= threshold.high")  # fmt: skip
B = 'evidence.score["classification.b"] >= threshold["other"]'


def rule(rule_id: str, when: str, outcome: str = "BLOCK", **more: Any) -> dict[str, Any]:
    return {"id": rule_id, "when": when, "outcome": outcome, "reason": "TEST", **more}


def bundle(folder: Path, *rules: dict[str, Any], **more: Any) -> Path:
    """A bundle's folder."""
    document = {
        "name": "test", "version": "1", "owner": "us", "note": "first",
        "stages": {"prompt": [PROMPT], "media": [CLASSIFICATION]},
        "budgets": {"text": 1, "image": 1, "video": 1, "dataset": 1},
        "thresholds": THRESHOLDS, "rules": list(rules), **more,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def fragment(folder: Path, file: str, **content: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(yaml.safe_dump(content, sort_keys=False))


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_default_bundle_passes_its_own_cases_and_every_rule_has_one() -> None:
    policy = Policy(DEFAULT)
    results = cases.run(policy)
    assert [result for result in results if result.fault] == []
    assert cases.untested(policy, results) == []


def test_includes_come_before_the_rules_of_the_file_that_includes_them(tmp_path: Path) -> None:
    fragment(tmp_path, "first.yaml", rules=[rule("first", A_LOW, "REVIEW")], thresholds={})
    fragment(tmp_path, "more.yaml", include=["first.yaml"], rules=[rule("more", B, "REVIEW")])
    policy = Policy(bundle(tmp_path, rule("own", A_HIGH), include=["more.yaml"]))
    assert [one.rule_id for one in policy.rules] == ["first", "more", "own"]


@pytest.mark.parametrize(
    ("files", "include", "said"),
    [
        ({"a.yaml": {"include": ["b.yaml"]}, "b.yaml": {"include": ["a.yaml"]}}, ["a.yaml"],
         r"b.yaml line 2: include 'a.yaml': goes round in a circle \(a.yaml → b.yaml → a.yaml\)"),
        ({"a.yaml": {"include": ["policy.yaml"]}}, ["a.yaml"], "goes round in a circle"),
        ({"a.yaml": {"thresholds": {"low": {"label": "prompt_scoring.a", "value": 0.4}}}}, ["a.yaml"],
         r"policy.yaml line \d+: threshold 'low' contradicts 0.4, at a.yaml line 2"),
        ({"a.yaml": {"rules": [rule("own", A_LOW)]}}, ["a.yaml"], r"rule 'own': the id is taken at a.yaml line 2"),
        ({"a.yaml": {}, "b.yaml": {"include": ["a.yaml"]}}, ["a.yaml", "b.yaml"], "include it once"),
        ({}, ["../outside.yaml"], "inside the bundle's folder"),
        ({}, ["/etc/passwd"], "inside the bundle's folder"),
        ({}, ["none.yaml"], r"policy.yaml line \d+: none.yaml: cannot be read"),
        ({"a.yaml": {"name": "x"}}, ["a.yaml"], "a.yaml line 1: name: unknown key"),
    ],
)  # fmt: skip
def test_includes_that_are_refused(tmp_path: Path, files: dict[str, Any], include: list[str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(Fatal, match=said) as caught:
        Policy(bundle(tmp_path, rule("own", A_HIGH), include=include))
    assert caught.value.reason == "BAD_POLICY"


@pytest.mark.parametrize("data", [b"x" * (10 << 20), b"[" * 20_000, b"\xff\xfe", b"a: &x [1]\nb: *x\n", b"- 1\n"])
def test_files_that_are_no_policy(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "policy.yaml").write_bytes(data)
    with pytest.raises(Fatal) as caught:
        Policy(tmp_path)
    assert caught.value.reason == "BAD_POLICY"


def test_the_digest_covers_tests_and_includes(tmp_path: Path) -> None:
    fragment(tmp_path, "more.yaml", rules=[rule("more", B)])
    folder = bundle(tmp_path, rule("own", A_HIGH), include=["more.yaml"])
    digests = {Policy(folder).digest}
    (tmp_path / "tests.yaml").write_text("cases: []\n")
    digests.add(Policy(folder).digest)
    (tmp_path / "more.yaml").write_text((tmp_path / "more.yaml").read_text() + "# said\n")
    digests.add(Policy(folder).digest)
    assert len(digests) == 3
    (tmp_path / "notes.txt").write_text("of no concern")
    assert Policy(folder).digest in digests


def test_a_folder_says_who_answers_for_it_and_what_changed(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="owner: say who answers for it"):
        Policy(bundle(tmp_path, rule("r", B), owner=""))


def test_errors_name_the_line_of_the_condition(tmp_path: Path) -> None:
    folder = bundle(tmp_path, rule("ok", B), rule("bad", "evidence.scor['x'] > 0.1"))
    line = next(n for n, text in enumerate((folder / "policy.yaml").read_text().splitlines(), 1) if "scor[" in text)
    with pytest.raises(Fatal, match=f"policy.yaml line {line}: rule 'bad'.*did you mean 'score'"):
        Policy(folder)
    with pytest.raises(Fatal, match=r"write 1\.0, not 1"):
        Policy(bundle(tmp_path, rule("bad", 'evidence.score["classification.b"] > 1')))
    with pytest.raises(Fatal, match=r"threshold 'hihg' is not declared.*did you mean 'high'"):
        Policy(bundle(tmp_path, rule("bad", "threshold.hihg > 0.1")))


# ---- rules that could never decide -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([rule("x", f"{A_HIGH} && evidence.score['prompt_scoring.a'] < threshold['low']")], "'x' can never hold"),
        ([rule("x", f"{B} && !({B})")], "'x' can never hold"),
        ([rule("x", "evidence.errors.size() > 0 && !(evidence.errors.size() > 0)")], "'x' can never hold"),
        ([rule("x", "threshold.low > threshold.high")], "'x' can never hold"),
        ([rule("all", "true", "ALLOW"), rule("x", B, "ALLOW")], "'x' is unreachable: whenever it holds, 'all'"),
        ([rule("wide", A_LOW), rule("x", A_HIGH)], "'x' is unreachable: whenever it holds, 'wide'"),
        ([rule("x", A_HIGH, "REVIEW"), rule("wide", A_LOW)], "'x' is unreachable: whenever it holds, 'wide'"),
        ([rule("one", f"{A_HIGH} || {B}"), rule("x", f"{B} && evidence.missing.size() == 0")], "'x' is unreachable"),
    ],
)  # fmt: skip
def test_rules_that_could_never_decide(tmp_path: Path, rules: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(Fatal, match=said):
        Policy(bundle(tmp_path, *rules))


@pytest.mark.parametrize(
    "rules",
    [
        [rule("narrow", A_HIGH), rule("wide", A_LOW)],
        [rule("wide", A_LOW, "REVIEW"), rule("narrow", A_HIGH)],
        [rule("wide", A_LOW, mode="shadow"), rule("narrow", A_HIGH)],
        [rule("wide", A_LOW, mode="disabled"), rule("narrow", A_HIGH)],
        [rule("one", f"{A_LOW} && {B}"), rule("two", A_LOW)],
        [rule("one", "evidence.matches.exists(m, m.distance == 0u)"),
         rule("two", "evidence.matches.exists(m, m.distance > 0u)")],
    ],
)  # fmt: skip
def test_rules_that_can_decide_are_left_alone(tmp_path: Path, rules: list[dict[str, Any]]) -> None:
    assert Policy(bundle(tmp_path, *rules)).digest


@pytest.mark.parametrize(("share", "outcome"), [(49, "ALLOW"), (50, "BLOCK")])
def test_a_rule_may_ask_how_much_of_a_listed_video_was_found(tmp_path: Path, share: int, outcome: str) -> None:
    policy = Policy(bundle(tmp_path, rule("most-of-it", "evidence.matches.exists(m, m.listed_percent >= 50u)")))
    g = generation(media=1)
    match = signal_pb2.BankMatch(bank="b", hash_type="vpdq", query_percent=3, listed_percent=share)
    verdict = policy.judge(g, [signal(g, HASHING, offset=0, matches=[match])], [])
    assert decision_pb2.Outcome.Name(verdict.outcome).removeprefix("OUTCOME_") == outcome


# ---- modes, errors ----------------------------------------------------------------------------------------


def test_a_rule_in_shadow_is_recorded_and_never_acted_on(tmp_path: Path) -> None:
    policy = Policy(bundle(tmp_path, rule("own", A_HIGH, "REVIEW"), rule("tried", A_LOW, mode="shadow"),
                           rule("off", B, mode="disabled"), rule("breaks", "1 / 0 == 1", mode="shadow")))  # fmt: skip
    g = generation()
    verdict = policy.judge(g, [signal(g, PROMPT, offset=0, scores={"a": 0.5})], [])
    assert verdict.outcome == decision_pb2.OUTCOME_ALLOW
    assert [one.rule_id for one in verdict.shadow_hits] == ["tried"]
    assert (verdict.hits, verdict.errors, verdict.shadow_errors) == ([], [], ["breaks"])
    assert [one.rule_id for one in policy.disabled] == ["off"]


@pytest.mark.parametrize(
    "when", ["1 / 0 == 1", "evidence.items[9].score['x'] > 0.0", "evidence.score['a' + 'b'] > 0.1"]
)
def test_a_rule_that_errs_is_named_even_behind_the_guard(tmp_path: Path, when: str) -> None:
    g = generation()
    policy = Policy(bundle(tmp_path, rule("fine", A_HIGH), rule("breaks", when)))
    verdict = policy.judge(g, [signal(g, PROMPT, offset=0)], [])
    assert (verdict.outcome, verdict.rule_id) == (decision_pb2.OUTCOME_HOLD, "engine/rule-error")
    assert verdict.errors == ["breaks"]
    # Another rule that blocks is not waited for.
    verdict = policy.judge(g, [signal(g, PROMPT, offset=0, scores={"a": 0.9})], [])
    assert (verdict.outcome, verdict.errors) == (decision_pb2.OUTCOME_BLOCK, ["breaks"])


def test_hundreds_of_rules_are_guarded_in_parts(tmp_path: Path) -> None:
    rules = [rule(f"r{n}", f'evidence.score["prompt_scoring.a"] >= 0.{n + 100}', mode="shadow") for n in range(300)]
    policy = Policy(bundle(tmp_path, rule("own", B), *rules))
    g = generation()
    verdict = policy.judge(g, [signal(g, PROMPT, offset=0, scores={"a": 0.3})], [])
    assert len(verdict.shadow_hits) == 201
    assert policy.judge(g, [signal(g, PROMPT, offset=0)], []).shadow_hits == ()


# ---- cases, comparison, archive --------------------------------------------------------------------------------------


def test_cases_say_what_differs_and_what_no_case_reaches(tmp_path: Path) -> None:
    folder = bundle(tmp_path, rule("a", A_HIGH), rule("b", B))
    (folder / "tests.yaml").write_text(
        "cases:\n"
        "  - {name: right, signals: {prompt_scoring: {scores: {a: 0.9}}}, expect: {outcome: BLOCK, rule: a}}\n"
        "  - {name: wrong, expect: {outcome: BLOCK}}\n"
    )
    policy = Policy(folder)
    results = cases.run(policy)
    assert [(one.line, one.fault) for one in results] == [
        (2, ""),
        (3, "expected BLOCK, got ALLOW by engine/no-rule-matched"),
    ]
    assert cases.untested(policy, results) == ["b"]
    (folder / "tests.yaml").write_text("cases: [{name: x, signals: {nobody: {}}, expect: {outcome: ALLOW}}]\n")
    with pytest.raises(Fatal, match="line 1: case 'x': 'nobody' is not a stage"):
        cases.run(Policy(folder))


def test_a_comparison_names_every_difference_and_nothing_else(tmp_path: Path) -> None:
    before = Policy(bundle(tmp_path / "a", rule("a", A_HIGH), rule("b", B)))
    thresholds = {**THRESHOLDS, "other": {"label": "classification.b", "value": 0.6}}
    after = Policy(
        bundle(tmp_path / "b", rule("b", B, "REVIEW"), rule("c", A_HIGH), thresholds=thresholds, max_attempts=2)
    )
    assert compare(before, before) == []
    assert [(one.kind, one.what) for one in compare(before, after)] == [
        ("changed", "max_attempts"), ("changed", "threshold other"), ("removed", "rule a"), ("changed", "rule b"),
        ("added", "rule c"),
    ]  # fmt: skip


def test_the_archive_gives_back_what_its_name_says(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive")
    fragment(tmp_path / "in", "more.yaml", rules=[rule("more", B)])
    folder = Policy(bundle(tmp_path / "in", rule("own", A_HIGH), include=["more.yaml"]))
    lone = Policy(bundle(tmp_path / "lone", rule("own", A_HIGH)) / "policy.yaml")
    for policy, _ in itertools.product((folder, lone), range(2)):
        archive.keep(policy)
        found = find_bundle(policy.digest, archive, [])
        assert (found.digest, [r.when for r in found.rules]) == (policy.digest, [r.when for r in policy.rules])
    with pytest.raises(Fatal, match="no bundle with digest"):
        find_bundle("0" * 64, archive, [])
    (tmp_path / "archive" / folder.digest / "more.yaml").write_text("rules: []\n")
    with pytest.raises(Fatal, match="somebody has changed them"):
        archive.find(folder.digest)
