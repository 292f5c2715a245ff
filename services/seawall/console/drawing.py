"""Pictures as SVG, drawn here: no script, no inline style; colours come from the style sheet by class.

Each takes plain numbers and gives markup that says in words, to whoever cannot see it, what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup, escape

from seawall.console.shapes import StageView

_SPARK: Final = (240, 40)
_MIX: Final = (1000, 14)
_BAR: Final = (220, 16)
_FALL_WIDTH: Final = 1000
_FALL_LEFT: Final = 170
_ROW: Final = 26
#: Gridlines of a waterfall, at most.
_TICKS: Final = 6


def sparkline(values: Sequence[float | None], label: str, *, limit: float | None = None, colour: str = "") -> Markup:
    """A line of values, oldest first, from 0 up; where a value is None it is interrupted. ``limit``: a line to stay
    below, drawn where it is in the picture's range. ``colour``: a class of the style sheet."""
    width, height = _SPARK
    top = max([value for value in values if value is not None] or [0.0])
    top = max(top, limit if limit is not None and limit <= top * 4 else 0.0) or 1.0
    step = width / max(len(values) - 1, 1)

    def at(number: int, value: float) -> str:
        return f"{number * step:.1f},{height - 3 - value / top * (height - 6):.1f}"

    runs: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(at(number, value))
    parts = []
    for run in filter(None, runs):
        first, last = (point.partition(",")[0] for point in (run[0], run[-1]))
        parts.append(f'<polygon class="area" points="{first},{height} {" ".join(run)} {last},{height}"/>')
        parts.append(f'<polyline class="line" points="{" ".join(run)}"/>')
        if len(run) == 1:
            parts.append(f'<circle class="dot" cx="{first}" cy="{run[0].partition(",")[2]}" r="1.5"/>')
    if limit is not None and limit <= top:
        y = height - 3 - limit / top * (height - 6)
        parts.append(f'<line class="limit" x1="0" x2="{width}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return _svg(f"spark {colour}".strip(), width, height, label, parts, stretch=True)


def mix(shares: Sequence[tuple[str, float]], label: str) -> Markup:
    """One bar in parts: (outcome, share)."""
    width, height = _MIX
    parts, x = [], 0.0
    for outcome, share in shares:
        if share > 0:
            wide = max(share * width, 2.0)
            parts.append(f'<rect class="o-{escape(outcome)}" x="{x:.1f}" y="0" width="{wide:.1f}" height="{height}"/>')
            x += wide
    return _svg("mix", width, height, label, parts, stretch=True)


def score_bar(score: float | None, threshold: float, *, reached: bool, label: str) -> Markup:
    """A score from 0 to 1 as a bar, with its threshold's tick."""
    width, height = _BAR
    tick = min(max(threshold, 0.0), 1.0) * width
    parts = [f'<rect class="track" x="0" y="4" width="{width}" height="8" rx="2"/>']
    if score is not None and score > 0:
        wide = max(min(score, 1.0) * width, 1.5)
        parts.append(
            f'<rect class="{"reached" if reached else "score"}" x="0" y="4" width="{wide:.1f}" height="8" rx="2"/>'
        )
    parts.append(f'<rect class="tick" x="{min(tick, width - 2):.1f}" y="0" width="2" height="{height}"/>')
    return _svg("scorebar", width, height, label, parts)


def waterfall(stages: Sequence[StageView], total_ms: float) -> Markup:
    """Every stage's time on one axis, from the generation's record to the decision."""
    longest = max([total_ms, *(span.end_ms for stage in stages for span in stage.spans)], default=0.0) or 1.0
    height = _ROW * (len(stages) + 1)
    scale = (_FALL_WIDTH - _FALL_LEFT - 10) / longest
    parts = []
    for tick in _ticks(longest):
        x = _FALL_LEFT + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20}"/>')
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{height - 6}" text-anchor="middle">{_axis(tick, longest)}</text>'
        )
    for number, stage in enumerate(stages):
        y = number * _ROW
        parts.append(f'<text class="stage" x="0" y="{y + 17}">{escape(stage.stage)}</text>')
        for span in stage.spans:
            x, wide = _FALL_LEFT + span.start_ms * scale, max((span.end_ms - span.start_ms) * scale, 1.0)
            took = f"{stage.stage}: {span.hop} {span.end_ms - span.start_ms:.1f} ms"
            parts.append(
                f'<rect class="h-{escape(span.hop)}" x="{x:.1f}" y="{y + 5}" width="{wide:.1f}" height="16">'
                f"<title>{escape(took)}</title></rect>"
            )
    told = "; ".join(
        f"{stage.stage}: " + ", ".join(f"{span.hop} {span.end_ms - span.start_ms:.1f} ms" for span in stage.spans)
        for stage in stages
    )
    return _svg("fall", _FALL_WIDTH, height, f"Where {total_ms:.1f} ms went. {told}", parts)


def _axis(tick: float, longest: float) -> str:
    return f"{tick / 1000:g} s" if longest >= 5_000 else f"{tick:g} ms"


def _ticks(longest: float) -> list[float]:
    """Round numbers from 0 up, _TICKS at most."""
    power = 10.0 ** math.floor(math.log10(longest))
    step = next(power * factor for factor in (0.2, 0.25, 0.5, 1, 2, 2.5, 5) if longest / (power * factor) < _TICKS)
    return [number * step for number in range(int(longest / step) + 1)]


def _svg(name: str, width: int, height: int, label: str, parts: Sequence[str], *, stretch: bool = False) -> Markup:
    fit = ' preserveAspectRatio="none"' if stretch else ""
    return Markup(  # noqa: S704  every text in it was escaped
        f'<svg class="{name}" viewBox="0 0 {width} {height}"{fit} role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
