"""The report of an evaluation: a table in Markdown, and plots (matplotlib, of the extra ``evaluation``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seawall.core.errors import Fatal
from seawall.prompt_scoring.evaluation.measure import Finding, Rate, Row

_TITLES = {"positive": "Must be blocked", "hard_negative": "Hard negatives", "ordinary": "Ordinary prompts"}


def table(rows: Sequence[Row]) -> str:
    """Every slice, as one Markdown table a grade."""
    parts = []
    for grade, title in _TITLES.items():
        chosen = [row for row in rows if row.grade == grade]
        if not chosen:
            continue
        parts += [f"### {title}", "", "| | texts | templates | detected | reviewed or blocked | blocked |"]
        parts.append("|---|---|---|---|---|---|")
        for row in chosen:
            rates = " | ".join(str(rate) for rate in (row.detected, row.caught, row.blocked))
            parts.append(f"| {row.slice} | {row.detected.texts} | {row.detected.templates} | {rates} |")
        parts.append("")
    return "\n".join(parts)


def targets(findings: Sequence[Finding]) -> str:
    """Every rate that has a target, with its bound, as a Markdown table; missed ones say so."""
    parts = ["| what | measured | target | |", "|---|---|---|---|"]
    for one in findings:
        sign = "≥" if one.at_least else "≤"
        verdict = "met" if one.met else "**missed**"
        name = f"{_TITLES[one.row.grade].lower()}, {one.row.slice}: {_words(one.rate)}"
        parts.append(f"| {name} | {one.value:.4f} | {sign} {one.bound} | {verdict} |")
    return "\n".join(parts)


def _words(rate: str) -> str:
    return "reviewed or blocked" if rate == "caught" else rate


def document(rows: Sequence[Row], findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as plain JSON types."""

    def rate(found: Rate) -> dict[str, float]:
        return {"value": round(found.value, 5), "low": round(found.low, 5), "high": round(found.high, 5)}

    return {
        "rows": [
            {
                "grade": row.grade,
                "slice": row.slice,
                "texts": row.detected.texts,
                "templates": row.detected.templates,
                "detected": rate(row.detected),
                "reviewed_or_blocked": rate(row.caught),
                "blocked": rate(row.blocked),
            }
            for row in rows
        ],
        "targets": [
            {
                "grade": one.row.grade,
                "slice": one.row.slice,
                "rate": one.rate,
                "value": round(one.value, 5),
                "op": ">=" if one.at_least else "<=",
                "bound": one.bound,
                "met": one.met,
            }
            for one in findings
        ],
    }


def plot(rows: Sequence[Row], curve: Mapping[str, Sequence[float]], folder: Path) -> list[Path]:
    """Write ``recall.svg`` (the rates of every slice of positives) and ``threshold.svg`` (``measure.curve``).

    Raises:
        Fatal: ``EXTRA_MISSING`` without matplotlib.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise Fatal("EXTRA_MISSING", "plots need matplotlib: pip install 'seawall[evaluation]'") from error
    matplotlib.use("svg")
    # The same figures are the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "seawall"
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    chosen = [row for row in rows if row.grade == "positive"][::-1]
    if chosen:
        figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.28 * len(chosen)), layout="constrained")
        for offset, name, label in ((0.15, "caught", "reviewed or blocked"), (-0.15, "blocked", "blocked")):
            rates: list[Rate] = [getattr(row, name) for row in chosen]
            errors = [[rate.value - rate.low for rate in rates], [rate.high - rate.value for rate in rates]]
            places = [index + offset for index in range(len(rates))]
            axes.errorbar(
                [rate.value for rate in rates], places, xerr=[[max(e, 0.0) for e in side] for side in errors],
                fmt="o", markersize=4, capsize=2, label=label,
            )  # fmt: skip
        axes.set_yticks(range(len(chosen)), [row.slice for row in chosen])
        axes.set(xlabel="share of texts that must be blocked", xlim=(0, 1.02))
        axes.grid(axis="x", alpha=0.3)
        axes.legend(loc="lower left")
        written.append(_saved(figure, folder / "recall.svg"))
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for grade, label in (("positive", "must be blocked"), ("hard_negative", "hard negatives")):
        if grade in curve:
            axes.plot(curve["threshold"], curve[grade], label=label)
    axes.set(xlabel="threshold of the block grade", ylabel="share at or above it", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    written.append(_saved(figure, folder / "threshold.svg"))
    return written


def _saved(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
