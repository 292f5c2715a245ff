"""Fits the block grade's head on labelled texts, and calibrates it on texts whose templates it was not fitted on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from seawall.core.errors import Fatal
from seawall.prompt_scoring.block_head import Calibration, HeadFile, features, sigmoid
from seawall.prompt_scoring.detection import detect
from seawall.prompt_scoring.encoder import Encoder
from seawall.prompt_scoring.evaluation import samples, thresholds
from seawall.prompt_scoring.evaluation.samples import Sample
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.term_packs import Concept
from seawall.prompt_scoring.term_set import TermSet
from seawall.prompt_scoring.windows import Window
from seawall.runtime.model_card import MODEL_FILE
from seawall.runtime.model_pack import ModelPack

_LANGUAGES = ("en",)
#: What the head is fitted on: disguises that leave words as they are would only repeat them.
_DISGUISES = frozenset((samples.PLAIN, "spaced", "split_prompt"))
_FOLDS = 5
_L2 = 0.005
#: How much the data count against the L2 term, and a hard negative against a positive: by held-out rates (ADR 42).
_POSITIVES, _NEGATIVES = 200.0, 400.0
_DECIMALS = 4
_TOO_FEW = "the set holds too few texts of both grades to fit a head on"

Array = NDArray[np.float64]


class _Rows(NamedTuple):
    """One row a window."""

    features: Array
    #: 1: of a positive.
    positive: Array
    #: Rows of a template weigh one together, and the grades as _POSITIVES and _NEGATIVES say.
    weights: Array
    fold: NDArray[np.int64]
    #: The sample's number; -1 for a text that has no pair and stands for itself.
    sample: NDArray[np.int64]
    #: `Window.bare`
    bare: NDArray[np.bool_]
    #: Of each sample.
    concepts: Sequence[frozenset[Concept]]


class Fitted(NamedTuple):
    """A head, and the thresholds that are written in it."""

    head: HeadFile
    choice: thresholds.Choice


def fit(
    chosen: Sequence[Sample], terms: TermSet, encoder: Encoder, pack: ModelPack, settings: PromptScoringSettings,
    version: str,
) -> Fitted:  # fmt: skip
    """A head fitted on the English texts of ``chosen`` in which terms find a pair.

    Its calibration and thresholds come from margins of templates that were held out in turn.

    Hard negatives without a pair are fitted as a whole, so that the head knows more innocent texts than terms find.

    Raises:
        Fatal: ``BAD_EVALUATION_SET`` when there is too little to fit.
    """
    used = [
        sample for sample in chosen
        if sample.language in _LANGUAGES and sample.grade != "ordinary" and sample.evasion in _DISGUISES
    ]  # fmt: skip
    rows = _rows(used, terms, encoder, settings)
    if min(rows.positive.sum(), (1 - rows.positive).sum()) < _FOLDS:
        raise Fatal("BAD_EVALUATION_SET", _TOO_FEW)
    margins = np.zeros(len(rows.fold))
    for fold in range(_FOLDS):
        out = rows.fold == fold
        weights, bias = _regression(rows.features[~out], rows.positive[~out], rows.weights[~out])
        margins[out] = rows.features[out] @ weights + bias
    calibration = _platt(rows, margins)
    bare = _bare(used, rows)
    choice = thresholds.choose(_held_out(used, rows, margins, calibration, bare))
    weights, bias = _regression(rows.features, rows.positive, rows.weights)
    head = HeadFile(
        version=version,
        licence="Apache-2.0",
        intended_use=(
            "The block grade of English windows in clinical wording. Fitted on templates, not on offenders' own words: "
            "a default to start from. Evaluate it on texts of your own."
        ),
        languages=_LANGUAGES,
        encoder_model_sha256=pack.card.files[MODEL_FILE],
        train_set_sha256=samples.digest(chosen),
        train_templates=dict(sorted(Counter(grade for grade, _ in {(s.grade, s.template) for s in used}).items())),
        features=2,
        calibration=calibration,
        bare=bare,
        thresholds=choice.thresholds,
        bias=round(bias, _DECIMALS),
        weights=tuple(round(float(weight), _DECIMALS) for weight in weights),
    )
    return Fitted(head, choice)


def _held_out(
    used: Sequence[Sample], rows: _Rows, margins: Array, calibration: Calibration, bare: float
) -> list[thresholds.HeldOut]:
    """Each sample with the highest grade of its windows."""
    best = [0.0] * len(used)
    for number, margin, is_bare in zip(rows.sample, margins, rows.bare, strict=True):
        if number >= 0:
            grade = sigmoid(calibration.slope * float(margin) + calibration.offset)
            best[number] = max(best[number], grade, bare if is_bare else 0.0)
    return [thresholds.HeldOut(*one) for one in zip(used, rows.concepts, best, strict=True)]


def _bare(used: Sequence[Sample], rows: _Rows) -> float:
    """How surely a bare request is one, both grades weighing the same.

    Of each grade the share of templates that have one, one more of either kind counted in. A regression would follow
    the words, which are those of texts about such requests, since bare ones are few.
    """
    shares = []
    for grade in ("positive", "hard_negative"):
        paired = {used[number].template: False for number in rows.sample if number >= 0 and used[number].grade == grade}
        for number in rows.sample[rows.bare]:
            if used[number].grade == grade:
                paired[used[number].template] = True
        shares.append((sum(paired.values()) + 1) / (len(paired) + 2))
    return round(shares[0] / sum(shares), _DECIMALS)


def _rows(used: Sequence[Sample], terms: TermSet, encoder: Encoder, settings: PromptScoringSettings) -> _Rows:
    found: list[tuple[Array, bool, str, int, bool]] = []
    concepts = []
    for number, sample in enumerate(used):
        detection = detect(
            sample.text, sample.negative, terms, around=settings.around_words, max_pairs=settings.max_pairs
        )
        concepts.append(frozenset(detection.concepts))
        # As many as the service scores.
        read = detection.windows[: 4 * settings.max_pairs]
        windows = [window for window in read if window.language in _LANGUAGES]
        positive = sample.grade == "positive"
        found += [(features(encoder, window), positive, sample.template, number, window.bare) for window in windows]
        if not windows and not positive:
            found.append((features(encoder, _whole(sample.text)), False, sample.template, -1, False))
    if not found:
        raise Fatal("BAD_EVALUATION_SET", _TOO_FEW)
    vectors, positives, templates, numbers, bare = zip(*found, strict=True)
    of_template = Counter(templates)
    label = np.array(positives, np.float64)
    weights = np.array([1 / of_template[template] for template in templates])
    for grade, total in ((0.0, _NEGATIVES), (1.0, _POSITIVES)):
        weights[label == grade] *= total / max(weights[label == grade].sum(), 1e-9)
    return _Rows(
        np.array(vectors),
        label,
        weights,
        np.array([_fold(template) for template in templates]),
        np.array(numbers),
        np.array(bare, np.bool_),
        concepts,
    )


def _whole(text: str) -> Window:
    return Window(text, text, "en", 0, "sexual_context", minor_last=False, apart=False, frame=text)


def _fold(template: str) -> int:
    return hashlib.sha256(template.encode()).digest()[0] % _FOLDS


def _regression(x: Array, y: Array, weights: Array) -> tuple[Array, float]:
    """Weights and bias that minimise the weighted log loss and the L2 norm of the weights."""

    def loss(theta: Array) -> tuple[float, Array]:
        margin = x @ theta[:-1] + theta[-1]
        residual = weights * (_logistic(margin) - y)
        value = float((weights * (np.logaddexp(0, margin) - y * margin)).sum() + _L2 / 2 * theta[:-1] @ theta[:-1])
        return value, np.append(x.T @ residual + _L2 * theta[:-1], residual.sum())

    found = minimize(
        loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 120, "ftol": 1e-7}
    )
    return found.x[:-1], float(found.x[-1])


def _platt(rows: _Rows, margins: Array) -> Calibration:
    """Of each sample's highest margin, since that is what a prompt is judged by."""
    best: dict[int, int] = {}
    for row, number in enumerate(rows.sample):
        if number >= 0 and (number not in best or margins[row] > margins[best[number]]):
            best[int(number)] = row
    chosen = np.array(list(best.values()))
    weights = rows.weights[chosen].copy()
    for grade in (0.0, 1.0):
        mask = rows.positive[chosen] == grade
        weights[mask] *= 100 / max(weights[mask].sum(), 1e-9)

    def loss(theta: Array) -> float:
        margin = theta[0] * margins[chosen] + theta[1]
        return float((weights * (np.logaddexp(0, margin) - rows.positive[chosen] * margin)).sum())

    slope, offset = minimize(loss, np.array([0.5, 0.0]), method="L-BFGS-B", bounds=[(0.01, 10), (-10, 10)]).x
    return Calibration(slope=round(float(slope), _DECIMALS), offset=round(float(offset), _DECIMALS))


def _logistic(margin: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-np.clip(margin, -60, 60)))
    return found
