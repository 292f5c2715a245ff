"""The schema of a model pack's ``card.yaml``.

Unknown keys are refused: a misspelt setting must not become a silent default.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*\Z")

MODEL_FILE = "model.onnx"
CARD_FILE = "card.yaml"

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(ge=8, le=2048)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Expectation(_Strict):
    """What to expect of a model on ordinary hardware. It informs; nothing is refused on it."""

    #: Resident memory that the loaded model adds to a process, in MB (10^6 bytes).
    memory_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    #: Inferences per second of CPU time, batch 1, one thread.
    per_core_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    #: The hardware that was measured.
    measured_on: Annotated[str, Field(max_length=200)] = ""


class CardBase(_Strict):
    """What every card says, whatever its task."""

    #: The pack's name; also the folder's usual name and the artefact's name in signals.
    name: Identifier
    version: Annotated[str, Field(min_length=1, max_length=64)]
    #: SPDX expression of the weights' licence.
    licence: Annotated[str, Field(min_length=1, max_length=128)]
    intended_use: Annotated[str, Field(min_length=1, max_length=4000)]
    #: Where the weights come from, and what was done to them.
    source: Annotated[str, Field(max_length=4000)] = ""
    #: Lowest version of ONNX's own operator set that the runtime must know.
    minimum_opset: Annotated[int, Field(ge=7, le=64)] = 7
    #: What running it takes, by its authors' measurement; `seawall models bench` prints it beside its own.
    expects: Expectation | None = None
    #: SHA-256 (64 hex digits) of every file of the pack but the card; a file that is not listed is never read.
    files: dict[str, Sha256Hex]

    @model_validator(mode="after")
    def _files_are_inside(self) -> Self:
        if MODEL_FILE not in self.files:
            raise ValueError(f"files must list {MODEL_FILE}")
        for name in self.files:
            if not _FILE_NAME.match(name) or name == CARD_FILE:
                raise ValueError("files: a name must be a relative path inside the pack, [A-Za-z0-9._-] and '/'")
        return self

    def _must_list(self, field: str, name: str) -> None:
        if name not in self.files:
            raise ValueError(f"{field} names a file that files does not list")


# --- text-embedding ---------------------------------------------------------------------------------------------------


class TextInput(_Strict):
    """How text becomes the model's input."""

    #: A Hugging Face ``tokenizer.json``, listed in files.
    tokenizer: str = "tokenizer.json"
    #: Tokens, special ones included, after which text is cut.
    max_tokens: Annotated[int, Field(ge=8, le=8192)]


class TextOutput(_Strict):
    """What the model returns."""

    dimensions: Annotated[int, Field(ge=1, le=8192)]
    #: How token vectors become one.
    pooling: Literal["mean", "cls", "max"]
    #: True: the graph pools, and its output is one vector a text. False: the room pools.
    pooled_in_graph: bool
    #: True: the vectors have length 1.
    normalised: bool


class TextExample(_Strict):
    """Two texts and the cosine of their vectors, reproduced at load."""

    texts: tuple[str, str]
    cosine: Annotated[float, Field(ge=-1, le=1)]
    tolerance: Annotated[float, Field(gt=0, le=0.5)]


class TextEmbeddingCard(CardBase):
    """A model that turns text into a vector."""

    task: Literal["text-embedding"]
    input: TextInput
    output: TextOutput
    examples: tuple[TextExample, ...] = ()

    @model_validator(mode="after")
    def _tokenizer_is_listed(self) -> Self:
        self._must_list("input.tokenizer", self.input.tokenizer)
        return self


# --- image-classification ---------------------------------------------------------------------------------------------


class ShortSideResize(_Strict):
    """Proportions kept: the shorter side becomes ``side`` pixels, then the middle is cut out at the model's size."""

    rule: Literal["short-side"]
    side: Side
    filter: Literal["bilinear", "bicubic"] = "bilinear"


class StretchResize(_Strict):
    """Proportions not kept: scaled to ``height``, ``width``, then the middle is cut out at the model's size."""

    rule: Literal["stretch"]
    height: Side
    width: Side
    filter: Literal["bilinear", "bicubic"] = "bilinear"


class ImageInput(_Strict):
    """How 8-bit pixels become the model's float32 input, channels in the order that ``colour`` gives.

    The value is ``(pixel * scale - mean) / std``.
    """

    layout: Literal["NHWC", "NCHW"]
    colour: Literal["BGR", "RGB"]
    height: Side
    width: Side
    scale: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    mean: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    resize: Annotated[ShortSideResize | StretchResize, Field(discriminator="rule")]

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        resize = self.resize
        height, width = (
            (resize.side, resize.side) if isinstance(resize, ShortSideResize) else (resize.height, resize.width)
        )
        if height < self.height or width < self.width:
            raise ValueError("resize must leave a picture no smaller than height and width")
        return self


class ImageOutput(_Strict):
    """The model's output: one row of ``classes`` values a picture."""

    classes: Annotated[int, Field(ge=1, le=10_000)]
    #: What turns the row into probabilities; "none": it already is.
    activation: Literal["none", "softmax", "sigmoid"]


class IdentityCalibration(_Strict):
    """The model's probability is the score."""

    method: Literal["identity"] = "identity"


class LogisticCalibration(_Strict):
    """Platt scaling: score = sigmoid(slope * logit(probability) + offset)."""

    method: Literal["logistic"]
    slope: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
    offset: Finite


class Reference(_Strict):
    """How a label's scores are distributed where the model was accepted: what drift is measured against.

    `seawall models check PACK --images FOLDER` prints it for your own pictures.
    """

    #: Ascending scores that divide 0 to 1 into ``len(edges) + 1`` bins; a score equal to an edge lies above it.
    edges: Annotated[tuple[Probability, ...], Field(min_length=1, max_length=63)]
    #: The share of scores in each bin; their sum is 1.
    shares: Annotated[tuple[Probability, ...], Field(min_length=2, max_length=64)]

    @model_validator(mode="after")
    def _bins_fit(self) -> Self:
        if len(self.shares) != len(self.edges) + 1:
            raise ValueError("shares must have one value more than edges")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges must ascend")
        if abs(sum(self.shares) - 1) > 0.01:
            raise ValueError("shares must add up to 1")
        return self


class Label(_Strict):
    """One label of the model's output."""

    #: The label in signals and policies; the aggregator sees labels, not models.
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    #: Its place in the output row.
    index: Annotated[int, Field(ge=0)]
    calibration: Annotated[IdentityCalibration | LogisticCalibration, Field(discriminator="method")] = (
        IdentityCalibration()
    )
    #: The score the pack's authors suggest to act on. The policy decides, this informs.
    threshold: Probability
    #: Unset: drift of this label is not measured.
    reference: Reference | None = None


class ImageExample(_Strict):
    """A picture in the pack and the scores it must get at load."""

    file: str
    scores: dict[str, Probability]
    tolerance: Annotated[float, Field(gt=0, le=0.5)]


class ImageClassificationCard(CardBase):
    """A model that scores a picture's labels."""

    task: Literal["image-classification"]
    input: ImageInput
    output: ImageOutput
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    #: At least one: a model that cannot prove itself at load is not run.
    examples: Annotated[tuple[ImageExample, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError("labels: a name stands twice")
        for label in self.labels:
            if label.index >= self.output.classes:
                raise ValueError(f"labels: {label.name}'s index is not below output.classes")
        for example in self.examples:
            self._must_list("examples", example.file)
            if set(example.scores) != set(names):
                raise ValueError("examples: scores must name every label, and no other")
        return self


# --- text-classification ----------------------------------------------------------------------------------------------


class TextClassExample(_Strict):
    """A text and the scores it must get at load."""

    text: Annotated[str, Field(min_length=1, max_length=2000)]
    scores: dict[str, Probability]
    tolerance: Annotated[float, Field(gt=0, le=0.5)]


class TextClassificationCard(CardBase):
    """A model that scores a text's labels."""

    task: Literal["text-classification"]
    #: BCP 47: the languages it was trained on. Its scores of others mean little; signals say how far a text is outside.
    languages: Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...], Field(min_length=1)]
    input: TextInput
    output: ImageOutput
    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    #: At least one: a model that cannot prove itself at load is not run.
    examples: Annotated[tuple[TextClassExample, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        self._must_list("input.tokenizer", self.input.tokenizer)
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError("labels: a name stands twice")
        if any(label.index >= self.output.classes for label in self.labels):
            raise ValueError("labels: an index is not below output.classes")
        if any(set(example.scores) != set(names) for example in self.examples):
            raise ValueError("examples: scores must name every label, and no other")
        return self


Card = TextEmbeddingCard | ImageClassificationCard | TextClassificationCard
CARDS: dict[str, type[TextEmbeddingCard] | type[ImageClassificationCard] | type[TextClassificationCard]] = {
    "text-embedding": TextEmbeddingCard,
    "text-classification": TextClassificationCard,
    "image-classification": ImageClassificationCard,
}
