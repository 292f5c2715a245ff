"""One classifier at work: a pack's preprocessing, graph and labels, and its proof at load."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from seawall.classification import labels
from seawall.classification.model import Model
from seawall.classification.preprocess import Preprocessor
from seawall.core.errors import Fatal, Poison
from seawall.runtime.decoding import decode_rgb
from seawall.runtime.model_card import ImageClassificationCard
from seawall.runtime.model_pack import ModelPack


class Head:
    """A loaded classifier. Safe for threads."""

    def __init__(self, pack: ModelPack) -> None:
        """Raises Fatal as ``Model`` does."""
        self.pack = pack
        self._model = Model(pack)
        assert isinstance(pack.card, ImageClassificationCard)  # noqa: S101 - Model has refused any other
        self._card = pack.card
        self._preprocess = Preprocessor(pack.card.input)

    @property
    def min_side(self) -> int:
        """Both sides of a decoded picture should have at least so many pixels."""
        return self._preprocess.min_side

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels it scores."""
        return tuple(label.name for label in self._card.labels)

    def score(self, rgb: NDArray[np.uint8]) -> Mapping[str, float]:
        """Calibrated scores, 0 to 1, by label.

        Args:
            rgb: height x width x 3.

        Raises:
            Poison: as ``Model.run``.
        """
        return labels.scores(self._card.labels, self._model.run(self._preprocess(rgb))[0])

    def prove(self, min_side: int) -> None:
        """Reproduce the card's examples, decoded as the service decodes.

        Raises:
            Fatal: ``MODEL_NOT_REPRODUCED``: the file is whole, but here it does not do what its card says.
        """
        for example in self._card.examples:
            try:
                got = self.score(decode_rgb(self.pack.read(example.file), min_side=min_side))
            except Poison as error:
                detail = f"{self.pack.name}: {example.file} could not be scored ({error.reason})"
                raise Fatal("MODEL_NOT_REPRODUCED", f"{detail}: check the pack") from error
            for name, expected in example.scores.items():
                if abs(got[name] - expected) > example.tolerance:
                    raise Fatal(
                        "MODEL_NOT_REPRODUCED",
                        f"{self.pack.name}: {example.file} scores {name} {got[name]:.4f}, its card says {expected} "
                        f"within {example.tolerance}: check the card's input and labels, or quantise for this CPU",
                    )
