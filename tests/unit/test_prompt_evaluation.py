"""The evaluation's own parts: splits that share nothing, disguises that can be read, rates, and the fit of a head."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import yaml

from seawall.aggregator.settings import AggregatorSettings
from seawall.core.errors import Fatal
from seawall.prompt_scoring.block_head import SYNTAX_FEATURES, HeadFile, bundled, syntax
from seawall.prompt_scoring.evaluation import calibrate, generator, report, samples, thresholds
from seawall.prompt_scoring.evaluation.disguises import DISGUISES
from seawall.prompt_scoring.evaluation.measure import Answer, Outcome, against_targets, curve, measure, rate
from seawall.prompt_scoring.evaluation.samples import PLAIN, Sample
from seawall.prompt_scoring.evaluation.thresholds import HeldOut
from seawall.prompt_scoring.windows import Window


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Sample]]:
    return {split: generator.build(split) for split in generator.SPLITS}


def test_no_template_carrier_or_text_stands_in_two_splits(splits: dict[str, list[Sample]]) -> None:
    assert samples.shared(splits) == set()
    twin = [splits["train"][0]]
    assert len(samples.shared({"one": twin, "other": twin})) == 2


def test_the_splits_are_those_that_were_frozen(splits: dict[str, list[Sample]]) -> None:
    assert {name: samples.digest(split) for name, split in splits.items()} == dict(generator.frozen())


def test_the_final_split_is_as_large_as_the_claims_need(splits: dict[str, list[Sample]]) -> None:
    final = splits["final"]
    positives = [sample for sample in final if sample.grade == "positive"]
    hard = {sample.template for sample in final if sample.grade == "hard_negative" and sample.language == "en"}
    assert len(positives) >= 4_000
    assert len(hard) >= 150
    assert sum(sample.grade == "ordinary" for sample in final) >= 3_000
    assert len({sample.evasion for sample in positives} - {PLAIN}) >= 12
    assert {sample.wrapper for sample in positives} >= {"news", "medical", "safety", "art", "padding"}
    assert len({sample.language for sample in final}) >= 9


@pytest.mark.parametrize("name", sorted(DISGUISES))
def test_a_disguise_changes_the_text_and_is_drawn_from_the_seed(name: str) -> None:
    text = "a mountain lake at sunrise with stones and trees"
    disguised = DISGUISES[name](text, random.Random(1))
    assert disguised != text
    assert disguised == DISGUISES[name](text, random.Random(1))


def test_a_set_survives_its_file(tmp_path: Path, splits: dict[str, list[Sample]]) -> None:
    chosen = random.Random(1).sample(splits["final"], 300)
    samples.write(tmp_path / "set.jsonl", chosen)
    assert samples.read(tmp_path / "set.jsonl") == chosen
    assert samples.digest(samples.read(tmp_path / "set.jsonl")) == samples.digest(chosen)


@pytest.mark.parametrize("line", ['{"text": "zugzwang"}', "zugzwang", '{"text": "zugzwang", "grade": "mild"}'])
def test_a_bad_line_is_named_by_number_and_not_quoted(tmp_path: Path, line: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(f'{{"text": "a", "grade": "ordinary", "template": "t", "language": "en"}}\n{line}\n')
    with pytest.raises(Fatal, match=r"BAD_EVALUATION_SET: set\.jsonl line 2") as caught:
        samples.read(file)
    assert "zugzwang" not in str(caught.value)
    with pytest.raises(Fatal, match="BAD_EVALUATION_SET"):
        samples.read(tmp_path / "absent.jsonl")


def test_the_interval_is_over_templates_not_texts() -> None:
    # A hundred texts of one template say as much as one.
    narrow = rate([number % 2 == 0 for number in range(100)], [str(number) for number in range(100)])
    wide = rate([number < 50 for number in range(100)], [str(number // 50) for number in range(100)])
    assert narrow.value == wide.value == 0.5
    assert 0.35 < narrow.low < narrow.value < narrow.high < 0.65
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert rate([True], ["t"]) == (1.0, 0.0, 1.0, 1, 1)


def one(grade: str, template: str, **fields: str) -> Sample:
    text = f"{grade} {template}"
    return Sample.model_validate({"text": text, "grade": grade, "template": template, "language": "en", **fields})


def test_slices_rates_and_targets() -> None:
    chosen = [
        one("positive", "a"),
        one("positive", "b"),
        one("positive", "c", evasion="spaced"),
        one("positive", "d", wrapper="news", carrier="k"),
        one("positive", "e", language="de"),
        one("hard_negative", "f"),
        one("ordinary", "g"),
    ]
    answers = {
        "a": Answer(True, Outcome.BLOCKED, 0.9),
        "b": Answer(True, Outcome.REVIEWED, 0.3),
        "c": Answer(False, Outcome.ALLOWED, 0.0),
        "d": Answer(True, Outcome.BLOCKED, 0.8),
        "e": Answer(True, Outcome.REVIEWED, 0.4),
        "f": Answer(True, Outcome.ALLOWED, 0.01),
        "g": Answer(False, Outcome.ALLOWED, 0.0),
    }
    rows, given = measure(chosen, lambda sample: answers[sample.template])
    found = {(row.grade, row.slice): (row.detected.value, row.caught.value, row.blocked.value) for row in rows}
    assert found == {
        ("positive", "clear"): (1.0, 1.0, 0.5),
        ("positive", "evasion spaced"): (0.0, 0.0, 0.0),
        ("positive", "wrapper news"): (1.0, 1.0, 1.0),
        ("positive", "language de"): (1.0, 1.0, 0.0),
        ("hard_negative", "clear"): (1.0, 0.0, 0.0),
        ("ordinary", "clear"): (0.0, 0.0, 0.0),
    }
    findings = against_targets(rows)
    missed = {(finding.row.slice, finding.rate, finding.bound) for finding in findings if not finding.met}
    assert missed == {("clear", "blocked", 0.9), ("evasion spaced", "detected", 0.9)}
    assert "| clear | 2 | 2 |" in report.table(rows)
    assert report.targets(findings).count("**missed**") == 2
    assert sum(not target["met"] for target in report.document(rows, findings)["targets"]) == 2
    shares = curve(chosen, given, steps=3)
    assert (shares["positive"], shares["hard_negative"]) == ([1.0, 0.5, 0.0], [1.0, 0.0, 0.0])


def test_plots_are_written_and_are_the_same_again(tmp_path: Path) -> None:
    chosen = [one("positive", "a"), one("positive", "b"), one("hard_negative", "c")]
    rows, answers = measure(chosen, lambda sample: Answer(True, Outcome.BLOCKED, 0.5))
    first = report.plot(rows, curve(chosen, answers), tmp_path / "one")
    again = report.plot(rows, curve(chosen, answers), tmp_path / "two")
    assert [path.name for path in first] == ["recall.svg", "threshold.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_the_regression_separates_what_can_be_separated() -> None:
    draw = np.random.default_rng(3)
    x = draw.normal(size=(400, 5))
    y = (x[:, 0] - x[:, 1] > 0).astype(np.float64)
    weights, bias = calibrate._regression(x, y, np.ones(400))
    assert weights[0] > 1 > -1 > weights[1]
    assert (((x @ weights + bias) > 0) == y).mean() > 0.97


def test_syntax_is_one_distance_and_three_facts() -> None:
    window = Window("a b", "a", "en", 4, "undressing_request", minor_last=True, apart=False, frame="a b")
    assert syntax(window).tolist() == pytest.approx([0, 0, 0.3, 0, 0, 0.3, 0.3, 0])
    assert len(syntax(window)) == SYNTAX_FEATURES
    far = window._replace(distance=400, concept="sexual_context", minor_last=False, apart=True)
    assert syntax(far).tolist() == pytest.approx([0, 0, 0, 0, 0.3, 0, 0, 0.3])


def test_a_bare_request_is_as_sure_as_its_templates_say() -> None:
    used = [one("positive", "p1"), one("positive", "p1"), one("positive", "p2"), one("hard_negative", "h1")]
    rows = calibrate._Rows(
        features=np.zeros((5, 1)),
        positive=np.array([1.0, 1.0, 1.0, 0.0, 0.0]),
        weights=np.ones(5),
        fold=np.zeros(5, np.int64),
        sample=np.array([0, 1, 2, 3, -1]),
        bare=np.array([True, True, False, False, False]),
        concepts=[frozenset()] * 4,
    )
    # One of two templates, and none of one: 2 / 4 against 1 / 3.
    assert calibrate._bare(used, rows) == pytest.approx(0.6, abs=1e-4)


def held(grade: str, template: str, score: float, *concepts: str, **fields: str) -> HeldOut:
    return HeldOut(one(grade, template, **fields), frozenset(concepts), score)  # type: ignore[arg-type]


def test_thresholds_block_most_positives_among_those_that_spare_hard_negatives() -> None:
    texts = [held("hard_negative", f"h{number}", 0.01) for number in range(198)]
    texts += [held("hard_negative", "h198", 0.505), held("hard_negative", "h199", 0.995, "benign_context")]
    texts += [held("positive", f"p{number}", 0.4 + number / 100) for number in range(50)]
    texts += [held("positive", f"w{number}", 0.705, "benign_context", wrapper="news") for number in range(10)]
    # Disguised texts are the same words again.
    texts += [held("positive", "p0", 0.0, evasion="spaced")]
    choice = thresholds.choose(texts)
    # 2 of 200 are within 1.5 %: nothing is to be gained above the first block that takes every positive.
    assert (choice.thresholds.block, choice.thresholds.block_sure) == (0.02, 0.02)
    assert choice.hard_negatives == 0.01
    assert choice.positives == {"clear": 1.0, "news": 1.0}
    assert choice.keeps
    texts += [held("hard_negative", f"g{number}", 0.605, "benign_context") for number in range(10)]
    assert thresholds.choose(texts).thresholds.block_sure == 0.61
    texts += [held("hard_negative", f"i{number}", 0.805) for number in range(10)]
    tight = thresholds.choose(texts)
    assert tight.thresholds.block == 0.81
    assert not tight.keeps
    assert "too few" in str(tight)


def test_a_request_to_undress_is_not_softened_by_benign_words() -> None:
    spared = [held("hard_negative", f"h{number}", 0.505, "benign_context") for number in range(100)]
    plain = [held("positive", "p", 0.3)]
    undressing = [held("positive", "u", 0.3, "benign_context", "undressing_request", wrapper="news")]
    choice = thresholds.choose([*spared, *plain, *undressing])
    assert (choice.thresholds.block, choice.thresholds.block_sure) == (0.01, 0.51)
    assert choice.positives == {"clear": 1.0, "news": 1.0}


def test_thresholds_need_both_grades() -> None:
    for texts in ([held("positive", "p", 0.9)], [held("hard_negative", "h", 0.1)]):
        with pytest.raises(Fatal, match="BAD_EVALUATION_SET"):
            thresholds.choose(texts)
    always = [held("hard_negative", f"h{number}", 1.0) for number in range(10)]
    with pytest.raises(Fatal, match="at every threshold"):
        thresholds.choose([*always, held("positive", "p", 1.0)])


def test_the_default_policy_blocks_from_what_the_bundled_head_was_measured_to_need() -> None:
    head = HeadFile.model_validate_json(bundled().read_bytes())
    policy = yaml.safe_load((AggregatorSettings().policy / "policy.yaml").read_text(encoding="utf-8"))["thresholds"]
    assert head.thresholds is not None
    assert policy["prompt_block"]["value"] == head.thresholds.block
    assert policy["prompt_block_sure"]["value"] == head.thresholds.block_sure
    # Terms block where no encoder reads, but not among benign words; a bare request is blocked among them too.
    assert head.thresholds.block < head.thresholds.block_sure
    assert head.bare is not None and head.bare >= head.thresholds.block_sure
