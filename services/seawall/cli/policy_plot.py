"""The plot of a replay: outcomes side by side, and where they moved. Needs the extra `replay` (matplotlib)."""

from __future__ import annotations

from pathlib import Path

from seawall.aggregator.replay.tally import OUTCOMES, Tally, outcome_name
from seawall.core.errors import Fatal

_SUFFIXES = (".png", ".svg", ".pdf")


def write(tally: Tally, path: Path) -> None:
    """Write the plot. Raises Fatal if matplotlib is not installed, or the path cannot be written."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise Fatal("EXTRA_MISSING", "--plot needs the package matplotlib: pip install 'seawall[replay]'") from error
    if path.suffix not in _SUFFIXES:
        raise Fatal("BAD_PLOT", f"{path}: end the name in one of {', '.join(_SUFFIXES)}")
    names = [outcome_name(outcome) for outcome in OUTCOMES]
    two = len(tally.names) == 2
    figure = Figure(figsize=(11 if two else 6, 4.5), layout="constrained")
    bars = figure.add_subplot(1, 2 if two else 1, 1)
    width = 0.8 / len(tally.names)
    for side, name in enumerate(tally.names):
        counts = tally.by_outcome(side)
        role = f"{'candidate' if side else 'base'}: {name}" if two else name
        places = [number + side * width for number in range(len(names))]
        drawn = bars.bar(places, [counts.get(one, 0) for one in names], width, label=role)
        bars.bar_label(drawn, fmt="{:,.0f}", fontsize=7)
    bars.set_yscale("symlog")
    # Room above the highest for its count and for the legend.
    bars.set_ylim(0, 20 * max(tally.total, 1))
    bars.set_ylabel("attempts")
    bars.set_xticks([number + width * (len(tally.names) - 1) / 2 for number in range(len(names))], _short(names))
    bars.legend(loc="upper right")
    if two:
        grid = figure.add_subplot(1, 2, 2)
        confusion = tally.confusion()
        table = [[confusion.get(row, {}).get(column, 0) for column in names] for row in names]
        shades = [[(count > 0) + (count > 0 and a != b) for b, count in enumerate(row)] for a, row in enumerate(table)]
        grid.imshow(shades, cmap="YlOrRd", vmin=0, vmax=3)
        for a, row in enumerate(table):
            for b, count in enumerate(row):
                grid.text(b, a, f"{count:,}" if count else "·", ha="center", va="center")
        grid.set_xticks(range(len(names)), _short(names))
        grid.set_yticks(range(len(names)), _short(names))
        grid.set_xlabel("candidate")
        grid.set_ylabel("base")
        grid.set_title(f"{tally.changed:,} of {tally.total:,} outcomes would change")
    try:
        figure.savefig(path)
    except OSError as error:
        raise Fatal("UNWRITABLE_FILE", f"{path}: {error.strerror}: give a path that can be written") from error


def _short(names: list[str]) -> list[str]:
    return [name.replace("BLOCK_AND_REPORT", "BLOCK\n& REPORT") for name in names]
