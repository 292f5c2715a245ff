"""One still, or one frame, as an array.

What every picture becomes, whatever its format:

* turned upright by its EXIF orientation;
* 8 bits a channel: of 16 the high byte, as libpng strips them;
* palettes resolved, CMYK converted without a profile;
* ICC profiles ignored: hash lists are made from the stored values, and a profile is the sender's word, able to turn
  the picture a viewer sees into another one than was listed;
* alpha laid over white, what a browser shows by default. `iterate_frames` also yields what black shows, and the
  colours below the alpha, where these differ.

Gray is ITU-R BT.601 luma.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from seawall.runtime.decoding.image_info import ImageInfo
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.unscannable import Reason, Unscannable, corrupt, truncated

Pixels = npt.NDArray[np.uint8]
Mode = Literal["gray", "rgb"]
#: How alpha was resolved. "white" for pictures without it.
View = Literal["white", "black", "opaque"]

#: Above so many pixels one picture is decoded at a time: what all threads together hold stays near what one does.
_LARGE_PIXELS: Final = 4_000_000
_large = threading.Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    with _large:
        yield


#: How the slot for large pictures is held; worker processes share one between them.
large_slot: Callable[[], AbstractContextManager[None]] = _one_thread
#: Modes whose pixels may be transparent.
_ALPHA_MODES: Final = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


@contextmanager
def memory_slot(info: ImageInfo, min_side: int | None) -> Iterator[None]:
    """Holds the one slot for large pictures while one is decoded."""
    pixels = info.width * info.height
    if info.type == "jpeg" and min_side and not info.progressive:
        # Scaled while it is decoded: only the smaller picture is ever in memory.
        shrink = max(1.0, min(info.width, info.height, 8 * min_side) / min_side)
        pixels = int(pixels / shrink**2)
    if pixels <= _LARGE_PIXELS:
        yield
        return
    with large_slot():
        yield


def jpeg(data: bytes, info: ImageInfo, mode: Mode, min_side: int | None, into: Pixels | None = None) -> Pixels:
    """A JPEG upright, shape (h, w) or (h, w, 3).

    Args:
        min_side: scale while decoding (in the DCT, by eighths) as far as both sides keep at least so many pixels.
        into: flat memory, large enough, that the pixels may be put in.
    """
    scale = min_side or 0
    options: dict[str, int | str | Pixels | None] = {
        "buffer": into,
        "colorspace": "GRAY" if mode == "gray" else "RGB",
        "min_height": scale,
        "min_width": scale,
    }
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (height, width) != (info.height, info.width):
            # Two readings of one header: the size that was checked is not the size that would be decoded.
            raise corrupt("the JPEG's header can be read in two ways")
        pixels: Pixels = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        message = str(error)
        if "extraneous bytes" in message:
            # Common in old cameras' files, and harmless: every viewer shows these pictures whole.
            pixels = _lenient(data, options)
        elif "Premature end of JPEG" in message:
            raise truncated("the JPEG's picture") from None
        else:
            raise corrupt("the JPEG's coded data are invalid") from None
    if mode == "gray":
        pixels = pixels[:, :, 0]
    return upright(pixels, info.orientation)


def _lenient(data: bytes, options: Mapping[str, int | str | Pixels | None]) -> Pixels:
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
    except ValueError:
        raise corrupt("the JPEG's coded data are invalid") from None
    return pixels


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo EXIF's orientation (1 to 8); contiguous."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@contextmanager
def opened(data: bytes, info: ImageInfo, limits: DecodingSettings) -> Iterator[Image.Image]:
    """The file in Pillow, nothing decoded yet. What goes wrong inside the block is the file's fault: Unscannable."""
    try:
        with Image.open(io.BytesIO(data), formats=(info.type.upper(),)) as image:
            if not _same_size(info, image.size):
                raise corrupt("the header can be read in two ways")
            if max(image.size) > limits.max_side or image.width * image.height > limits.max_pixels:
                raise Unscannable(Reason.TOO_MANY_PIXELS, "the picture is larger than its container says")
            yield image
    except (Unscannable, MemoryError):
        raise
    except Exception as error:
        # Pillow's decoders raise whatever their parsing meets (OSError, SyntaxError, struct.error, IndexError, …); all
        # of it means the same here. The message is dropped: it may quote the file.
        if "truncated" in str(error):
            raise truncated("the picture") from None
        raise corrupt(f"the picture cannot be decoded ({type(error).__name__})") from None


def _same_size(info: ImageInfo, size: tuple[int, int]) -> bool:
    if info.type in ("gif", "avif"):
        # A GIF's canvas grows with its frames; an AVIF's header also names the sizes of its tiles and thumbnails.
        return size[0] <= info.width and size[1] <= info.height
    return size == (info.width, info.height)


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation of an opened file, 1 to 8."""
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def views(image: Image.Image, mode: Mode, orientation: int, every: bool) -> Iterator[tuple[View, Pixels]]:
    """The current frame's pixels: over white, then, if ``every``, the other views that show something else."""
    if not _transparent(image):
        yield "white", upright(_array(_opaque(image), mode), orientation)
        return
    rgba = image.convert("RGBA")
    seen: list[Pixels] = []
    for view in ("white", "black", "opaque") if every else ("white",):
        pixels = upright(_array(_flatten(rgba, view), mode), orientation)
        if not any(np.array_equal(pixels, other) for other in seen):
            seen.append(pixels)
            yield view, pixels


def _transparent(image: Image.Image) -> bool:
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return False
    extrema = image.convert("RGBA").getchannel("A").getextrema()
    return extrema[0] != 255


def _flatten(rgba: Image.Image, view: View) -> Image.Image:
    if view == "opaque":
        return rgba.convert("RGB")
    level = 255 if view == "white" else 0
    ground = Image.new("RGBA", rgba.size, (level, level, level, 255))
    return Image.alpha_composite(ground, rgba).convert("RGB")


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit gray; Pillow's own conversion would clip instead of scale.
        high = np.asarray(image, dtype=np.int32) >> 8
        return Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _array(image: Image.Image, mode: Mode) -> Pixels:
    return np.asarray(image.convert("L" if mode == "gray" else "RGB"))
