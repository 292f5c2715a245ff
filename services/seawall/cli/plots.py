"""Draws where two versions' scores lie to each other: in the terminal, and as an SVG file."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from seawall.classification.comparison import GRID, Comparison, LabelComparison

_SHADES = " ░▒▓█"
_CELL = 14
_MARGIN = 56


def terminal(one: LabelComparison) -> str:
    """A label's pairs as a grid of shades: A to the right, B upwards; lines where the threshold is."""
    most = max(one.grid.values())
    cut = min(int(one.threshold * GRID), GRID - 1)
    rows = [f"  {one.label}: B upwards, A to the right; darker is more pairs, up to {most} in a cell"]
    for b in reversed(range(GRID)):
        cells = []
        for a in range(GRID):
            if a == cut:
                cells.append("│")
            cells.append(_shade(one.grid[a, b], most) * 2)
        rows.append(f"  {(b + 1) / GRID:4.2f} ┤{''.join(cells)}")
        if b == cut:
            rows.append(f"  {one.threshold:4.2f} ┼{'──' * cut}┼{'──' * (GRID - cut)} threshold")
    rows.append(f"   0 └{'─' * (2 * GRID + 1)} 1")
    return "\n".join(rows)


def _shade(count: int, most: int) -> str:
    if not count:
        return _SHADES[0]
    # By the logarithm: nearly all pairs are near 0, and those elsewhere are what one looks for.
    share = math.log1p(count) / math.log1p(most)
    return _SHADES[min(len(_SHADES) - 1, 1 + int(share * (len(_SHADES) - 1)))]


def svg(found: Comparison) -> str:
    """Every label's grid, one below the other, as an SVG document."""
    labels = sorted((one for one in found.labels.values() if one.pairs), key=lambda one: one.label)
    side = GRID * _CELL
    height = (side + 2 * _MARGIN) * max(len(labels), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side + 2 * _MARGIN}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, one in enumerate(labels):
        parts += _panel(one, found, number * (side + 2 * _MARGIN) + _MARGIN, side)
    if not labels:
        parts.append(f'<text x="{_MARGIN}" y="{_MARGIN}">no item was scored by both</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(one: LabelComparison, found: Comparison, top: int, side: int) -> list[str]:
    most = max(one.grid.values())
    left, bottom = _MARGIN, top + side
    title = f"{one.label}: {one.pairs} pairs, {one.agreed / one.pairs:.2%} agree"
    parts = [f'<text x="{left}" y="{top - 10}" font-weight="bold">{escape(title)}</text>']
    for (a, b), count in sorted(one.grid.items()):
        opacity = math.log1p(count) / math.log1p(most)
        x, y = left + a * _CELL, bottom - (b + 1) * _CELL
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="#1f4e79" fill-opacity="{opacity:.3f}">'
            f"<title>{count}</title></rect>"
        )
    at = one.threshold * side
    return [
        *parts,
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#888"/>',
        f'<line x1="{left}" y1="{bottom}" x2="{left + side}" y2="{top}" stroke="#bbb" stroke-dasharray="3"/>',
        f'<line x1="{left + at}" y1="{top}" x2="{left + at}" y2="{bottom}" stroke="#c0392b"/>',
        f'<line x1="{left}" y1="{bottom - at}" x2="{left + side}" y2="{bottom - at}" stroke="#c0392b"/>',
        f'<text x="{left}" y="{bottom + 16}">0</text><text x="{left + side - 8}" y="{bottom + 16}">1</text>',
        f'<text x="{left + 24}" y="{bottom + 16}">A {escape(found.a)}</text>',
        f'<text transform="translate({left - 8} {bottom}) rotate(-90)">B {escape(found.b)}</text>',
    ]
