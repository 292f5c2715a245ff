"""The block grade's head: a logistic regression over the encoder's vectors of a window and a few facts of its syntax.

It belongs to one encoder and reads that encoder's languages only. ``seawall prompts calibrate`` fits it; the file says
on what, with which encoder, and how it was calibrated.
"""

from __future__ import annotations

import hashlib
import math
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seawall.core.errors import Fatal
from seawall.prompt_scoring.encoder import Encoder
from seawall.prompt_scoring.windows import Window
from seawall.runtime.model_card import MODEL_FILE
from seawall.runtime.model_pack import ModelPack

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: Facts of a window's syntax are 0 or this: a third of a unit vector, so that they inform and do not rule.
_SYNTAX_SCALE = 0.3
_DISTANCES = (0, 2, 5, 12)
#: `Thresholds.block` of a head that does not say.
_BLOCKS_FROM = 0.6
SYNTAX_FEATURES = len(_DISTANCES) + 4
#: The window, its core and its frame.
_VECTORS = 3

Features = NDArray[np.float64]


class Calibration(BaseModel):
    """Platt scaling of the regression's margin: probability = sigmoid(slope * margin + offset)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: float = Field(gt=0, allow_inf_nan=False)
    offset: _Number


class Thresholds(BaseModel):
    """The block grades that a policy should block from, with this head (``evaluation.thresholds`` says how chosen)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: float = Field(gt=0, lt=1)
    #: Where words of benign context stand in the prompt.
    block_sure: float = Field(gt=0, lt=1)


class HeadFile(BaseModel):
    """The head's file: its card and its weights, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    version: str = Field(min_length=1, max_length=64)
    licence: str = Field(min_length=1, max_length=128)
    intended_use: str = Field(min_length=1, max_length=4000)
    #: What the windows of other languages are left to terms for: BCP 47.
    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = Field(min_length=1)
    #: SHA-256 of the encoder's model file: another encoder has another space.
    encoder_model_sha256: _Sha256
    #: SHA-256 of the set it was fitted on.
    train_set_sha256: _Sha256
    #: Templates of the set, by grade.
    train_templates: dict[str, int]
    #: Layout of the features; see ``features``.
    features: Literal[2]
    calibration: Calibration
    #: The least grade of a bare request (`Window.bare`), counted from templates. None: as of any other.
    bare: float | None = Field(default=None, gt=0, lt=1)
    #: Advice to the policy's author; the service does not block.
    thresholds: Thresholds | None = None
    bias: _Number
    #: First the encoder's dimensions for the window, then for its core, then for its frame, then the syntax.
    weights: tuple[_Number, ...]

    def data(self) -> bytes:
        """The file's bytes; the same head is always the same bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def bundled() -> Path:
    """The head that ships with Seawall, for its demo encoder."""
    return Path(str(resources.files(__package__).joinpath("data", "block_head.json")))


class BlockHead:
    """Scores windows. Safe for threads."""

    def __init__(self, encoder: Encoder, pack: ModelPack, path: Path | None = None) -> None:
        """Args:
            encoder: gives the vectors.
            pack: the encoder's pack.
            path: the head's file; None: the one that ships with Seawall.

        Raises:
            Fatal: ``BAD_BLOCK_HEAD`` naming the field; ``WRONG_BLOCK_HEAD`` when it was fitted with another encoder.
        """
        where = path or bundled()
        try:
            data = where.read_bytes()
            content = HeadFile.model_validate_json(data)
        except OSError as error:
            raise Fatal("BAD_BLOCK_HEAD", f"head: {where.name} cannot be read ({error.strerror})") from None
        except ValidationError as error:
            fields = ", ".join(sorted({".".join(map(str, item["loc"])) for item in error.errors()}))
            raise Fatal("BAD_BLOCK_HEAD", f"head: {where.name}: mend {fields or 'the file'}") from None
        if content.encoder_model_sha256 != pack.card.files[MODEL_FILE]:
            detail = f"head: {where.name} was fitted with another encoder than {pack.name}"
            raise Fatal("WRONG_BLOCK_HEAD", f"{detail}: run `seawall prompts calibrate` and set head to what it wrote")
        if len(content.weights) != _VECTORS * encoder.dimensions + SYNTAX_FEATURES:
            raise Fatal("BAD_BLOCK_HEAD", f"head: {where.name}: weights do not fit the encoder's dimensions")
        self.version = content.version
        self.languages = frozenset(content.languages)
        #: SHA-256 of the file, 32 bytes.
        self.digest = hashlib.sha256(data).digest()
        self._encoder = encoder
        self._weights = np.array(content.weights, np.float64)
        self._bias = content.bias
        self._calibration = content.calibration
        self._bare = content.bare or 0.0
        #: The grade that a policy should block from unless the context is benign.
        self.blocks_from = content.thresholds.block if content.thresholds else _BLOCKS_FROM

    def score(self, window: Window) -> float:
        """How surely the window is a request for sexual content about a minor: 0 to 1."""
        margin = float(features(self._encoder, window) @ self._weights) + self._bias
        grade = sigmoid(self._calibration.slope * margin + self._calibration.offset)
        return max(grade, self._bare) if window.bare else grade


def features(encoder: Encoder, window: Window) -> Features:
    """(3 * dimensions + SYNTAX_FEATURES,): the window's vector, its core's, its frame's, and the syntax."""
    vectors = [encoder.embed_start(text)[0] for text in (window.text, window.core, window.frame)]
    return np.concatenate([*vectors, syntax(window)], dtype=np.float64)


def syntax(window: Window) -> Features:
    """(SYNTAX_FEATURES,): the distance in steps, the kind of the sexual term, the order, and whether in one stretch."""
    step = sum(window.distance > limit for limit in _DISTANCES)
    facts = [float(step == index) for index in range(len(_DISTANCES) + 1)]
    facts += [float(window.concept == "undressing_request"), float(window.minor_last), float(window.apart)]
    return np.array(facts, np.float64) * _SYNTAX_SCALE


def sigmoid(x: float) -> float:
    """The logistic function, safe for any finite ``x``."""
    return 1.0 / (1.0 + math.exp(-max(min(x, 60.0), -60.0)))
