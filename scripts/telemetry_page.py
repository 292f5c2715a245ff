"""Writes the tables of docs/telemetry.md from the catalogue; --check only compares, and fails if they differ."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from seawall.runtime.events import EVENTS
from seawall.runtime.metrics import ATTRIBUTES, METRICS, SPANS
from seawall.runtime.prometheus import scraped

PAGE = Path(__file__).resolve().parents[1] / "docs" / "telemetry.md"
BEGIN = "<!-- From here on written by scripts/telemetry_page.py from the catalogue: change that. -->"


def generated() -> str:
    """The tables."""
    spans = [(f"`{one.name}`", one.kind, one.meaning) for one in SPANS]
    metrics = [
        (f"`{name}`<br>`{scraped(name)}`", one.kind, one.unit, one.meaning) for name, one in sorted(METRICS.items())
    ]
    attributes = [(f"`{name}`", one.meaning) for name, one in sorted(ATTRIBUTES.items())]
    events = [(f"`{name}`", one.level.value, one.meaning) for name, one in EVENTS.items()]
    parts = [
        BEGIN,
        "## Spans",
        _table(("name", "kind", "what it covers"), spans),
        "## Metrics",
        "Below each name the one under which Prometheus has it.",
        _table(("name", "kind", "unit", "what it says"), metrics),
        "## Attributes",
        _table(("name", "what it says"), attributes),
        "## Events",
        "Attribute `moderation.event` of `moderation.stream.events`, and `event` of the log line.",
        _table(("event", "", "what it says"), events),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def page(before: str) -> str:
    """The page with its tables as the catalogue has them; what a person wrote above them stays."""
    written, marker, _ = before.partition(BEGIN)
    if not marker:
        raise SystemExit(f"{PAGE.name} has lost the line that begins its tables: {BEGIN}")
    return written + generated()


def main() -> int:
    """Write or compare."""
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("docs/telemetry.md does not say what the catalogue says: run scripts/telemetry_page.py, and commit")
            return 1
        return 0
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
