"""The seam for whatever scores a prompt besides terms: the sentence encoder, a classifier, an operator's own LLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from seawall.api.signal.v1 import signal_pb2
from seawall.prompt_scoring.detection import Detection


@dataclass(frozen=True, repr=False)
class Reading:
    """What a text scorer may read. Its repr shows no content."""

    #: The prompt as a person sees it: no invisible and no control characters. May be empty.
    prompt: str
    negative_prompt: str
    #: Earlier turns of the conversation, oldest first.
    turns: Sequence[str]
    #: What terms say: concepts, grades, and the windows of words around pairs of concepts, nearest first.
    detection: Detection


class Unscannable(ValueError):
    """The text cannot be scored at all: the item becomes UNSCANNABLE.

    Args:
        reason: machine-readable: "TOO_LONG".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TextScorer(Protocol):
    """Scores one prompt. Safe for threads; called for every prompt that is not empty, after the terms.

    An implementation is made anew when its artefact changes (see reload.py) and never changes itself.
    """

    @property
    def labels(self) -> Sequence[str]:
        """The labels of `score`; no other scorer has them."""
        ...

    @property
    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """Everything its scores rest on, by digest. They are in every signal, and in the key of the cache."""
        ...

    def score(self, reading: Reading) -> Mapping[str, float]:
        """A score from 0 to 1 for each of the labels; a label that is left out is 0.

        Raises:
            Unscannable: the text cannot be scored.
            SeawallError: the item becomes ERROR with its reason, never clean; it is not cached.
        """
        ...
