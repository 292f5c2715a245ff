from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seawall.classification.drift import ScoreWatch, reference_of, stability_index
from seawall.runtime.model_card import Reference

EVEN = Reference(edges=(0.25, 0.5, 0.75), shares=(0.25, 0.25, 0.25, 0.25))


def test_the_index_is_the_textbooks() -> None:
    assert stability_index(EVEN.shares, [10, 10, 10, 10]) == 0
    # (.4 - .25) ln(.4 / .25) + (.1 - .25) ln(.1 / .25), the other two unchanged
    expected = 0.15 * math.log(1.6) - 0.15 * math.log(0.4)
    assert stability_index(EVEN.shares, [40, 10, 25, 25]) == pytest.approx(expected)


def test_an_empty_bin_is_far_and_finite() -> None:
    index = stability_index(EVEN.shares, [100, 0, 0, 0])
    assert 0.25 < index < 20


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=300))
def test_a_sample_is_its_own_reference(ten_thousandths: list[int]) -> None:
    scores = [value / 10_000 for value in ten_thousandths]
    reference = reference_of(scores)
    watch = ScoreWatch("m@1", "label", reference, len(scores))
    for score in scores:
        watch(score)
    assert watch.index < 0.001


def test_another_population_shows_and_the_same_does_not() -> None:
    random = np.random.default_rng(3)
    reference = reference_of(list(random.beta(1, 20, 5_000)))
    watch = ScoreWatch("m@1", "label", reference, 2_000)
    for score in random.beta(1, 20, 1_999):
        watch(score)
    assert math.isnan(watch.index)
    watch(0.01)
    assert watch.index < 0.1
    for score in random.beta(2, 8, 2_000):
        watch(score)
    assert watch.index > 0.25


def test_a_label_without_a_reference_has_no_index() -> None:
    watch = ScoreWatch("m@1", "label", None, 1)
    watch(0.5)
    assert math.isnan(watch.index)


def test_no_scores_are_no_reference() -> None:
    with pytest.raises(ValueError, match="no scores"):
        reference_of([])


@pytest.mark.parametrize(
    ("edges", "shares", "says"),
    [
        ((0.5,), (1.0,), "at least 2"),
        ((0.5, 0.6), (0.5, 0.5), "one value more"),
        ((0.6, 0.5), (0.3, 0.3, 0.4), "ascend"),
        ((0.5,), (0.3, 0.3), "add up"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(
    edges: tuple[float, ...], shares: tuple[float, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Reference(edges=edges, shares=shares)
