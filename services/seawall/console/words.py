"""A rule in plain words: what was decided, by what, on which evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from seawall.console.shapes import ComparisonView, MatchView

_DONE: Final = {
    "HOLD": "Held",
    "ALLOW": "Allowed",
    "REVIEW": "Sent to a person",
    "BLOCK": "Blocked",
    "BLOCK_AND_REPORT": "Blocked, to be reported",
}
#: The engine's own rules: no policy can change what they mean.
_ENGINE: Final = {
    "engine/no-rule-matched": "no rule of the policy held, and the evidence was complete",
    "engine/incomplete-evidence": "evidence is missing or broken, and that never allows anything; it is scanned again",
    "engine/attempts-exhausted": "every attempt ended with evidence missing or broken, so a person looks",
    "engine/unscannable": "an item cannot be read at all (truncated, a bomb, the wrong type), so a person looks",
    "engine/quarantined-match": "it matched an entry that is quarantined after a flood, so a person looks",
    "engine/rule-error": "a rule could not be evaluated, and that never allows anything",
    "engine/malformed-record": "the generation's record itself cannot be read, so a person looks",
}
_MOST: Final = 3


def in_words(
    outcome: str,
    rule_id: str,
    reason_code: str,
    *,
    comparisons: Sequence[ComparisonView],
    matches: Sequence[MatchView],
    missing: Sequence[str],
    nexus: Sequence[str],
) -> str:
    """One or two sentences, with what was measured, not what it was measured of."""
    done = _DONE.get(outcome, outcome.replace("_", " ").capitalize())
    if rule_id.startswith("engine/"):
        because = _ENGINE.get(rule_id, f"of the engine's rule {rule_id.removeprefix('engine/')}")
    else:
        reason = f" ({reason_code.replace('_', ' ').lower()})" if reason_code else ""
        because = f"the policy's rule “{rule_id}” held{reason}"
    said = [f"{done}, because {because}."]
    found = [*(_match(one) for one in matches if not one.held), *(_reached(one) for one in comparisons if one.reached)]
    if found:
        more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
        said.append(f"It rests on {'; '.join(found[:_MOST])}{more}.")
    if nexus:
        said.append(f"What it concerns: {', '.join(nexus)}.")
    if missing:
        said.append(f"No signal came from {', '.join(missing)}.")
    return " ".join(said)


def _match(one: MatchView) -> str:
    return f"a match in list “{one.bank}” ({one.hash_type}, distance {one.distance})"


def _reached(one: ComparisonView) -> str:
    score = "–" if one.score is None else f"{one.score:.2f}"
    return f"{one.label} {score} ≥ {one.threshold:g}"
