"""Ordinary photographs and edited copies of them.

The photographs ship inside the scikit-image wheel; nothing is downloaded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import util
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

from seawall.core.errors import Fatal

_SUFFIXES = (".png", ".jpg")


def original(name: str) -> bytes:
    """The bytes of a photograph as scikit-image ships it. Raises Fatal("NO_PHOTOGRAPHS") with the mend."""
    package = util.find_spec("skimage")
    for folder in (package.submodule_search_locations or []) if package else []:
        for suffix in _SUFFIXES:
            path = Path(folder, "data", name + suffix)
            if path.is_file():
                return path.read_bytes()
    raise Fatal("NO_PHOTOGRAPHS", f"the photograph {name!r} is not here: pip install 'seawall[local]' brings it")


@lru_cache(maxsize=32)
def picture(name: str) -> Image.Image:
    """The photograph, decoded to RGB. Shared between callers: do not draw on it."""
    with Image.open(io.BytesIO(original(name))) as image:
        if image.mode == "RGBA":
            # A transparent background would decode to black or white by decoder; say which.
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")


def crop(image: Image.Image, how: str) -> Image.Image:
    """``whole``, or three quarters of each side from the ``left`` or ``top`` corner."""
    width, height = image.size
    if how == "whole":
        return image
    if how == "left":
        return image.crop((0, height // 4, width * 3 // 4, height))
    if how == "top":
        return image.crop((width // 4, 0, width, height * 3 // 4))
    raise ValueError(f"unknown crop {how!r}")


def fit(image: Image.Image, longest: int) -> Image.Image:
    """The image scaled so that its longer side has ``longest`` pixels."""
    scale = longest / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )


EDITS: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "smaller": lambda image: fit(image, max(image.size) * 3 // 4),
    "larger": lambda image: fit(image, max(image.size) * 4 // 3),
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "framed": lambda image: ImageOps.expand(image, max(image.size) // 8, "white"),
}

#: Name → (Pillow's format, its options, IANA media type).
ENCODINGS: Mapping[str, tuple[str, Mapping[str, int], str]] = {
    "jpeg": ("JPEG", {"quality": 90}, "image/jpeg"),
    "jpeg_low": ("JPEG", {"quality": 55}, "image/jpeg"),
    "png": ("PNG", {"compress_level": 1}, "image/png"),
    "webp": ("WEBP", {"quality": 80, "method": 0}, "image/webp"),
}


def encode(image: Image.Image, encoding: str) -> tuple[bytes, str]:
    """The file's bytes and media type, for a name of ENCODINGS."""
    pillow_format, options, media_type = ENCODINGS[encoding]
    out = io.BytesIO()
    image.save(out, pillow_format, **options)
    return out.getvalue(), media_type


def original_media_type(name: str) -> str:
    """The media type of ``original(name)``."""
    return "image/jpeg" if original(name).startswith(b"\xff\xd8") else "image/png"
