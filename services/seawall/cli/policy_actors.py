"""Actor rules of a bundle, in words: what ``seawall policy explain`` says of them."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.cli.terminal import console
from seawall.core.policy import ActorPolicy, ActorRule


def counted(actors: ActorPolicy) -> None:
    """What counts, how much, and for how long."""
    entry, weights = actors.entry, actors.entry.weights
    out = console()
    out.print()
    out.print(Text("Actors: what their decisions of the last days come to", "bold"))
    out.print(
        f"Counted for {entry.window_hours} h; weighs half after {entry.half_life_hours:g} h. A near miss adds "
        f"{weights.near_miss:g} to the pressure, a block {weights.block:g}, a report {weights.report:g}, an evasion "
        f"{weights.evasion:g}, an escalation {weights.escalation:g}, a drip its score times {weights.drip:g}."
    )
    out.print(f"A drip: allowed, with {entry.drip_floor:g} or more of {', '.join(entry.rare)}.")


def rule_document(rule: ActorRule) -> dict[str, Any]:
    """One rule as plain data."""
    return {
        "id": rule.rule_id,
        "mode": rule.mode,
        "standing": pb.Standing.Name(rule.standing).removeprefix("STANDING_"),
        "reason": rule.reason_code,
        "lasts_hours": rule.lasts_hours,
        "when": " ".join(rule.when.split()),
        "note": rule.note,
    }


def rule_text(actors: ActorPolicy, number: int, rule: ActorRule) -> Text:
    """One rule, its thresholds' values put in."""
    standing = pb.Standing.Name(rule.standing).removeprefix("STANDING_")
    mode = {"enforce": "", "shadow": " (shadow: recorded, never acted on)", "disabled": " (disabled)"}[rule.mode]
    text = Text.assemble((f"{number}. {rule.rule_id}", "bold"), f"  {standing} for {rule.lasts_hours:g} h{mode}")
    text.append(f"  {rule.reason_code}", "dim")
    condition = " ".join(rule.when.split())
    for name, value in actors.entry.thresholds.items():
        for quote in "\"'":
            condition = condition.replace(f"threshold[{quote}{name}{quote}]", f"{value:g} ({name})")
    text.append(f"\n   when {condition}")
    if rule.note:
        text.append(f"\n   {rule.note}", "dim")
    return text
