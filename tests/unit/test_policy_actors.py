"""Actor rules of a policy: refused with line and mend, evaluated over windows and decay, cases, comparison, reload."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from seawall.actor_history.rules import Rules
from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.core.errors import Fatal
from seawall.core.policy import ActorPolicy, Policy, cases
from seawall.core.policy.archive import Archive
from seawall.core.policy.compare import compare
from seawall.relay.observe import StreamObserver

BLOCKS = "actor.window.blocks >= 2"


def rule(rule_id: str, when: str, standing: str = "WATCHED", **more: Any) -> dict[str, Any]:
    return {"id": rule_id, "when": when, "standing": standing, "reason": "TEST", "lasts_hours": 1.0, **more}


def bundle(folder: Path, *rules: dict[str, Any], tests: Any = None, **actors: Any) -> Path:
    """A bundle with these actor rules."""
    document = {
        "name": "test",
        "version": "1",
        "owner": "us",
        "note": "first",
        "stages": {"prompt": ["words"], "media": []},
        "budgets": {"text": 1, "image": 1, "video": 1, "dataset": 1},
        "rules": [{"id": "never", "when": 'evidence.missing.exists(m, m == "x")', "outcome": "BLOCK", "reason": "X"}],
        "actors": {
            "rare": ["words.a"],
            "drip_floor": 0.25,
            "thresholds": {"many": 3.0},
            "rules": list(rules),
            **actors,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    if tests is not None:
        (folder / "tests.yaml").write_text(yaml.safe_dump({"cases": [], "actor_cases": tests}))
    return folder


def load(folder: Path, *rules: dict[str, Any], **actors: Any) -> ActorPolicy:
    loaded = Policy(bundle(folder, *rules, **actors)).actors
    assert loaded is not None
    return loaded


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("actor.window.blokcs > 1", r"policy\.yaml line \d+: actor rule 'r'.*did you mean 'blocks'"),
        ("actor.window.blocks", "must be true or false, and is INT"),
        ("actor.pressure > 3", "write 1.0, not 1"),
        ('actor.pressure > threshold["manny"]', "'manny' is not declared under actors.thresholds; did you mean 'many'"),
        ("evidence.missing.size() > 0", "undeclared reference to"),
        ("actor.window.blocks < 2", "holds for an actor of whom nothing is known"),
        ("actor.pressure > threshold[actor.tenant_id]", "computed name"),
    ],
)
def test_conditions_that_are_refused(tmp_path: Path, when: str, said: str) -> None:
    with pytest.raises(Fatal, match=said):
        load(tmp_path, rule("r", when))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rare": ["no dot"]}, "rare"),
        ({"drip_floor": 1.5}, "drip_floor"),
        ({"window_hours": 0}, "window_hours"),
        ({"half_life_hours": float("inf")}, "half_life_hours"),
        ({"weights": {"blok": 1.0}}, "blok"),
        ({"rules": []}, "rules"),
    ],
)
def test_sections_that_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(Fatal, match=said):
        load(tmp_path, rule("r", BLOCKS), **change)


def test_ids_are_unique_over_all_rules_of_a_bundle(tmp_path: Path) -> None:
    for taken in ("never", "r"):
        with pytest.raises(Fatal, match=r"the id is taken at policy\.yaml line"):
            load(tmp_path, rule("r", BLOCKS), rule(taken, BLOCKS))


def test_the_highest_standing_wins_and_of_equals_the_first_that_is_listed(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        rule("second", "actor.window.blocks > 0"),
        rule("third", "actor.window.blocks > 0"),
        rule("first", BLOCKS, "RESTRICTED"),
    )
    for blocks, expected in ((0, None), (1, "second"), (2, "first")):
        found = policy.judge(pb.ActorFeatures(window=pb.ActorCounts(blocks=blocks))).rule
        assert (found.rule_id if found else None) == expected


def test_rules_in_shadow_are_told_and_disabled_ones_are_not_evaluated(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        rule("shadow", BLOCKS, "RESTRICTED", mode="shadow"),
        rule("off", BLOCKS, "RESTRICTED", mode="disabled"),
        rule("on", BLOCKS),
    )
    verdict = policy.judge(pb.ActorFeatures(window=pb.ActorCounts(blocks=2)))
    assert verdict.rule is not None
    assert (verdict.rule.rule_id, verdict.shadow_rules, verdict.errors) == ("on", ["shadow"], [])


def test_a_rule_that_divides_by_zero_is_named_and_the_others_count(tmp_path: Path) -> None:
    policy = load(
        tmp_path, rule("bad", "actor.window.blocks / actor.window.drips > 1", "RESTRICTED"), rule("r", BLOCKS)
    )
    verdict = policy.judge(pb.ActorFeatures(window=pb.ActorCounts(blocks=2)))
    assert verdict.rule is not None
    assert (verdict.rule.rule_id, verdict.errors) == ("r", ["bad"])


def test_a_threshold_inside_a_string_or_a_comment_is_left_alone(tmp_path: Path) -> None:
    policy = load(
        tmp_path, rule("r", 'actor.tenant_id == "threshold.many" && actor.pressure >= threshold.many // threshold.x')
    )
    assert policy.judge(pb.ActorFeatures(tenant_id="threshold.many", pressure=3.0)).rule is not None
    assert policy.judge(pb.ActorFeatures(tenant_id="3.0", pressure=3.0)).rule is None


def test_cases_run_over_windows_and_decay_and_rules_without_one_are_named(tmp_path: Path) -> None:
    def case(name: str, expect: dict[str, Any], *decisions: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "decisions": list(decisions), "expect": expect}

    block = {"outcome": "BLOCK"}
    watched = {"standing": "WATCHED", "rule": "today"}
    folder = bundle(
        tmp_path,
        rule("today", "actor.day.blocks >= 2", lasts_hours=5.0),
        rule("twice", "actor.hour.near_misses >= 2"),
        tests=[
            case("in a day", watched, {**block, "times": 2, "hours_apart": 20}),
            case("not in a day", {"standing": "GOOD"}, {**block, "times": 2, "hours_apart": 25}),
            case("it ends", {"standing": "GOOD", "after_hours": 5}, {**block, "times": 2}),
            case("not before", {**watched, "after_hours": 4.9}, {**block, "times": 2}),
            case("wrong", {"standing": "RESTRICTED"}, {**block, "times": 2}),
        ],
    )
    policy = Policy(folder)
    results = cases.run(policy)
    assert [bool(result.fault) for result in results] == [False, False, False, False, True]
    assert results[-1].fault == "expected RESTRICTED, got WATCHED by today"
    assert cases.untested(policy, results) == ["never", "twice"]


def test_what_differs_between_two_bundles_is_told_by_meaning(tmp_path: Path) -> None:
    before = Policy(bundle(tmp_path / "a", rule("r", BLOCKS)))
    after = Policy(bundle(tmp_path / "b", rule("r", BLOCKS, lasts_hours=2.0), rule("s", BLOCKS), drip_floor=0.3))
    changes = {change.what: (change.kind, change.before, change.after) for change in compare(before, after)}
    assert changes["actors drip_floor"] == ("changed", "0.25", "0.3")
    assert changes["actor rule r"][0] == "changed"
    assert changes["actor rule s"][0] == "added"
    assert before.digest != after.digest


async def test_changed_rules_are_taken_up_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "live", rule("r", BLOCKS))
    rules = Rules(folder, Archive(tmp_path / "archive"), StreamObserver("actor_history"))
    first = rules.current
    keeping = asyncio.create_task(rules.keep_up(0.01))
    try:
        async with asyncio.timeout(20):
            bundle(folder, rule("other", BLOCKS))
            while rules.current is first:  # noqa: ASYNC110  it tells nobody but the log
                await asyncio.sleep(0.01)
            second = rules.current
            assert [one.rule_id for one in second.rules] == ["other"]
            # One without actor rules, which the aggregator would take: what counted goes on counting.
            document = yaml.safe_load((folder / "policy.yaml").read_text())
            del document["actors"]
            (folder / "policy.yaml").write_text(yaml.safe_dump(document))
            without = Policy(folder).digest
            while not (tmp_path / "archive" / without).exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert rules.current is second
            bundle(folder, rule("third", BLOCKS))
            while rules.current is second:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        keeping.cancel()
    assert {path for path in os.listdir(tmp_path / "archive")} >= {first.digest, second.digest, rules.current.digest}


def test_a_bundle_without_actor_rules_is_refused_with_the_mend(tmp_path: Path) -> None:
    folder = bundle(tmp_path, rule("r", BLOCKS))
    document = yaml.safe_load((folder / "policy.yaml").read_text())
    del document["actors"]
    (folder / "policy.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(Fatal, match=r"NO_ACTOR_RULES.*copy that of the default bundle"):
        Rules(folder, Archive(tmp_path / "archive"), StreamObserver("actor_history"))
