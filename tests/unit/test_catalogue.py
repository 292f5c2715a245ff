"""The catalogue: what rooms may emit, each with a sentence for the operator, and the page that says so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seawall.runtime.events import EVENTS, Level, level
from seawall.runtime.metrics import ATTRIBUTES, METRICS, SPANS
from seawall.runtime.prometheus import scraped

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for path in (ROOT / "services/seawall").rglob("*.py") if "/api/" not in str(path))
NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
#: Units of UCUM that metrics have: seconds, none, and words for what is counted.
UNIT = re.compile(r"s|1|By|\{[a-z]+\}")


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node


def named_events() -> set[str]:
    """Every event that a room's code names when it tells its observer."""
    found = set()
    for _, call in calls():
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if name in {"event", "_tell", "_say_event"} and call.args:
            found |= {
                one.value
                for one in ast.walk(call.args[0])
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    return found


def test_every_event_that_is_told_is_in_the_catalogue_and_none_is_there_in_vain() -> None:
    assert named_events() == set(EVENTS)


def test_an_unknown_event_is_worth_a_look() -> None:
    assert level("halted") is Level.ALARM
    assert level("ready") is Level.CALM
    assert level("a new one") is Level.WARNING


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_follows_the_conventions(name: str) -> None:
    metric = METRICS[name]
    assert NAME.fullmatch(name)
    assert UNIT.fullmatch(metric.unit), f"{name} has the unit {metric.unit!r}"
    assert metric.kind in {"counter", "level", "gauge", "histogram"}
    assert name.startswith("moderation.") or name.split(".")[0] in {"rpc", "http"}
    if metric.kind == "histogram" and name.endswith(".duration"):
        assert metric.unit == "s"
    # The unit is said by the unit.
    assert not re.search(r"_(seconds|total|bytes|ms)\b", name)


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_an_attribute_is_named_as_the_conventions_ask(name: str) -> None:
    assert NAME.fullmatch(name)
    own = name.startswith("moderation.")
    assert own or name.split(".")[0] in {"rpc", "messaging", "error", "server", "http"}


def test_everything_has_a_sentence_for_the_operator() -> None:
    sentences = [
        *(one.meaning for one in METRICS.values()),
        *(one.meaning for one in ATTRIBUTES.values()),
        *(one.meaning for one in SPANS),
        *(one.meaning for one in EVENTS.values()),
    ]
    assert [one for one in sentences if len(one) < 10 or not one.endswith((".", "`."))] == []
    names = [scraped(name) for name in METRICS]
    assert len(names) == len(set(names)), "two metrics would be one in Prometheus"


def test_attributes_are_named_by_the_catalogue_alone() -> None:
    """A literal name would bypass it."""
    literal = []
    for path, call in calls():
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        is_instrument = (
            name in {"add", "record", "set"}
            and isinstance(owner, ast.Attribute)
            and isinstance(owner.value, ast.Name)
            and owner.value.id == "metrics"
        )
        if not is_instrument and name not in {"batch_span", "record_span"}:
            continue
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            if isinstance(argument, ast.Dict):
                literal += [(path.name, key.value) for key in argument.keys if isinstance(key, ast.Constant)]
    assert literal == []


def test_the_page_says_what_the_catalogue_says() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/telemetry_page.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
