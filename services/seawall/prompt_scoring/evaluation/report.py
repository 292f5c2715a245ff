"""The report of an evaluation: a table in Markdown, and plots (matplotlib, of the extra ``evaluation``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seawall.core.errors import Fatal
from seawall.prompt_scoring.evaluation.measure import TARGETS, Finding, Rate, Row, named

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
    positives = [row for row in rows if row.grade == "positive"]
    if positives:
        written.append(_saved(_recall(pyplot, positives), folder / "recall.svg"))
    written.append(_saved(_threshold(pyplot, curve), folder / "threshold.svg"))
    return written


def _recall(pyplot: Any, positives: Sequence[Row]) -> Any:
    """English above, on a scale of its own: intervals of a few texts in other languages would flatten it."""
    languages = [row for row in positives if row.slice.startswith("language ")]
    panels = [panel for panel in ([row for row in positives if row not in languages], languages) if panel]
    figure, axes = pyplot.subplots(
        len(panels), figsize=(8, 1.5 + 0.28 * len(positives)), layout="constrained", squeeze=False,
        height_ratios=[len(panel) + 1 for panel in panels],
    )  # fmt: skip
    bounds = {name: target.bound for target in TARGETS if target.grade == "positive" and target.rate == "blocked"
              for name in target.slices}  # fmt: skip
    for panel, ax in zip(panels, axes[:, 0], strict=True):
        for offset, name, label in ((-0.15, "caught", "reviewed or blocked"), (0.15, "blocked", "blocked")):
            rates: list[Rate] = [getattr(row, name) for row in panel]
            errors = [
                [max(rate.value - rate.low, 0.0) for rate in rates],
                [max(rate.high - rate.value, 0.0) for rate in rates],
            ]
            places = [index + offset for index in range(len(rates))]
            ax.errorbar(
                [rate.value for rate in rates], places, xerr=errors, fmt="o", markersize=4, capsize=2, label=label
            )
        asked = [(bound, index + 0.15) for index, row in enumerate(panel) for name, bound in bounds.items()
                 if named(row.slice, name)]  # fmt: skip
        if asked:
            ax.plot(*zip(*asked, strict=True), "|", color="black", markersize=9, label="blocked: target")
        ax.set_yticks(range(len(panel)), [row.slice.replace("_", " ") for row in panel])
        lowest = min(rate.low for row in panel for rate in (row.caught, row.blocked))
        ax.set(xlim=(max(0.0, lowest - 0.03), 1.01), ylim=(len(panel) - 0.4, -0.6))
        ax.grid(axis="x", alpha=0.3)
    if languages and len(panels) > 1:
        most = max(row.detected.texts for row in languages)
        axes[1, 0].set_title(f"other languages, at most {most} texts each: no claim", fontsize="medium")
    axes[0, 0].set_title("texts that must be blocked, with 95 % intervals over templates", fontsize="medium")
    axes[0, 0].legend(loc="lower left")
    axes[-1, 0].set_xlabel("share of texts")
    return figure


def _threshold(pyplot: Any, curve: Mapping[str, Sequence[float]]) -> Any:
    """One panel a grade: what is near 1 in one is near 0 in the other."""
    panels = [(grade, title) for grade, title in (("positive", "must be blocked"), ("hard_negative", "hard negatives"))
              if grade in curve]  # fmt: skip
    figure, axes = pyplot.subplots(
        max(len(panels), 1), figsize=(8, 5), layout="constrained", sharex=True, squeeze=False
    )
    for (grade, title), ax, colour in zip(panels, axes[:, 0], ("C0", "C1"), strict=False):
        shares = curve[grade]
        ax.plot(curve["threshold"], shares, color=colour)
        if grade == "hard_negative":
            # At threshold 0 it is 1 by definition.
            ax.set_ylim(0, max(*shares[1:], 0.05) * 1.1)
            bound = next(one.bound for one in TARGETS if one.grade == grade and one.rate == "blocked")
            ax.axhline(bound, color="black", linestyle=":", linewidth=1, label=f"target: blocked at most {bound}")
            ax.legend()
        else:
            # Few grades are 1 to the last digit.
            ax.set_ylim(min(*shares[:-1], 0.9) - 0.02, 1.02)
        ax.set_title(title, fontsize="medium")
        ax.set_ylabel("share at or above it")
        ax.grid(alpha=0.3)
    axes[-1, 0].set(xlabel="threshold of the block grade", xlim=(0, 1))
    return figure


def _saved(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
