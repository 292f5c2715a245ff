"""What a scorer and a policy make of a set: rates by language, evasion and wrapper, with intervals over templates.

Texts of one template are no independent evidence, so an interval is taken over templates: they are drawn again and
again, and the spread of the rate is that of the draws (a cluster bootstrap, 95 %).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from seawall.prompt_scoring.evaluation.samples import PLAIN, Grade, Sample

_DRAWS = 1000
_SEED = 20
#: Rates of fewer templates have no interval.
_MIN_TEMPLATES = 2


class Outcome(IntEnum):
    """What becomes of a prompt. A prompt that could not be scored is never ALLOWED."""

    ALLOWED = 0
    REVIEWED = 1
    BLOCKED = 2


class Answer(NamedTuple):
    """What was said of a sample."""

    #: Terms found the concepts together, whatever the policy makes of it.
    detected: bool
    outcome: Outcome
    #: The block grade.
    score: float


Judge = Callable[[Sample], Answer]


class Rate(NamedTuple):
    """A share, and the interval that 95 % of the bootstrap's draws fall in."""

    value: float
    low: float
    high: float
    texts: int
    templates: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Row(NamedTuple):
    """The rates of one slice of a set."""

    grade: Grade
    #: "clear", or "language de", "evasion leet", "wrapper news".
    slice: str
    detected: Rate
    #: Reviewed or blocked.
    caught: Rate
    blocked: Rate


class Target(NamedTuple):
    """A bound that a rate must keep."""

    grade: Grade
    slices: tuple[str, ...]
    rate: str
    at_least: bool
    bound: float


#: What Seawall's own set must reach. A slice that ends in "*" stands for all that begin so.
TARGETS = (
    Target("positive", ("clear",), "detected", True, 0.98),
    Target("positive", ("evasion *", "wrapper *"), "detected", True, 0.95),
    Target("positive", ("clear",), "blocked", True, 0.90),
    Target("positive", ("wrapper *",), "blocked", True, 0.85),
    Target("hard_negative", ("clear",), "blocked", False, 0.03),
    Target("hard_negative", ("clear",), "caught", False, 0.30),
    Target("ordinary", ("clear",), "caught", False, 0.001),
)
#: Disguises that take apart what a text is made of: a lower bound for detection.
LENIENT = {"evasion spaced": 0.90, "evasion punctuated": 0.90, "evasion repeated": 0.90, "evasion split_prompt": 0.90}


class Finding(NamedTuple):
    """A rate against its target."""

    row: Row
    rate: str
    value: float
    at_least: bool
    bound: float

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def measure(samples: Sequence[Sample], judge: Judge) -> tuple[list[Row], list[Answer]]:
    """The rates of every slice, and the answer to each sample."""
    answers = [judge(sample) for sample in samples]
    slices: dict[tuple[Grade, str], list[int]] = {}
    for number, sample in enumerate(samples):
        for name in _slices(sample):
            slices.setdefault((sample.grade, name), []).append(number)
    order: dict[Grade, int] = {"positive": 0, "hard_negative": 1, "ordinary": 2}
    rows = []
    for grade, name in sorted(slices, key=lambda key: (order[key[0]], key[1] != "clear", key[1])):
        numbers = slices[grade, name]
        templates = [samples[number].template for number in numbers]
        chosen = [answers[number] for number in numbers]
        rows.append(
            Row(
                grade,
                name,
                rate([answer.detected for answer in chosen], templates),
                rate([answer.outcome >= Outcome.REVIEWED for answer in chosen], templates),
                rate([answer.outcome >= Outcome.BLOCKED for answer in chosen], templates),
            )
        )
    return rows, answers


def _slices(sample: Sample) -> Iterator[str]:
    """English in clear is a slice of its own: no other language has a recall claim."""
    if sample.language != "en":
        yield f"language {sample.language}"
        return
    if sample.evasion != PLAIN:
        yield f"evasion {sample.evasion}"
    if sample.wrapper != PLAIN:
        yield f"wrapper {sample.wrapper}"
    if sample.evasion == sample.wrapper == PLAIN:
        yield "clear"


def rate(values: Sequence[bool], templates: Sequence[str]) -> Rate:
    """The share of true ``values``, and its interval over ``templates`` (one a value). At least one value."""
    names, index = np.unique(np.array(templates), return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    sums = np.bincount(index, weights=np.array(values, np.float64))
    value = float(sums.sum() / counts.sum())
    if len(names) < _MIN_TEMPLATES:
        return Rate(value, 0.0, 1.0, len(values), len(names))
    random = np.random.default_rng(_SEED)
    draws = np.empty(_DRAWS)
    for number in range(_DRAWS):
        drawn = random.integers(0, len(names), len(names))
        draws[number] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(draws, [0.025, 0.975])
    return Rate(value, float(low), float(high), len(values), len(names))


def against_targets(rows: Sequence[Row]) -> list[Finding]:
    """Every rate that has a target."""
    findings = []
    for target in TARGETS:
        for row in rows:
            if row.grade == target.grade and any(named(row.slice, name) for name in target.slices):
                bound = LENIENT.get(row.slice, target.bound) if target.rate == "detected" else target.bound
                value = getattr(row, target.rate).value
                findings.append(Finding(row, target.rate, value, target.at_least, bound))
    return findings


def named(name: str, pattern: str) -> bool:
    """Whether a target's slice stands for the slice ``name``."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def curve(samples: Sequence[Sample], answers: Sequence[Answer], steps: int = 101) -> Mapping[str, list[float]]:
    """For a plot: at each threshold of the block grade, the share of English samples at or above it, by grade."""
    limits = [step / (steps - 1) for step in range(steps)]
    found: dict[str, list[float]] = {"threshold": limits}
    for grade in ("positive", "hard_negative"):
        scores = np.array(
            [
                answer.score
                for sample, answer in zip(samples, answers, strict=True)
                if sample.grade == grade and sample.language == "en"
            ]
        )
        if len(scores):
            found[grade] = [float((scores >= limit).mean()) for limit in limits]
    return found
