"""How much of a hostile file is ever read."""

from __future__ import annotations

from pydantic import Field

from seawall.runtime.settings import ByteCount, Group


class DecodingSettings(Group):
    """Caps on what is decoded. Each bounds memory or time that a sender could otherwise choose."""

    # A larger file is TOO_LARGE.
    max_bytes: ByteCount = 32 * 1024 * 1024
    # Pixels of one frame, by the header. Decoding takes up to 16 bytes a pixel (WebP's canvases), and large pictures
    # are decoded one at a time: this bounds what a process can be made to hold.
    max_pixels: int = Field(default=25_000_000, ge=1)
    # The same for JPEGs that are not progressive: they are decoded line by line and scaled on the way, at 3 bytes a
    # pixel or fewer, and telephones make them this large.
    max_jpeg_pixels: int = Field(default=100_000_000, ge=1)
    # Pixels of the longer side, by the header.
    max_side: int = Field(default=20_000, ge=1)
    # Every frame of an animation is looked at, so that nothing hides in the second; one with more frames, or with more
    # pixels in all its frames together, is TOO_MANY_FRAMES.
    max_frames: int = Field(default=1_000, ge=1)
    max_total_pixels: int = Field(default=150_000_000, ge=1)
    # Passes of a progressive JPEG; encoders write about ten.
    max_scans: int = Field(default=64, ge=1)
    # Videos (`pip install seawall[video]`; without it each is VIDEO_EXTRA_MISSING). Every frame is decoded, so that
    # nothing hides between samples, within cpu_seconds: raise that with these. One that claims to be longer, or is, is
    # TOO_LONG; one with more frames TOO_MANY_FRAMES.
    max_video_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    max_video_frames: int = Field(default=9_000, ge=1)
    # Pixels of one of its frames: a decoder holds up to 17 of them, at 1.5 bytes a pixel and more. Just above 4K.
    max_video_pixels: int = Field(default=9_000_000, ge=1)
    # Decode in worker processes under the limits below. Off: in the service's own process, for tests and measurements.
    isolated: bool = True
    # Address space a worker may add to what it begins with; a file that needs more is TOO_MUCH_MEMORY. The largest
    # pictures that the caps above allow take about 450 MB, one at a time in all workers together.
    memory_bytes: ByteCount = 640 * 1024 * 1024
    # CPU seconds a worker may spend on one file; one that needs more is TOO_SLOW, and its worker replaced.
    cpu_seconds: int = Field(default=10, ge=1)


DEFAULT_LIMITS = DecodingSettings()
