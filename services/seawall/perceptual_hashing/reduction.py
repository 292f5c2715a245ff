"""The pipelines' first step: the size at which a picture is hashed."""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.runtime.decoding import Pixels

#: Side to which the "512" pipeline reduces larger pictures. Exactly that: PDQ's boxes are whole pixels wide, so at
#: another size, even a close one, the same picture's hash differs by a dozen bits.
REDUCED_SIDE: Final = 512


def prepare(gray: Pixels, pipeline: Pipeline) -> Pixels:
    """The luma, (h, w), as the pipeline hashes it."""
    if pipeline == "full" or max(gray.shape) <= REDUCED_SIDE:
        return gray
    image = Image.fromarray(gray)
    return np.asarray(image.resize((REDUCED_SIDE, REDUCED_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
