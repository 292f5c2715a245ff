"""One classifier at work: a pack's preprocessing, graph and labels, and its proof at load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seawall.classification import labels
from seawall.classification.batching import Batcher, Row
from seawall.classification.drift import ScoreWatch
from seawall.classification.execution import ExecutionSettings
from seawall.classification.model import CPU, Model
from seawall.classification.preprocess import Pixels, preprocessor
from seawall.core.errors import Fatal, Poison
from seawall.runtime.decoding import decode_rgb
from seawall.runtime.model_card import ImageClassificationCard
from seawall.runtime.model_pack import ModelPack

#: Scores that one index of drift is made of.
DRIFT_WINDOW = 2_000


class Head:
    """A loaded classifier. Safe for threads."""

    def __init__(
        self, pack: ModelPack, execution: ExecutionSettings = CPU, workers: int = 1, drift_window: int = DRIFT_WINDOW
    ) -> None:
        """Args:
            workers: threads that will call `score` at once.
            drift_window: as of ``ScoreWatch``.

        Raises Fatal: as ``Model``.
        """
        self.pack = pack
        #: "name@version", as signals and metrics name it.
        self.model_name = f"{pack.name}@{pack.version}"
        self._model = Model(pack, execution)
        assert isinstance(pack.card, ImageClassificationCard)  # noqa: S101 - Model has refused any other
        self.card = pack.card
        #: Makes its input of a picture.
        self.preprocessor = preprocessor(pack.card.input)
        #: By label; to be told of every score that the model gave in service.
        self.watches = {
            label.name: ScoreWatch(self.model_name, label.name, label.reference, drift_window)
            for label in pack.card.labels
        }
        self._size = execution.batch if self._model.batchable else 1
        #: One inference: a row of probabilities for each input, at most as many as the model may be given at once.
        self.run = Batcher(self._model.run, self._size, execution.runs(workers), execution.batch_wait_seconds)

    @property
    def min_side(self) -> int:
        """Both sides of a decoded picture should have at least so many pixels."""
        return self.preprocessor.min_side

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels it scores."""
        return tuple(label.name for label in self.card.labels)

    def score(self, rgb: Pixels) -> Mapping[str, float]:
        """Calibrated scores of one picture, 0 to 1, by label.

        Args:
            rgb: height x width x 3.

        Raises:
            Poison: as ``Model.run``.
        """
        return self.scores([self.preprocessor.pixels(rgb)])[0]

    def scores(self, pixels: Sequence[Pixels]) -> list[Mapping[str, float]]:
        """`score`, of pictures as ``preprocessor.pixels`` gives them: as few inferences as the model allows."""
        rows: list[Row] = []
        for start in range(0, len(pixels), self._size):
            rows += self.run(self.preprocessor.inputs(pixels[start : start + self._size]))
        return [labels.scores(self.card.labels, row) for row in rows]

    def prove(self, min_side: int) -> None:
        """Reproduce the card's examples, decoded as the service decodes.

        Raises:
            Fatal: ``MODEL_NOT_REPRODUCED``: the file is whole, but here it does not do what its card says.
        """
        for example in self.card.examples:
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
