"""Which block grades a policy should block from: a fixed rule over texts whose templates the head did not see. Pure.

Of all pairs of thresholds, in steps of 0.01, at which no more than ``HARD_NEGATIVES`` of the hard negatives in clear
are blocked: the pair that blocks most positives, texts in clear and each wrapper counting the same; of those that block
as many, the smallest. Whether positives then keep ``CLEAR`` and ``WRAPPED`` is told, and decides nothing: a head that
does not keep them needs better texts or features, not other thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seawall.core.errors import Fatal
from seawall.prompt_scoring.block_head import Thresholds
from seawall.prompt_scoring.evaluation.samples import PLAIN, Sample
from seawall.prompt_scoring.term_packs import Concept

#: The largest share of hard negatives in clear, and the smallest of positives in clear and in every wrapper. Stricter
#: than the targets (``measure.TARGETS``): templates of another hand are harder than those held out of one's own.
HARD_NEGATIVES, CLEAR, WRAPPED = 0.015, 0.92, 0.88
_STEPS = 100
_CLEAR = "clear"


class HeldOut(NamedTuple):
    """A text and what is known of it without its template."""

    sample: Sample
    concepts: Set[Concept]
    #: The block grade by a head that saw no text of its template; 0 without a pair.
    score: float


class Choice(NamedTuple):
    """The thresholds, and the shares that are blocked at them."""

    thresholds: Thresholds
    hard_negatives: float
    #: "clear" and the wrappers → share of positives.
    positives: dict[str, float]

    @property
    def keeps(self) -> bool:
        """Positives keep their shares too."""
        return all(share >= (CLEAR if name == _CLEAR else WRAPPED) for name, share in self.positives.items())

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in self.positives.items())
        return (
            f"block from {self.thresholds.block:.2f}, among benign words from {self.thresholds.block_sure:.2f}: blocks "
            f"{self.hard_negatives:.4f} of the hard negatives and of the positives {shares}"
            + ("" if self.keeps else f" (too few: {CLEAR} in clear and {WRAPPED} in each wrapper are asked for)")
        )


def choose(held_out: Sequence[HeldOut]) -> Choice:
    """The thresholds by the rule above, for the default policy.

    Raises:
        Fatal: ``BAD_EVALUATION_SET`` without texts of both grades in clear.
    """
    groups: dict[str, list[int]] = {}
    negatives = []
    for number, one in enumerate(held_out):
        sample = one.sample
        if sample.evasion != PLAIN:
            continue
        if sample.grade == "positive":
            groups.setdefault(_CLEAR if sample.wrapper == PLAIN else sample.wrapper, []).append(number)
        elif sample.wrapper == PLAIN:
            negatives.append(number)
    if not negatives or _CLEAR not in groups:
        raise Fatal("BAD_EVALUATION_SET", "thresholds need positives and hard negatives in clear")
    scores = np.array([one.score for one in held_out])
    softened = np.array([_softened(one.concepts) for one in held_out])
    anyway = np.array([_blocked_anyway(one.concepts) for one in held_out])
    found: list[Choice] = []
    for block in range(1, _STEPS):
        for sure in range(block, _STEPS):
            thresholds = Thresholds(block=block / _STEPS, block_sure=sure / _STEPS)
            blocked = anyway | (scores >= np.where(softened, thresholds.block_sure, thresholds.block))
            if (share := _share(blocked, negatives)) <= HARD_NEGATIVES:
                found.append(
                    Choice(thresholds, share, {name: _share(blocked, groups[name]) for name in sorted(groups)})
                )
    if not found:
        raise Fatal("BAD_EVALUATION_SET", "at every threshold too many hard negatives are blocked")
    # max() keeps the first of equals, and they come smallest first.
    return max(found, key=lambda choice: sum(choice.positives.values()))


def _share(blocked: NDArray[np.bool_], numbers: Sequence[int]) -> float:
    return float(blocked[numbers].mean())


def _softened(concepts: Set[Concept]) -> bool:
    """Benign words ask for the second threshold, but for a request to undress: rule undress-minor-reference."""
    return "benign_context" in concepts and not _undresses(concepts)


def _blocked_anyway(concepts: Set[Concept]) -> bool:
    """Rule undress-real-person asks for no grade."""
    return _undresses(concepts) and "real_person_photo" in concepts


def _undresses(concepts: Set[Concept]) -> bool:
    return not concepts.isdisjoint(("undressing_request", "negated_clothing"))
