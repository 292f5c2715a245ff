"""Decoded items on their way through the models: one inference for the frames of several, to each its own fault."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from seawall.classification.head import Head
from seawall.classification.labels import Highest, LabelScores
from seawall.classification.lineup import Plan
from seawall.classification.preprocess import Pixels, Preprocessor
from seawall.runtime.decoding import Frame


class PreparedFrame(NamedTuple):
    """What is left of a frame when its decoder has its memory back."""

    number: int
    #: At the size of each model's input; models with the same input share it.
    pixels: Mapping[Preprocessor, Pixels]


def prepare(frame: Frame, plan: Plan) -> PreparedFrame:
    """A frame for every model of ``plan``."""
    return PreparedFrame(
        frame.number,
        {one: _kept(one.pixels(frame.pixels), frame) for one in {head.preprocessor for head in plan.heads}},
    )


class Picture:
    """One item, decoded: its frames, and what the models that decide say of them."""

    def __init__(self, plan: Plan, key: Hashable, frames: Sequence[PreparedFrame]) -> None:
        """``key``: what its result rests on."""
        self.plan = plan
        self.key = key
        self.frames = frames
        #: By head, of each frame, once scored.
        self.scores: dict[Head, list[Mapping[str, float]]] = {}
        #: Why there are none.
        self.error: BaseException | None = None

    @property
    def seen(self) -> bool:
        """Whether the models have looked at it."""
        return bool(self.scores) or self.error is not None

    def add_to(self, labels: LabelScores) -> None:
        """Add each label's highest score. Raises what the models raised."""
        if self.error is not None:
            raise self.error
        for head in self.plan.deciding:
            highest = Highest(head.model_name)
            for frame, scores in zip(self.frames, self.scores[head], strict=True):
                highest.see(frame.number, scores)
            highest.add_to(labels)


def score(pictures: Sequence[Picture]) -> None:
    """Have every head score all pictures that it decides on. Never raises: a fault is with its picture."""
    try:
        for head in dict.fromkeys(head for picture in pictures for head in picture.plan.deciding):
            of = [picture for picture in pictures if head in picture.plan.deciding]
            found = iter(head.scores([frame.pixels[head.preprocessor] for picture in of for frame in picture.frames]))
            for picture in of:
                picture.scores[head] = list(islice(found, len(picture.frames)))
    except BaseException as error:
        if len(pictures) == 1:
            pictures[0].error = error
            return
        # One may have spoilt it for all: each alone, so that only that one errs.
        for picture in pictures:
            score([picture])


def _kept(pixels: Pixels, frame: Frame) -> Pixels:
    return pixels.copy() if np.may_share_memory(pixels, frame.pixels) else pixels
