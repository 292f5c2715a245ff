"""Concept anchors: sentences that a window of a prompt is compared with, in the encoder's space.

The vectors are computed when the service starts (some fifty texts, a fifth of a second) instead of being shipped: they
then belong to the encoder that is loaded, whichever pack an operator chose, and only the sentences need a digest.
"""

from __future__ import annotations

import hashlib
import math
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seawall.core.errors import Fatal
from seawall.prompt_scoring.encoder import Encoder, Vectors

_Sentence = Annotated[str, Field(min_length=1, max_length=500)]
_NEAREST = 3


class AnchorFile(BaseModel):
    """``anchors.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    version: str = Field(min_length=1, max_length=64)
    language: str = Field(pattern=r"^[a-z]{2,3}$")
    # Calibration: see the file.
    slope: float = Field(gt=0, allow_inf_nan=False)
    offset: float = Field(allow_inf_nan=False)
    floor: float = Field(ge=-1, le=1, allow_inf_nan=False)
    toward: tuple[_Sentence, ...] = Field(min_length=_NEAREST)
    away: tuple[_Sentence, ...] = Field(min_length=_NEAREST)


class Anchors:
    """The anchors of one concept in one encoder's space."""

    def __init__(self, encoder: Encoder, path: Path | None = None) -> None:
        """Args:
            encoder: gives the vectors.
            path: an ``anchors.yaml``; None: the one that ships with Seawall.

        Raises:
            Fatal: ``BAD_ANCHORS`` naming the field.
        """
        where = path or Path(str(resources.files(__package__).joinpath("data", "anchors.yaml")))
        try:
            data = where.read_bytes()
            content = AnchorFile.model_validate(yaml.safe_load(data.decode("utf-8")))
        except OSError as error:
            raise Fatal("BAD_ANCHORS", f"anchors: {where.name} cannot be read ({error.strerror})") from None
        except (UnicodeDecodeError, yaml.YAMLError):
            raise Fatal("BAD_ANCHORS", f"anchors: {where.name} is not YAML in UTF-8") from None
        except ValidationError as error:
            fields = ", ".join(sorted({".".join(map(str, item["loc"])) for item in error.errors()}))
            raise Fatal("BAD_ANCHORS", f"anchors: {where.name}: mend {fields or 'the file'}") from None
        self.version = content.version
        #: SHA-256 of the file, 32 bytes.
        self.digest = hashlib.sha256(data).digest()
        self._slope = content.slope
        self._offset = content.offset
        self._floor = content.floor
        self._vectors = np.concatenate([encoder.embed_start(text) for text in (*content.toward, *content.away)])
        self._split = len(content.toward)

    def score(self, vectors: Vectors) -> float:
        """How surely any of ``vectors`` (n, dimensions) is about the concept: 0 to 1, calibrated on windows."""
        return max(self._calibrated(*self._near(self._vectors @ vector)) for vector in vectors)

    def _near(self, cosines: Vectors) -> tuple[float, float]:
        """Mean cosine to the nearest anchors toward the concept, and away from it."""
        # For so few numbers a list is sorted faster than an array.
        values = cosines.tolist()
        toward, away = sorted(values[: self._split]), sorted(values[self._split :])
        return sum(toward[-_NEAREST:]) / _NEAREST, sum(away[-_NEAREST:]) / _NEAREST

    def _calibrated(self, toward: float, away: float) -> float:
        # Far from every anchor the difference of two small cosines means nothing.
        return _sigmoid(self._slope * min(toward - away - self._offset, toward - self._floor))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(min(x, 60.0), -60.0)))
