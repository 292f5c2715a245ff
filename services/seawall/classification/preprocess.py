"""From decoded pixels to a model's input tensor, as its card defines it.

The resize is Pillow's antialiased one over the exact region that survives the centre crop, after a whole-number box
reduction to no less than twice the target (``reducing_gap``): the same bytes on every machine, and a large picture
costs little more than a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seawall.runtime.model_card import ImageInput, ShortSideResize

#: A picture: height x width x 3 RGB, 8 bits a channel.
Pixels = NDArray[np.uint8]
#: What a model takes.
Input = NDArray[np.float32]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_REDUCING_GAP = 2.0


class Preprocessor:
    """Makes one model's input. Stateless, safe for threads."""

    def __init__(self, spec: ImageInput) -> None:
        self._spec = spec
        self._filter = _FILTERS[spec.resize.filter]
        # One row an output channel: which RGB channel it takes, and (pixel * scale - mean) / std as gain and offset.
        order = (2, 1, 0) if spec.colour == "BGR" else (0, 1, 2)
        self._channels = tuple(
            (source, np.float32(spec.scale / std), np.float32(-mean / std))
            for source, mean, std in zip(order, spec.mean, spec.std, strict=True)
        )

    @property
    def min_side(self) -> int:
        """Both sides of the decoded picture should have at least so many pixels, or the picture is enlarged."""
        resize = self._spec.resize
        return resize.side if isinstance(resize, ShortSideResize) else max(resize.height, resize.width)

    def __call__(self, rgb: Pixels) -> Input:
        """Args:
            rgb: height x width x 3, 8 bits a channel.

        Returns the input of one, as `inputs`.
        """
        return self.inputs([self.pixels(rgb)])

    def inputs(self, pixels: Sequence[Pixels]) -> Input:
        """Args:
            pixels: n pictures, each as `pixels` gives it.

        Returns:
            n x height x width x 3 (NHWC) or n x 3 x height x width (NCHW), contiguous.
        """
        spec = self._spec
        nhwc = spec.layout == "NHWC"
        out = np.empty(
            (len(pixels), *((spec.height, spec.width, 3) if nhwc else (3, spec.height, spec.width))), np.float32
        )
        # A channel at a time: numpy converts and adds in one pass, four times as fast as over the reversed last axis.
        for picture, into in zip(pixels, out, strict=True):
            for index, (source, gain, offset) in enumerate(self._channels):
                target = into[:, :, index] if nhwc else into[index]
                if gain == 1:
                    np.add(picture[:, :, source], offset, out=target)
                else:
                    np.multiply(picture[:, :, source], gain, out=target)
                    target += offset
        return out

    def pixels(self, rgb: Pixels) -> Pixels:
        """The picture at the model's size, height x width x 3 RGB; perhaps a view of ``rgb``."""
        spec = self._spec
        height, width = rgb.shape[:2]
        scaled_height, scaled_width = self._scaled(height, width)
        top = round((scaled_height - spec.height) / 2)
        left = round((scaled_width - spec.width) / 2)
        if (scaled_height, scaled_width) == (height, width):
            return rgb[top : top + spec.height, left : left + spec.width]
        box = (
            left * width / scaled_width,
            top * height / scaled_height,
            (left + spec.width) * width / scaled_width,
            (top + spec.height) * height / scaled_height,
        )
        image = Image.fromarray(np.ascontiguousarray(rgb))
        return np.asarray(
            image.resize((spec.width, spec.height), self._filter, box=box, reducing_gap=_REDUCING_GAP), np.uint8
        )

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        resize = self._spec.resize
        if not isinstance(resize, ShortSideResize):
            return resize.height, resize.width
        short = min(height, width)
        # Rounded down on the longer side, as torchvision does.
        return resize.side * height // short, resize.side * width // short


@lru_cache(maxsize=256)
def preprocessor(spec: ImageInput) -> Preprocessor:
    """The one preprocessor of this card input: models that agree on their input share the work."""
    return Preprocessor(spec)
