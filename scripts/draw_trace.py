"""Draws one trace as docs/images/trace-tree.svg shows it: scripts/draw_trace.py TRACE_ID FOLDER > picture.svg

FOLDER holds what rooms wrote as telemetry.spans_file (<room>.spans.jsonl); below `seawall up` it is $SEAWALL_HOME/logs.
With --zipkin it prints the spans as Zipkin's JSON instead, to be posted to a server's /api/v2/spans.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

_ROW, _LEFT, _WIDTH, _TOP, _RIGHT = 24, 300, 620, 58, 90
#: By the first word of a span's name, as `seawall why` colours its hops.
_COLOURS = {
    "decide": "#6b7280",
    "measure": "#94a3b8",
    "queue": "#d9a514",
    "batch": "#b45cc4",
    "call": "#3b76d4",
    "infer": "#2f9e57",
    "join": "#1b98a6",
}
_STYLE = (
    "text{font:12px ui-monospace,monospace;fill:#1f2937}.dim{fill:#5b6470}.title{font-weight:600}"
    ".rule{stroke:#d4d8de}.back{fill:#fff}"
    "@media (prefers-color-scheme: dark){text{fill:#e5e7eb}.dim{fill:#9aa3af}.rule{stroke:#3a404a}.back{fill:#0f1318}}"
)

Span = dict[str, Any]


class Row(NamedTuple):
    """A span and how deep it hangs."""

    depth: int
    span: Span


def tree(spans: list[Span]) -> Iterator[Row]:
    """Depth first, in order of time; what hangs below no span of the trace is a root."""
    ids = {span["span_id"] for span in spans}
    below: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda one: (one["start_unix_nano"], -one["end_unix_nano"])):
        parent = span["parent_span_id"]
        below.setdefault(parent if parent in ids else "", []).append(span)

    def walk(parent: str, depth: int) -> Iterator[Row]:
        for span in below.get(parent, ()):
            yield Row(depth, span)
            yield from walk(span["span_id"], depth + 1)

    return walk("", 0)


def draw(rows: list[Row]) -> str:
    """The picture."""
    first = min(row.span["start_unix_nano"] for row in rows)
    last = max(row.span["end_unix_nano"] for row in rows)
    scale = _WIDTH / max(last - first, 1)
    height = _TOP + _ROW * len(rows) + 16
    root = rows[0].span["attributes"]
    title = f"{root.get('moderation.outcome', '').removeprefix('OUTCOME_')} by {root.get('moderation.rule', '')}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" role="img">',
        f"<title>Span tree of a generation: {escape(title)}</title><style>{_STYLE}</style>",
        '<rect class="back" width="100%" height="100%"/>',
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="dim" x="12" y="42">trace {escape(rows[0].span["trace_id"])}</text>',
    ]
    for tick in range(5):
        x, millis = _LEFT + _WIDTH * tick / 4, (last - first) * tick / 4 / 1e6
        parts.append(f'<line class="rule" x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 10}"/>')
        parts.append(f'<text class="dim" x="{x + 3:.1f}" y="{_TOP - 10}">{millis:.1f} ms</text>')
    for number, (depth, span) in enumerate(rows):
        y = _TOP + _ROW * number
        x = _LEFT + (span["start_unix_nano"] - first) * scale
        width = max((span["end_unix_nano"] - span["start_unix_nano"]) * scale, 1.5)
        took = (span["end_unix_nano"] - span["start_unix_nano"]) / 1e6
        colour = _COLOURS.get(span["name"].split()[0], "#6b7280")
        parts.append(f'<text x="{12 + 16 * depth}" y="{y + 15}">{escape(span["name"])}</text>')
        parts.append(f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="14" rx="2" fill="{colour}"/>')
        parts.append(f'<text class="dim" x="{x + width + 5:.1f}" y="{y + 15}">{took:.1f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def zipkin(span: Span) -> dict[str, Any]:
    """A span as Zipkin's API takes it. It knows no INTERNAL kind, and counts in microseconds."""
    kind = {"kind": span["kind"]} if span["kind"] != "INTERNAL" else {}
    parent = {"parentId": span["parent_span_id"]} if span["parent_span_id"] else {}
    return {
        "traceId": span["trace_id"],
        "id": span["span_id"],
        "name": span["name"],
        "timestamp": span["start_unix_nano"] // 1000,
        "duration": max((span["end_unix_nano"] - span["start_unix_nano"]) // 1000, 1),
        "localEndpoint": {"serviceName": span["service.name"]},
        "tags": {name: str(value) for name, value in span["attributes"].items()},
        **kind,
        **parent,
    }


def main() -> int:
    """Read, draw, print."""
    trace_id, folder = sys.argv[1], Path(sys.argv[2])
    lines = (line for path in sorted(folder.glob("*.spans.jsonl")) for line in path.open(encoding="utf-8"))
    spans = [span for line in lines if trace_id in line and (span := json.loads(line))["trace_id"] == trace_id]
    if not spans:
        print(f"no span of trace {trace_id} in {folder}", file=sys.stderr)
        return 1
    if "--zipkin" in sys.argv[3:]:
        print(json.dumps([zipkin(span) for span in spans]))
    else:
        print(draw(list(tree(spans))), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
