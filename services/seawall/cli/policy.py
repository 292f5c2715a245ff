"""``seawall policy``: check, test, diff, explain, replay, shadow."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from seawall.aggregator.replay.tally import OUTCOMES, Tally, outcome_name
from seawall.aggregator.settings import AggregatorSettings
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.cli import policy_actors
from seawall.cli.terminal import console, print_json
from seawall.cli.why import OUTCOME_STYLE
from seawall.core.errors import Fatal
from seawall.core.policy import Policy, Rollout, Rule, cases
from seawall.core.policy.compare import Change, compare

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_MOST_ROWS = 25


# ---- check, test, diff, explain --------------------------------------------------------------------------------------


def new(folder: Path) -> None:
    """Copy the default bundle. Raises Fatal if the folder is there."""
    policy = Policy(AggregatorSettings.model_fields["policy"].default)
    try:
        folder.mkdir(parents=True)
        for name, data in policy.source.files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise Fatal("UNWRITABLE_FILE", f"{folder}: {error.strerror}: name a folder that does not exist yet") from error
    console().print(f"{folder} is {policy.name} {policy.version}; next: seawall policy check {folder}")


def check(path: Path, *, json_output: bool) -> None:
    """Load a bundle or a rollout as the aggregator would. Raises Fatal("BAD_POLICY") with file, line and mend."""
    rollout = Rollout.load(path)
    if json_output:
        print_json({"ok": True, "rollout": rollout.digest, "bundles": [_summary(one) for one in rollout.policies]})
        return
    for policy in rollout.policies:
        shadow = sum(rule.shadow for rule in policy.rules)
        console().print(
            Text.assemble(
                ("ok ", "green"),
                f"{policy.name} {policy.version}: {len(policy.rules) - shadow} rules in force, {shadow} in shadow, "
                f"{len(policy.disabled)} disabled, {len(policy.thresholds)} thresholds, "
                f"{len(policy.actors.rules) if policy.actors else 0} actor rules ",
                (f"sha256:{policy.digest}", "dim"),
            )
        )


def _summary(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "version": policy.version,
        "owner": policy.owner,
        "note": policy.note,
        "digest": policy.digest,
        "rules": [{"id": rule.rule_id, "mode": "shadow" if rule.shadow else "enforce"} for rule in policy.rules]
        + [{"id": rule.rule_id, "mode": "disabled"} for rule in policy.disabled],
        "actor_rules": [
            {"id": one.rule_id, "mode": one.mode} for one in (policy.actors.rules if policy.actors else ())
        ],
    }


def test(path: Path, *, json_output: bool) -> None:
    """Run the bundles' own cases; exit status 1 unless all are as expected."""
    failed = False
    documents = []
    for policy in Rollout.load(path).policies:
        results = cases.run(policy)
        untested = cases.untested(policy, results)
        faults = [result for result in results if result.fault]
        failed = failed or bool(faults) or not results
        documents.append(
            {
                "name": policy.name,
                "digest": policy.digest,
                "cases": len(results),
                "faults": [{"case": one.name, "line": one.line, "fault": one.fault} for one in faults],
                "rules_without_a_case": untested,
            }
        )
        if json_output:
            continue
        for one in faults:
            console().print(Text(f"tests.yaml line {one.line}: {one.name}: {one.fault}", "red"))
        right = len(results) - len(faults)
        line = f"{policy.name} {policy.version}: {right} of {len(results)} cases as expected"
        style = "red" if faults or not results else "green"
        console().print(Text(line if results else f"{policy.name}: no cases: add tests.yaml", style))
        if untested:
            console().print(Text(f"rules that no case ends in: {', '.join(untested)}", "yellow"))
    if json_output:
        print_json({"ok": not failed, "bundles": documents})
    sys.exit(1 if failed else 0)


def diff(before: Path, after: Path, *, json_output: bool) -> None:
    """What differs between two bundles, by meaning; exit status 1 if anything does."""
    changes = compare(Policy(before), Policy(after))
    if json_output:
        print_json({"changes": [change._asdict() for change in changes]})
    else:
        for change in changes:
            console().print(_change(change))
        if not changes:
            console().print(Text("they decide the same", "green"))
    sys.exit(1 if changes else 0)


def _change(change: Change) -> Text:
    style = {"added": "green", "removed": "red"}.get(change.kind, "yellow")
    text = Text.assemble((f"{change.kind:<8}", style), f" {change.what}")
    if change.before:
        text.append(f"\n         - {change.before}", "red")
    if change.after:
        text.append(f"\n         + {change.after}", "green")
    return text


def explain(path: Path, rule_id: str | None, *, json_output: bool) -> None:
    """A bundle in words: what must report, the thresholds, every rule in order."""
    policy = Policy(path)
    rules = [*policy.rules, *policy.disabled]
    actor_rules = list(policy.actors.rules) if policy.actors else []
    if rule_id is not None:
        rules = [rule for rule in rules if rule.rule_id == rule_id]
        actor_rules = [rule for rule in actor_rules if rule.rule_id == rule_id]
        if not rules and not actor_rules:
            raise Fatal("NO_SUCH_RULE", f"{policy.name} has no rule {rule_id!r}: `seawall policy explain` lists them")
    if json_output:
        documents = {"rules": [_rule_document(rule, policy) for rule in rules]}
        if policy.actors is not None:
            documents["actor_rules"] = [policy_actors.rule_document(rule) for rule in actor_rules]
        print_json({**_policy_document(policy), **documents})
        return
    if rule_id is None:
        out = console()
        out.print(Text.assemble((f"{policy.name} {policy.version}", "bold"), f"  {policy.owner}"))
        out.print(Text(policy.note, "dim"))
        out.print(_stages(policy))
        out.print(f"A HOLD is scanned again, up to attempt {policy.max_attempts}; then a person reviews it.")
    for number, rule in enumerate(rules, 1):
        console().print()
        console().print(_rule(policy, number, rule, rule in policy.disabled))
    if policy.actors is None:
        return
    if rule_id is None:
        policy_actors.counted(policy.actors)
    for number, actor_rule in enumerate(actor_rules, 1):
        console().print()
        console().print(policy_actors.rule_text(policy.actors, number, actor_rule))


def _policy_document(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "version": policy.version,
        "digest": policy.digest,
        "owner": policy.owner,
        "note": policy.note,
        "max_attempts": policy.max_attempts,
        "modalities": [
            {"modality": name, "prompt": sorted(prompt), "media": sorted(media), "budget_seconds": seconds}
            for name, prompt, media, seconds in policy.describe()
        ],
        "thresholds": [threshold._asdict() for threshold in policy.thresholds],
    }


def _rule_document(rule: Rule, policy: Policy) -> dict[str, Any]:
    return {
        "id": rule.rule_id,
        "mode": "disabled" if rule in policy.disabled else "shadow" if rule.shadow else "enforce",
        "when": " ".join(rule.when.split()),
        "outcome": outcome_name(rule.outcome),
        "reason": rule.reason_code,
        "severity": decision_pb2.Severity.Name(rule.severity).removeprefix("SEVERITY_").lower(),
        "follow_up": decision_pb2.FollowUp.Name(rule.follow_up).removeprefix("FOLLOW_UP_").lower(),
        "nexus": sorted(generation_pb2.Nexus.Name(nexus).removeprefix("NEXUS_").lower() for nexus in rule.nexus),
        "note": rule.note,
    }


def _stages(policy: Policy) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("modality", "with a prompt", "with media", "decided after, at the latest"):
        table.add_column(heading)
    for name, prompt, media, seconds in policy.describe():
        table.add_row(name, ", ".join(sorted(prompt)), ", ".join(sorted(media)), f"{seconds:g} s")
    return table


def _rule(policy: Policy, number: int, rule: Rule, disabled: bool) -> Text:
    name = outcome_name(rule.outcome)
    mode = " (disabled)" if disabled else " (shadow: recorded, never acted on)" if rule.shadow else ""
    text = Text.assemble((f"{number}. {rule.rule_id}", "bold"), "  ", (name, OUTCOME_STYLE.get(name, "")), mode)
    text.append(f"  {rule.reason_code}", "dim")
    condition = " ".join(rule.when.split())
    values = {t.name: t for t in policy.thresholds}
    for threshold in values.values():
        for quote in "\"'":
            written = f"threshold[{quote}{threshold.name}{quote}]"
            condition = condition.replace(written, f"{threshold.value:g} ({threshold.name})")
            condition = condition.replace(f"evidence.score[{quote}{threshold.label}{quote}]", threshold.label)
    text.append(f"\n   when {condition}")
    if rule.note:
        text.append(f"\n   {rule.note}", "dim")
    return text


# ---- replay, shadow --------------------------------------------------------------------------------------------------


def replay(
    base: Path,
    candidate: Path | None,
    *,
    since: str,
    until: str,
    source: Path | None,
    export: Path | None,
    plot: Path | None,
    samples: int,
    json_output: bool,
) -> None:
    """Judge past traffic by one bundle or two, and say what would change."""
    from seawall.aggregator.replay.records import from_file
    from seawall.aggregator.replay.run import Replay

    first = Policy(base)
    run = Replay(first, Policy(candidate) if candidate else None, samples=samples)
    # As in the aggregator: many small objects without cycles.
    gc.freeze()
    gc.set_threshold(50_000)
    began, cpu = time.monotonic(), time.process_time()
    if source is not None:
        for batch in from_file(source):
            run.feed(batch)
    else:
        asyncio.run(_from_topics(run, moment(since), moment(until), export))
    tally = run.finish()
    spent = time.process_time() - cpu
    if run.generations == 0:
        raise Fatal("NOTHING_TO_REPLAY", "no generation in that range of time: widen --since, or check the lane")
    if plot is not None:
        from seawall.cli.policy_plot import write

        write(tally, plot)
    facts = {
        "generations": run.generations,
        "signals": run.signals,
        "malformed": run.malformed,
        "seconds": round(time.monotonic() - began, 3),
        "cpu_seconds": round(spent, 3),
    }
    if json_output:
        print_json({**facts, **tally.document()})
        return
    _report(tally)
    console().print(
        Text(
            f"{run.generations:,} generations, {run.signals:,} signals, {run.malformed} unreadable, {tally.open} open; "
            f"{facts['seconds']} s, {run.generations / max(spent, 1e-9):,.0f} generations per core-second",
            "dim",
        )
    )


async def _from_topics(run: Any, since: int, until: int, export: Path | None) -> None:
    from contextlib import nullcontext

    from seawall.aggregator.replay.records import Export, Stretch, from_topics
    from seawall.cli.reach import local_settings, topics_of
    from seawall.runtime.kafka import KafkaBroker

    settings = local_settings()
    with Export(export) if export else nullcontext() as file:
        async for batch in from_topics(KafkaBroker(settings.kafka), topics_of(settings), Stretch(since, until)):
            if file is not None:
                file.write(batch)
            run.feed(batch)


def shadow(*, since: str, samples: int, json_output: bool) -> None:
    """What bundles in shadow said of the decisions since then, beside what was decided."""
    from seawall.aggregator.replay.decisions import shadow_tallies
    from seawall.cli.reach import local_settings, topics_of
    from seawall.runtime.kafka import KafkaBroker

    settings = local_settings()
    topic = topics_of(settings).decisions
    found = asyncio.run(shadow_tallies(KafkaBroker(settings.kafka), topic, moment(since), samples))
    if json_output:
        print_json({"bundles": [{"bundle": digest, **tally.document()} for digest, tally in found.bundles.items()],
                    "rules": found.rules})  # fmt: skip
        return
    if not found.bundles and not found.rules:
        raise Fatal(
            "NO_SHADOW", f"no decision in {topic} since then had a bundle or rule in shadow: set one in rollout.yaml"
        )
    for digest, tally in found.bundles.items():
        console().print(Text(f"bundle in shadow sha256:{digest}", "dim"))
        _report(tally)
    for rule_id, counts in found.rules.items():
        console().print(
            f"rule in shadow {rule_id}: held {counts['held']} times, would have changed {counts['would_change']}, "
            f"erred {counts['erred']}"
        )


def moment(text: str) -> int:
    """Unix milliseconds of "2h" (so long ago), "now", or an ISO 8601 time (UTC unless it says otherwise)."""
    text = text.strip()
    if text == "now":
        return int(time.time() * 1000)
    if text and text[-1] in _UNITS and text[:-1].replace(".", "", 1).isdigit():
        ago = timedelta(seconds=float(text[:-1]) * _UNITS[text[-1]])
        return int((datetime.now(UTC) - ago).timestamp() * 1000)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise Fatal("BAD_TIME", f"{text!r} is no time: write 90s, 15m, 2h, 7d, now or 2026-01-31T12:00:00") from error
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _report(tally: Tally) -> None:
    out = console()
    out.print(_by_outcome(tally))
    out.print()
    out.print(_by_rule(tally))
    if len(tally.names) < 2:
        return
    out.print()
    out.print(_confusion(tally))
    differences = tally.differences()
    out.print()
    if not differences:
        out.print(Text(f"{tally.total:,} attempts, nothing would change", "bold green"))
        return
    out.print(Text(f"{tally.changed:,} of {tally.total:,} outcomes would change", "bold yellow"))
    table = _table("What differs", ("attempts", "base", "candidate", "for example"))
    for a, b, count, samples in differences[:_MOST_ROWS]:
        table.add_row(
            f"{count:,}",
            f"{outcome_name(a.outcome)} {a.rule_id}",
            f"{outcome_name(b.outcome)} {b.rule_id}",
            ", ".join(samples),
        )
    out.print(table)
    if len(differences) > _MOST_ROWS:
        out.print(Text(f"… and {len(differences) - _MOST_ROWS} more: --json lists all", "dim"))


def _by_outcome(tally: Tally) -> Table:
    table = _table("By outcome", ("outcome", *_headings(tally.names)))
    sides = [tally.by_outcome(side) for side in range(len(tally.names))]
    for outcome in map(outcome_name, OUTCOMES):
        if any(outcome in side for side in sides):
            table.add_row(Text(outcome, OUTCOME_STYLE.get(outcome, "")), *(f"{s.get(outcome, 0):,}" for s in sides))
    return table


def _by_rule(tally: Tally) -> Table:
    table = _table("By rule", ("rule", *_headings(tally.names)))
    counts = [_sum((said.rule_id, count) for said, count in side.items()) for side in tally.by_rule]
    for rule_id in sorted({rule for side in counts for rule in side}, key=lambda r: -max(s.get(r, 0) for s in counts)):
        table.add_row(rule_id, *(f"{side.get(rule_id, 0):,}" for side in counts))
    return table


def _confusion(tally: Tally) -> Table:
    names = [outcome_name(outcome) for outcome in OUTCOMES]
    confusion = tally.confusion()
    used = [n for n in names if n in confusion or any(n in row for row in confusion.values())]
    table = _table("Base (rows) against candidate (columns)", ("", *used))
    for row in used:
        cells = [confusion.get(row, {}).get(column, 0) for column in used]
        table.add_row(
            row,
            *(
                Text(f"{count:,}", "dim" if not count else "" if row == column else "bold yellow")
                for column, count in zip(used, cells, strict=True)
            ),
        )
    return table


def _headings(names: Sequence[str]) -> list[str]:
    return [names[0]] if len(names) == 1 else [f"base: {names[0]}", f"candidate: {names[1]}"]


def _sum(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, count in pairs:
        counts[name] = counts.get(name, 0) + count
    return counts


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number and "example" not in heading else "left", overflow="fold")
    return table
