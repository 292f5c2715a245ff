"""Safe decoding of pictures and videos, shared by the media stages.

    inspect(data) -> ImageInfo                      what the header says; nothing decoded
    decode_gray(data, min_side=512) -> uint8[h, w]     the first frame
    decode_rgb(data, min_side=…) -> uint8[h, w, 3]     the first frame
    iterate_frames(data, mode) -> Iterator[Frame]   every frame, in every view; one in memory at a time
    decode_frames(data, mode, max_frames)           the few frames that differ most

A file is untrusted: its first bytes must be on the allow-list, the size its header claims is checked before a pixel is
decoded, and bytes, pixels, frames and passes are capped by `DecodingSettings`. What cannot be read whole raises
`Unscannable`, which is never clean. Every function is stateless and safe for threads.

A service does not call these itself: it asks a `Decoder` (`isolated.make_decoder`), which calls them in processes of
their own, under limits of memory and time.
"""

from __future__ import annotations

from seawall.runtime.decoding.decoder import Decoder, Decoding, InProcessDecoder, Measure
from seawall.runtime.decoding.frames import Frame, decode_frames, iterate_frames
from seawall.runtime.decoding.image_info import ImageInfo, ImageType
from seawall.runtime.decoding.inspection import inspect
from seawall.runtime.decoding.limits import DEFAULT_LIMITS, DecodingSettings
from seawall.runtime.decoding.pixels import Mode, Pixels, View
from seawall.runtime.decoding.stills import PDQ_MIN_SIDE, decode_gray, decode_rgb
from seawall.runtime.decoding.unscannable import Reason, Unscannable

__all__ = [
    "DEFAULT_LIMITS",
    "PDQ_MIN_SIDE",
    "Decoder",
    "Decoding",
    "DecodingSettings",
    "Frame",
    "ImageInfo",
    "ImageType",
    "InProcessDecoder",
    "Measure",
    "Mode",
    "Pixels",
    "Reason",
    "Unscannable",
    "View",
    "decode_frames",
    "decode_gray",
    "decode_rgb",
    "inspect",
    "iterate_frames",
]
