"""``seawall status``, ``tail``, ``hold`` and ``doctor``: draws what seawall.oncall found."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from seawall.api.decision.v1 import decision_pb2
from seawall.cli import terminal
from seawall.cli.instants import instant_of
from seawall.cli.reach import LocalSettings, endpoints, local_settings, topics_of
from seawall.cli.why import OUTCOME_STYLE
from seawall.core.errors import Fatal
from seawall.local import restart as restarting
from seawall.local import verdict
from seawall.local.mesh import running
from seawall.oncall import decisions
from seawall.oncall import doctor as checks
from seawall.oncall.status import LATE_SECONDS, NO_ANSWER, NOT_READY, READY, Overview, RoomLine, overview
from seawall.runtime.kafka import KafkaBroker
from seawall.runtime.settings import seawall_home

_STATE_STYLE = {READY: "green", NOT_READY: "yellow", NO_ANSWER: "bold red"}
_LEVEL_STYLE = {checks.Level.BROKEN: "bold red", checks.Level.SOON: "yellow"}
_OUTCOMES = [name.removeprefix("OUTCOME_") for name in decision_pb2.Outcome.keys()[1:]]


def status(seconds: float, *, json_output: bool) -> None:
    """Print the overview; exit status 1 unless all is well."""
    found = asyncio.run(_overview(local_settings(), seconds))
    if json_output:
        terminal.print_json({"healthy": found.healthy, **asdict(found)})
    else:
        _draw_status(found)
    sys.exit(0 if found.healthy else 1)


async def _overview(settings: LocalSettings, seconds: float) -> Overview:
    return await overview(KafkaBroker(settings.kafka), topics_of(settings), endpoints(settings), seconds=seconds)


def _draw_status(found: Overview) -> None:
    console = terminal.console()
    table = Table("room", "state", box=None)
    for heading in ("lag", "behind", "rate", "stuck for"):
        table.add_column(heading, justify="right")
    table.add_column("version")
    table.add_column("rests on", overflow="fold")
    for line in found.rooms:
        late = (line.lag_seconds or 0.0) > LATE_SECONDS
        table.add_row(
            line.room,
            Text(line.state, _STATE_STYLE[line.state]),
            Text(_span(line.lag_seconds), "bold red" if late else ""),
            "–" if line.lag_records is None else str(line.lag_records),
            "–" if line.rate is None else f"{line.rate:.1f}/s",
            _span(line.watermark_age_seconds),
            line.version or "–",
            Text(_rests_on(line), "dim"),
        )
    console.print(table)
    for line in found.rooms:
        if line.why:
            console.print(Text.assemble((f"{line.room}: ", "bold"), line.why))
        if any(line.waiting.values()):
            waiting = ", ".join(f"{count} {name}" for name, count in line.waiting.items())
            console.print(Text(f"{line.room}: {waiting}", "dim"))
    if found.kafka_fault:
        console.print(Text(f"kafka: {found.kafka_fault}", "bold red"))


def _rests_on(line: RoomLine) -> str:
    packs = sum(one.get("kind") == "term_pack" for one in line.rests_on)
    named = [
        f"{one['name']} {one['version']} {one['sha256'][:8]}" for one in line.rests_on if one.get("kind") != "term_pack"
    ]
    return ", ".join([*named, f"{packs} term packs"] if packs else named)


def _span(seconds: float | None) -> str:
    """A span of time for a person: "0.4 s", "12 min", "3.1 h"."""
    if seconds is None:
        return "–"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def tail(
    *,
    outcomes: Sequence[str],
    rules: Sequence[str],
    tenants: Sequence[str],
    stage_errors: Sequence[str],
    since: str | None,
    count: int | None,
    json_output: bool,
) -> None:
    """Print decisions as they come."""
    named = frozenset(outcome.upper() for outcome in outcomes)
    if unknown := named - set(_OUTCOMES):
        raise Fatal("BAD_OUTCOME", f"--outcome {', '.join(sorted(unknown))}: one of {', '.join(_OUTCOMES)}")
    wanted = decisions.Filter(named, frozenset(rules), frozenset(tenants), frozenset(stage_errors))
    terminal.run_until_signal(_tail(wanted, since, count, json_output=json_output))


async def _tail(wanted: decisions.Filter, since: str | None, count: int | None, *, json_output: bool) -> None:
    settings = local_settings()
    topic = topics_of(settings).decisions
    console = terminal.console()
    since_ms = instant_of("--since", since) // 1_000_000 if since is not None else None
    shown = 0
    passing = decisions.tail(KafkaBroker(settings.kafka), topic, wanted, since_unix_ms=since_ms)
    async with aclosing(passing):
        async for decision, record in passing:
            if json_output:
                print(json.dumps(_decision(decision, record.partition, record.offset)), flush=True)
            else:
                console.print(_line(decision))
            shown += 1
            if shown == count:
                return


def _decision(decision: decisions.Decision, partition: int, offset: int) -> dict[str, Any]:
    return {
        "generation_id": decision.generation_id,
        "attempt": decision.attempt,
        "kind": decision_pb2.DecisionKind.Name(decision.kind).removeprefix("DECISION_KIND_").lower(),
        "outcome": verdict.outcome_name(decision.outcome),
        "rule_id": decision.rule_id,
        "reason_code": decision.reason_code,
        "tenant_id": decision.tenant_id,
        "policy_digest": decision.policy_digest,
        "trace_id": decision.traceparent[3:35],
        "decided": decision.decided_unix_nano / 1e9,
        "seconds": _seconds(decision),
        "stage_errors": [{"stage": stage, "reason": reason} for stage, reason in decisions.faults(decision)],
        "record": {"partition": partition, "offset": offset},
    }


def _line(decision: decisions.Decision) -> Text:
    name = verdict.outcome_name(decision.outcome)
    text = Text(time.strftime("%H:%M:%S ", time.gmtime(decision.decided_unix_nano / 1e9)), "dim")
    text.append(f"{name:<16} ", OUTCOME_STYLE.get(name, ""))
    text.append(f"{decision.generation_id} #{decision.attempt}  {decision.rule_id} ({decision.reason_code})")
    if decision.tenant_id:
        text.append(f"  {decision.tenant_id}", "dim")
    seconds = _seconds(decision)
    if seconds is not None:
        text.append(f"  {seconds * 1000:.0f} ms", "dim")
    for stage, reason in decisions.faults(decision):
        text.append(f"  {stage} {reason}", "red")
    return text


def _seconds(decision: decisions.Decision) -> float | None:
    began = decision.generation_log_unix_nano
    return max(decision.decided_unix_nano - began, 0) / 1e9 if began else None


def restart(room: str) -> None:
    """Restart a room of the local mesh."""
    home = seawall_home()
    mesh = running(home)
    if mesh is None:
        raise Fatal("NO_MESH", f"no mesh runs on {home}: `seawall restart` is for the one that `seawall up` runs there")
    done = restarting.restart(home, mesh, room)
    terminal.console().print(f"{room}: process {done.before} ended, {done.after} is ready")


def hold_list(since: str, *, json_output: bool) -> None:
    """Print what is held, the longest first."""
    settings = local_settings()
    begin = instant_of("--since", since) // 1_000_000
    found = asyncio.run(
        decisions.held(
            KafkaBroker(settings.kafka),
            topics_of(settings).decisions,
            since_unix_ms=begin,
        )
    )
    now = time.time()
    if json_output:
        terminal.print_json({"held": [_held(one, now) for one in found]})
        return
    table = Table("generation", "held for", "attempts", "next", "why", box=None)
    for one in found:
        following = Text("scanned again", "dim") if one.rescanned else Text("nothing by itself", "yellow")
        table.add_row(one.generation_id, _span(max(now - one.since, 0)), str(one.attempts), following, one.why)
    terminal.console().print(table)
    alone = sum(not one.rescanned for one in found)
    terminal.console().print(Text(f"{len(found)} held, {alone} of them until a person acts", "dim"))


def _held(one: decisions.Held, now: float) -> Mapping[str, Any]:
    return {
        "generation_id": one.generation_id,
        "tenant_id": one.tenant_id,
        "seconds": round(max(now - one.since, 0), 1),
        "attempts": one.attempts,
        "rescanned": one.rescanned,
        "rule_id": one.decision.rule_id,
        "reason_code": one.decision.reason_code,
        "stage_errors": [{"stage": stage, "reason": reason} for stage, reason in decisions.faults(one.decision)],
    }


def doctor(*, json_output: bool) -> None:
    """Print findings and mends; exit status 1 if something is broken."""
    settings = local_settings()

    async def gather() -> checks.Gathered:
        found = await _overview(settings, 0.2)
        return await checks.gather(
            KafkaBroker(settings.kafka),
            topics_of(settings),
            endpoints(settings),
            found,
            _certificates(settings),
            [seawall_home()],
        )

    findings = checks.examine(asyncio.run(gather()))
    broken = any(one.level is checks.Level.BROKEN for one in findings)
    if json_output:
        terminal.print_json(
            {
                "ok": not findings,
                "findings": [
                    {"level": one.level.value, "check": one.check, "what": one.what, "mend": one.mend}
                    for one in findings
                ],
            }
        )
    elif findings:
        for one in findings:
            level = (f"{one.level.value:<7}", _LEVEL_STYLE[one.level])
            terminal.console().print(Text.assemble(level, (f"{one.check:<13}", "bold"), one.what))
            terminal.console().print(Text(f"{'':20}→ {one.mend}", "dim"))
    else:
        terminal.console().print(Text("nothing is wrong that can be seen from here", "green"))
    sys.exit(1 if broken else 0)


def _certificates(settings: LocalSettings) -> dict[str, Path]:
    """Certificate files that this machine's settings name."""
    named = {
        "kafka.ssl_cafile": settings.kafka.ssl_cafile,
        "kafka.ssl_certfile": settings.kafka.ssl_certfile,
        "rpc_client.tls_ca": settings.rpc_client.tls_ca,
        "rpc_client.tls_certificate": settings.rpc_client.tls_certificate,
        "rpc_server.tls_certificate": settings.rpc_server.tls_certificate,
        "rpc_server.tls_client_ca": settings.rpc_server.tls_client_ca,
    }
    return {setting: path for setting, path in named.items() if path is not None}
