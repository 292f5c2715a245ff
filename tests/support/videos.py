"""Videos of shapes, noise and photographs, made by PyAV itself."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from tests.support import images

Pixels = npt.NDArray[np.uint8]
#: Width and height of what is made here.
SIZE = (320, 240)
RATE = 24


def picture(name: str, size: tuple[int, int] = SIZE) -> Pixels:
    """A photograph at a size, RGB."""
    return np.asarray(images.photograph(name).resize(size))


def still(name: str, frames: int) -> list[Pixels]:
    """A photograph for so many frames."""
    return [picture(name)] * frames


def panning(name: str, frames: int, step: int = 4) -> list[Pixels]:
    """A view that moves over a photograph."""
    width, height = SIZE
    wide = picture(name, (width + step * frames, height))
    return [np.ascontiguousarray(wide[:, step * k : step * k + width]) for k in range(frames)]


def video(frames: Iterable[Pixels], codec: str = "libx264", container: str = "mp4", **options: str) -> bytes:
    """The frames as a file, good quality unless ``options`` of encoder or container say otherwise."""
    return tracks([frames], codec, container, **options)


def tracks(each: Sequence[Iterable[Pixels]], codec: str = "libx264", container: str = "mp4", **options: str) -> bytes:
    """A file with several picture tracks."""
    out = io.BytesIO()
    with av.open(out, "w", format=container, container_options=options) as file:
        streams = []
        for frames in each:
            listed = list(frames)
            streams.append((_stream(file, codec, listed[0], options), listed))
        for stream, listed in streams:
            for pixels in listed:
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
    return out.getvalue()


def repeated(pixels: Pixels, frames: int, step: int = 512) -> bytes:
    """One frame so many times, coded once: cheap to make, and each as dear to decode as the first.

    Args:
        step: from one to the next, in 12,288ths of a second.
    """
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = _stream(file, "libx264", pixels, {"qp": "45", "preset": "ultrafast"})
        (packet,) = chain(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")), stream.encode())
        content = bytes(packet)
        for number in range(frames):
            again = av.Packet(content)
            again.stream, again.time_base, again.is_keyframe = stream, Fraction(1, 12_288), True
            again.pts = again.dts = number * step
            again.duration = step
            file.mux(again)
    return out.getvalue()


def _stream(file: Any, codec: str, pixels: Pixels, options: dict[str, str]) -> Any:
    stream = file.add_stream(codec, rate=RATE, options=options)
    stream.height, stream.width = pixels.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.bit_rate = 4_000_000
    return stream


def sound() -> bytes:
    """An MP4 with sound alone."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=48_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48_000
        for packet in (*stream.encode(silence), *stream.encode()):
            file.mux(packet)
    return out.getvalue()
