"""``seawall why``: draws an explanation in the terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal, SeawallError
from seawall.local import verdict
from seawall.local.explain import Found, explain, find
from seawall.local.waterfall import HOPS, StageTime, total_nanos, waterfall
from seawall.oncall import handles, overrides
from seawall.oncall.handles import Handle, Kind
from seawall.runtime.broker import Broker
from seawall.runtime.topics import TopicNames

if TYPE_CHECKING:
    from seawall.aggregator.replay.decisions import Remade

_BAR = 32
_FALL = 56
#: Glyph and colour of each hop: told apart without colour too.
_HOP_STYLE = {
    "queue": ("░", "yellow"),
    "batch": ("▒", "magenta"),
    "rpc": ("▓", "blue"),
    "inference": ("█", "green"),
    "join": ("·", "cyan"),
}
OUTCOME_STYLE = {
    "HOLD": "bold yellow",
    "ALLOW": "bold green",
    "REVIEW": "bold magenta",
    "BLOCK": "bold red",
    "BLOCK_AND_REPORT": "bold white on red",
}


def why(handle: str, *, json_output: bool) -> None:
    """Find the generation's decisions and print them, or the generations that the handle leads to if they are several.

    Raises Fatal("NOT_FOUND") if there is none.
    """
    # Imported here, so that drawing needs no broker client.
    from seawall.cli import reach, terminal
    from seawall.runtime.kafka import KafkaBroker

    readings = handles.readings(handle)
    settings = reach.local_settings()
    names = reach.topics_of(settings)
    broker = KafkaBroker(settings.kafka)
    ids, found = asyncio.run(_look_up(broker, names, readings))
    if len(ids) > 1:
        if json_output:
            terminal.print_json({"generations": ids})
            return
        for generation_id in ids:
            terminal.console().print(generation_id)
        terminal.console().print(Text(f"{len(ids)} generations: `seawall why` explains one", "dim"))
        return
    if not found:
        raise Fatal(
            "NOT_FOUND",
            f"{names.decisions} holds no decision of {handle}: it is not decided yet, retention has deleted it, "
            "or it belongs to another lane",
        )
    override = asyncio.run(overrides.of_generation(broker, names.overrides, ids[0]))
    if json_output:
        terminal.print_json(explain(ids[0], found, override))
    else:
        draw(terminal.console(), ids[0], found, override)


async def _look_up(broker: Broker, names: TopicNames, readings: Sequence[Handle]) -> tuple[list[str], list[Found]]:
    """The generations that a handle leads to, and the decisions of the first."""
    for reading in readings:
        match reading.kind:
            case Kind.GENERATION:
                ids = [reading.value]
            case Kind.PLACE:
                ids = await handles.generation_at(broker, names, reading.value)
            case _:
                ids = _in_ledger(reading) or await handles.generations_in_kafka(broker, names.decisions, reading)
        if ids and (found := await find(broker, names.decisions, ids[0])):
            return ids, found
    return [], []


def _in_ledger(handle: Handle) -> list[str]:
    """As `handles.generations_in_kafka`, by an index; nothing if there is no ledger or it does not answer."""
    try:
        from seawall.cli import ledger
    except ModuleNotFoundError:
        return []
    try:
        return ledger.generations(handle.kind is Kind.CONTENT, handle.value, handles.MOST)
    except SeawallError:
        return []  # Kafka answers too, later


def replay(generation_id: str, bundles: Sequence[Path], *, json_output: bool) -> None:
    """Make every decision of the generation again from its records; exit status 1 unless all are the same."""
    from seawall.aggregator.replay.decisions import remake
    from seawall.aggregator.settings import AggregatorSettings
    from seawall.cli import reach, terminal
    from seawall.core.policy import Policy, Rollout
    from seawall.core.policy.archive import Archive, find_bundle
    from seawall.runtime.kafka import KafkaBroker
    from seawall.runtime.settings import seawall_home

    default = AggregatorSettings.model_fields["policy"].default
    others: list[Policy] = [Policy(path) for path in bundles]
    others += Rollout.load(default).policies
    archive = Archive(Path(os.environ.get("SEAWALL_POLICY_ARCHIVE") or seawall_home() / "policies"))
    settings = reach.local_settings()
    broker = KafkaBroker(settings.kafka)

    async def again() -> list[Remade]:
        found = await find(broker, reach.topics_of(settings).decisions, generation_id)
        distinct = {one.value: one for one in found}
        return [await remake(broker, value, lambda digest: find_bundle(digest, archive, others)) for value in distinct]

    remade = asyncio.run(again())
    if not remade:
        raise Fatal("NOT_FOUND", f"there is no decision of {generation_id}")
    if json_output:
        terminal.print_json(
            {
                "generation_id": generation_id,
                "decisions": [
                    {
                        "decision_id": one.decision.decision_id,
                        "bundle_digest": one.decision.bundle_digest,
                        "same": one.same,
                        "bytes": len(one.recorded),
                    }
                    for one in remade
                ],
            }
        )
    else:
        for one in remade:
            decision = one.decision
            terminal.console().print(
                Text.assemble(
                    ("the same " if one.same else "DIFFERS ", "green" if one.same else "bold red"),
                    f"{verdict.outcome_name(decision.outcome)} by {decision.rule_id}, {len(one.recorded)} bytes, ",
                    f"{decision.policy_name} {decision.policy_version} ",
                    (f"sha256:{decision.bundle_digest}", "dim"),
                )
            )
    sys.exit(0 if all(one.same for one in remade) else 1)


def draw(console: Console, generation_id: str, found: Sequence[Found], override: Override | None = None) -> None:
    """Print why: the outcome that counts first, then every decision, the latest last."""
    decisions = verdict.distinct(one.decision for one in found)
    counts = verdict.effective(decisions)
    if counts is None:
        return
    if override is not None:
        console.print(_override(override, decisions))
    console.print(_headline(generation_id, counts, decisions))
    if conflicts := verdict.conflicts(one.decision for one in found):
        attempts = ", ".join(str(attempt) for attempt, _ in conflicts)
        console.print(Text(f"Conflict: attempt {attempts} has several different joint decisions", "bold red"))
    for decision in decisions:
        records = [one for one in found if one.decision.decision_id == decision.decision_id]
        console.print()
        console.print(_decision(decision, records))


def _override(override: Override, decisions: Sequence[decision_pb2.Decision]) -> Text:
    """What a person said, above what was decided."""
    said = f"by {override.by}, {_time(override.made_unix_nano)} ({override.reason_code})"
    outcome = verdict.outcome(decisions, override)
    if not override.outcome or outcome is None:
        return Text(f"an override was withdrawn {said}\n", "dim")
    name = verdict.outcome_name(outcome)
    text = Text.assemble((f" {name} ", OUTCOME_STYLE.get(name, "bold")), "  ")
    if outcome == override.outcome:
        return text.append(f"a person's word, {said}; what was decided:\n")
    return text.append(
        f"decided since {verdict.outcome_name(override.outcome)} was said {said}, which counts for what was seen then\n"
    )


def _headline(generation_id: str, counts: decision_pb2.Decision, decisions: Sequence[decision_pb2.Decision]) -> Text:
    name = verdict.outcome_name(counts.outcome)
    amendments = sum(one.kind == decision_pb2.DECISION_KIND_AMENDMENT for one in decisions)
    text = Text.assemble((f" {name} ", OUTCOME_STYLE.get(name, "bold")), f"  {generation_id}\n")
    text.append(f"rule {counts.rule_id} ({counts.reason_code}), policy {counts.policy_name} ")
    text.append(f"sha256:{counts.policy_digest}", "dim")
    text.append(f"\n{_count(max(one.attempt for one in decisions) or 1, 'attempt')}")
    text.append(f", {_count(len(decisions), 'decision')}")
    if amendments:
        text.append(f", {_count(amendments, 'late signal')} judged alone")
    if not verdict.is_settled(decisions):
        text.append("; held, and will be scanned again", "yellow")
    return text


def _decision(decision: decision_pb2.Decision, records: Sequence[Found]) -> RenderableType:
    name = verdict.outcome_name(decision.outcome)
    late = decision.kind == decision_pb2.DECISION_KIND_AMENDMENT
    title = Text.assemble(
        ("Late signal" if late else f"Attempt {decision.attempt}", "bold"),
        "  ",
        (name, OUTCOME_STYLE.get(name, "bold")),
        f"  {decision.rule_id} ({decision.reason_code})",
        (f"  {_time(decision.decided_unix_nano)}  decision {decision.decision_id}", "dim"),
    )
    parts: list[RenderableType] = [title]
    if others := [hit for hit in decision.rule_hits if hit.rule_id != decision.rule_id]:
        held = ", ".join(f"{hit.rule_id} ({verdict.outcome_name(hit.outcome)})" for hit in others)
        parts.append(Text(f"also held: {held}"))
    if decision.rule_errors:
        parts.append(Text(f"rules that could not be evaluated: {', '.join(decision.rule_errors)}", "red"))
    if decision.shadow_hits:
        parts.append(Text(f"rules in shadow held: {', '.join(hit.rule_id for hit in decision.shadow_hits)}", "dim"))
    for shadow in decision.shadows:
        said = f"{verdict.outcome_name(shadow.outcome)} by {shadow.rule_id}"
        parts.append(Text(f"in shadow, {shadow.policy_name} {shadow.policy_version} says {said}", "dim"))
    if decision.missing_stages:
        parts.append(Text(f"no signal from: {', '.join(decision.missing_stages)}", "red"))
    if decision.nexus:
        nexus = [generation_pb2.Nexus.Name(one).removeprefix("NEXUS_").lower() for one in decision.nexus]
        parts.append(Text(f"rests on: {', '.join(nexus)}"))
    for cause in (joined.signal.caused_by for joined in decision.signals if joined.signal.HasField("caused_by")):
        where = f"{cause.topic}/{cause.partition}/{cause.offset}"
        parts.append(Text(f"found afterwards, in what was measured then: a bank listed it later ({where})"))
    if decision.comparisons:
        parts.append(_comparisons(decision))
    if decision.signals:
        parts.append(_items(decision))
        parts.append(_waterfall(decision))
    parts.append(_hops(decision, records))
    return Group(parts[0], *(Padding(part, (0, 0, 0, 2)) for part in parts[1:]))


def _comparisons(decision: decision_pb2.Decision) -> Table:
    table = _table("Signal against threshold")
    for heading in ("label", "score", "", "threshold"):
        table.add_column(heading, justify="right" if heading == "score" else "left", no_wrap=True)
    for one in decision.comparisons:
        measured = one.HasField("score")
        table.add_row(
            one.label,
            f"{one.score:.3f}" if measured else "–",
            bar(one.score if measured else None, one.value),
            Text.assemble(
                f"{'≥' if one.reached else '<'} {one.value:g} {one.threshold}" if measured else f"{one.value:g} ",
                ("  reached" if one.reached else "" if measured else f"{one.threshold}  not measured", "dim"),
                style="bold red" if one.reached else "",
            ),
        )
    return table


def bar(score: float | None, threshold: float, width: int = _BAR) -> Text:
    """A bar of the score from 0 to 1, with the threshold's tick; the bar is red once it reaches the tick."""
    filled = 0 if score is None else round(min(max(score, 0.0), 1.0) * width)
    reached = score is not None and score >= threshold
    tick = min(width - 1, round(min(max(threshold, 0.0), 1.0) * width))
    text = Text()
    for cell in range(width):
        if cell == tick:
            text.append("┃", "bold")
        elif cell < filled:
            text.append("█", "red" if reached else "green")
        else:
            text.append("─", "dim")
    return text


def _items(decision: decision_pb2.Decision) -> Table:
    table = _table("What the stages measured")
    for heading in ("stage", "item", "status", "found", "by"):
        table.add_column(heading, overflow="fold")
    for joined in decision.signals:
        signal = joined.signal
        used = ", ".join(f"{one.name} {one.version} {one.sha256.hex()[:12]}" for one in signal.artefacts)
        for number, item in enumerate(signal.items):
            status = signal_pb2.ItemStatus.Name(item.status).removeprefix("ITEM_STATUS_")
            reason = f" ({item.reason})" if item.reason else ""
            table.add_row(
                signal.stage if number == 0 else "",
                item.item_id,
                Text(f"{status}{reason}", "" if status in ("OK", "SKIPPED") else "yellow"),
                _findings(item),
                Text(used, "dim") if number == 0 else "",
            )
    return table


def _findings(item: signal_pb2.ItemResult) -> Text:
    lines = [_match(match) for match in (*item.matches, *item.held_matches)]
    if item.labels:
        lines.append(", ".join(_score(one) for one in item.labels))
    for shadow in item.shadows:
        said = ", ".join(_score(one) for one in shadow.labels) or shadow.reason
        lines.append(f"on trial, {shadow.model}: {said}")
    return Text("\n".join(lines) or "–")


def _score(one: signal_pb2.LabelScore) -> str:
    return f"{one.label} {one.score:.3f}{f' in frame {one.frame}' if one.frame else ''}"


def _match(match: signal_pb2.BankMatch) -> str:
    held = signal_pb2.MatchDisposition.Name(match.disposition).removeprefix("MATCH_DISPOSITION_").lower()
    return "".join(
        (
            f"{match.bank}/{match.entry_id} {match.hash_type} distance {match.distance}, {match.variant or 'original'}",
            f", {match.query_percent} % of its frames, {match.listed_percent} % of the listed video's"
            if match.listed_percent
            else "",
            f", {match.category}" if match.category else "",
            f", {held}" if match.disposition else "",
            f", contested by {match.contested_by}" if match.contested_by else "",
        )
    )


def _waterfall(decision: decision_pb2.Decision) -> RenderableType:
    stages, total = waterfall(decision), total_nanos(decision)
    longest = max([total, *(stage.spans[-1].end for stage in stages if stage.spans)], default=0) or 1
    # A late signal knows nothing of the generation's record: its time begins with the signal's own.
    begin = "the generation's record" if decision.generation_log_unix_nano else "when the late signal was begun"
    table = _table(f"Where the time went: {_ms(total)} from {begin} to the decision")
    table.add_column("stage")
    table.add_column(Text.assemble(*((f"{glyph} {hop}  ", colour) for hop, (glyph, colour) in _HOP_STYLE.items())))
    for hop in HOPS:
        table.add_column(hop, justify="right")
    for stage in stages:
        table.add_row(stage.stage, fall(stage, longest), *(_ms(stage.nanos(hop)) for hop in HOPS))
    return table


def fall(stage: StageTime, longest: int, width: int = _FALL) -> Text:
    """A stage's spans on a line of ``width`` cells that stands for ``longest`` nanoseconds.

    A span gets every cell it touches; where two touch one cell the later shows, but never in place of the inference.
    """
    cells: list[str | None] = [None] * width
    for span in stage.spans:
        first = min(width - 1, span.start * width // longest)
        last = min(width - 1, max(first, (span.end * width - 1) // longest))
        for cell in range(first, last + 1):
            if cells[cell] != "inference":
                cells[cell] = span.hop
    text = Text()
    for hop in cells:
        text.append(*(_HOP_STYLE[hop] if hop else (" ", "")))
    return text


def _hops(decision: decision_pb2.Decision, records: Sequence[Found]) -> Table:
    table = _table("Every hop in Kafka")
    for heading in ("record", "topic", "partition", "offset", "at", "by"):
        table.add_column(heading, justify="right" if heading in ("partition", "offset", "at") else "left")
    origin = decision.generation_log_unix_nano

    def row(what: str, where: generation_pb2.RecordCoordinates, log_nanos: int, by: str = "") -> None:
        at = f"+{_ms(max(0, log_nanos - origin))}" if log_nanos and origin else ""
        table.add_row(what, where.topic, str(where.partition), str(where.offset), at, Text(by, "dim"))

    row("generation", decision.generation_record, decision.generation_log_unix_nano)
    for joined in decision.signals:
        signal = joined.signal
        tries = f", {signal.rpc_attempts} tries" if signal.rpc_attempts > 1 else ""
        by = f"{signal.relay_instance} ⇄ {signal.service_instance or 'no service'}, batch of {signal.batch_size}{tries}"
        if signal.HasField("caused_by"):
            row("bank's change", signal.caused_by, 0)
            by = ""
        row(f"signal {signal.stage}", joined.record, joined.log_unix_nano, by)
    if decision.completed_by.topic:
        row("completed by", decision.completed_by, decision.decided_unix_nano)
    for number, one in enumerate(records):
        repeat = f" (repeat {number})" if number else ""
        table.add_row(f"decision{repeat}", one.topic, str(one.partition), str(one.offset), "", "")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ms(nanos: int) -> str:
    return f"{nanos / 1e6:.1f} ms"


def _time(unix_nano: int) -> str:
    return datetime.fromtimestamp(unix_nano / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
