"""What a file's header says, before a single pixel is decoded."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

ImageType = Literal["jpeg", "png", "gif", "webp", "avif", "mp4", "matroska"]
#: Types that hold a video: MP4 and MOV, WebM and Matroska.
VIDEOS: Final = ("mp4", "matroska")


class ImageInfo(NamedTuple):
    """The header of a picture or a video, checked against the limits."""

    type: ImageType
    #: Pixels as stored, before ``orientation`` is applied.
    width: int
    height: int
    #: 1 for a still. AVIF sequences: 1 until they are opened, see ``frames``. Of a video those of all its picture
    #: tracks; what an MP4 has in fragments is not counted.
    frames: int
    #: EXIF's number, 1 to 8: how the stored picture must be turned to stand upright. JPEG only; others are turned by
    #: their decoder.
    orientation: int = 1
    #: Offset of the first byte behind the picture; the file's length when nothing rides behind it.
    end: int = 0
    #: A JPEG whose coefficients are all held in memory until the last pass.
    progressive: bool = False
    #: How long a video says it is; 0: it does not say.
    seconds: float = 0.0
