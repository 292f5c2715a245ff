"""Dashboards, alerts and the collector's configuration: they hold together with the catalogue and the runbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from seawall.runtime.events import EVENTS
from seawall.runtime.metrics import ATTRIBUTES, METRICS
from seawall.runtime.prometheus import scraped
from tests.support.promtool import promtool

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
#: Metrics of others that a rule may ask for: Prometheus's own, and those of Kafka's JMX exporter.
OTHERS = {"up", "kafka_server_replicamanager_underminisrpartitioncount", "ALERTS"}
#: What PromQL itself has, and the names of labels.
WORDS = {
    *("sum", "max", "min", "by", "on", "and", "or", "rate", "increase", "time", "histogram_quantile", "le", "job"),
    *("alertname", "alertstate", "service_name", "service_instance_id", "label_values"),
    *(name.replace(".", "_") for name in ATTRIBUTES),
}


def exported() -> set[str]:
    names = set()
    for metric in METRICS.values():
        name = scraped(metric.name)
        names |= {f"{name}_{end}" for end in ("bucket", "count", "sum")} if metric.kind == "histogram" else {name}
    return names


def asked_for(expression: str) -> set[str]:
    """Names of metrics in a PromQL expression."""
    bare = re.sub(r'"[^"]*"|\$\w+|\[[^\]]*\]|\b\d+[smhd]?\b', " ", expression)
    return set(re.findall(r"[a-zA-Z_]\w+", bare)) - WORDS


def dashboards() -> list[Path]:
    return sorted((ROOT / "deploy/grafana").glob("*.json"))


def expressions(dashboard: Path) -> Iterator[tuple[str, str]]:
    for panel in json.loads(dashboard.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run([promtool(), "check", "rules", PROMETHEUS / "rules.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_on_its_fault_and_is_quiet_on_what_looks_like_it() -> None:
    done = subprocess.run([promtool(), "test", "rules", PROMETHEUS / "rules_test.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [test["name"] for test in yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text("utf-8"))["tests"]]
    assert sorted(names) == sorted(f"{rule['alert']} {what}" for rule in RULES for what in ("fires", "is quiet"))


def test_promtool_finds_a_rule_that_is_wrong(tmp_path: Path) -> None:
    text = (PROMETHEUS / "rules.yaml").read_text("utf-8").replace("> 60", "> 6000", 1)
    (tmp_path / "rules.yaml").write_text(text)
    (tmp_path / "rules_test.yaml").write_text((PROMETHEUS / "rules_test.yaml").read_text("utf-8"))
    done = subprocess.run([promtool(), "test", "rules", tmp_path / "rules_test.yaml"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DecisionsLate fires" in done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_emitted_and_has_its_runbook_entry(rule: dict[str, Any]) -> None:
    names = asked_for(rule["expr"])
    assert names
    assert names <= exported() | OTHERS
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    entry = re.search(
        rf"^### {rule['alert']}\n(.*?)(?=^##|\Z)",
        (ROOT / "docs/runbook.md").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    assert entry, f"docs/runbook.md has no entry {rule['alert']}"
    assert re.search(r"\*\*Means\.\*\* .*\*\*Command\.\*\* .*\*\*Action\.\*\* ", entry[1], re.DOTALL)
    assert "`seawall " in entry[1] or "log" in entry[1]


def test_every_event_that_an_alert_names_exists() -> None:
    named = re.findall(r'moderation_event=~?"([^"]+)"', "\n".join(rule["expr"] for rule in RULES))
    assert {event for names in named for event in names.split("|")} <= set(EVENTS)


@pytest.mark.parametrize("dashboard", dashboards(), ids=lambda path: path.name)
def test_a_dashboard_asks_for_what_is_emitted(dashboard: Path) -> None:
    found = list(expressions(dashboard))
    assert len(found) > 20
    unknown = {title: asked_for(expr) - exported() - OTHERS for title, expr in found}
    assert {title: names for title, names in unknown.items() if names} == {}


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {name for path in dashboards() for _, expr in expressions(path) for name in asked_for(expr)}
    bases = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    missing = {name for name in METRICS if scraped(name) not in bases}
    assert missing == NOT_SHOWN


#: For questions, not for a wall: they are in docs/telemetry.md.
NOT_SHOWN = {
    "moderation.bank.changes.refused",
    "moderation.model.score",
    "moderation.retroactive.held",
    "moderation.stream.halted",
}


@pytest.mark.parametrize("dashboard", dashboards(), ids=lambda path: path.name)
def test_a_panels_runbook_entries_exist(dashboard: Path) -> None:
    alerts = {rule["alert"] for rule in RULES}
    named: set[str] = set()
    for panel in json.loads(dashboard.read_text("utf-8"))["panels"]:
        if match := re.search(r"Runbook: ([\w, ]+)\.", panel.get("description", "")):
            named |= {name.strip() for name in match[1].split(",")}
    assert named
    assert named <= alerts


def test_the_collectors_pipelines_are_made_of_what_it_defines() -> None:
    config = yaml.safe_load((ROOT / "deploy/otel-collector.yaml").read_text("utf-8"))
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in config["service"]["pipelines"].values():
        for part, names in pipeline.items():
            used[part] |= set(names)
        assert pipeline["processors"][0] == "memory_limiter", "it must come first"
    for part, names in used.items():
        assert names == set(config[part]), part
    assert set(config["service"]["extensions"]) == set(config["extensions"])
    assert config["exporters"]["prometheus"]["resource_to_telemetry_conversion"] == {"enabled": True}, (
        "as in rules.yaml"
    )


def test_every_command_that_the_runbook_names_exists() -> None:
    text = (ROOT / "docs/runbook.md").read_text("utf-8")
    named = set(re.findall(r"`seawall ([a-z]+(?: [a-z]+)?)", text))
    from typer.main import get_command

    from seawall.cli.app import app

    commands: Any = get_command(app)
    for words in sorted(named):
        first, _, second = words.partition(" ")
        assert first in commands.commands, f"docs/runbook.md names `seawall {words}`"
        group = commands.commands[first]
        if hasattr(group, "commands"):
            assert second in group.commands, f"docs/runbook.md names `seawall {words}`"
