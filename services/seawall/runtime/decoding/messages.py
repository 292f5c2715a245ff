"""What a service and its decoding workers say to each other: fixed structs, because a worker's word is not trusted.

The file's bytes lie at the beginning of its place in the shared memory, each frame's pixels behind them, from the next
page on.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final, NamedTuple

import numpy as np

from seawall.runtime.decoding.frames import Frame
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.pixels import Mode, Pixels, View
from seawall.runtime.decoding.unscannable import Reason, Unscannable

#: After a frame, the service asks for the next or ends the request.
NEXT: Final = b"n"
STOP: Final = b"s"

_REQUEST: Final = struct.Struct("<BIIQQ?")
_FRAME: Final = struct.Struct("<cBBBIII")
_MODES: Final[tuple[Mode, ...]] = ("gray", "rgb")
_VIEWS: Final[tuple[View, ...]] = ("white", "black", "opaque")
_REASONS: Final = frozenset(reason.value for reason in Reason)
#: A media type longer than this names nothing.
_MAX_DECLARED: Final = 255
_FRAME_KIND, _MEASURED_KIND, _REFUSED_KIND, _FAILED_KIND, _EMPTY_KIND = b"f", b"m", b"u", b"e", b"0"


class Request(NamedTuple):
    """One file to decode; see `Decoder.frames`."""

    mode: Mode
    min_side: int | None
    most: int | None
    #: Bytes of the file.
    length: int
    declared: str
    #: The argument of `Decoder.measured`; None: frames are wanted.
    argument: str | None = None
    #: Where in the shared memory the file is.
    begin: int = 0

    def encode(self, begin: int) -> bytes:
        """The message, for a file that is at ``begin``."""
        numbers = (_MODES.index(self.mode), self.min_side or 0, self.most or 0, begin, self.length)
        declared = self.declared[:_MAX_DECLARED].replace("\0", " ")
        texts = f"{declared}\0{self.argument or ''}".encode(errors="replace")
        return _REQUEST.pack(*numbers, self.argument is not None) + texts

    @classmethod
    def decode(cls, message: bytes) -> Request:
        mode, min_side, most, begin, length, measured = _REQUEST.unpack_from(message)
        declared, _, argument = message[_REQUEST.size :].decode(errors="replace").partition("\0")
        wanted = _MODES[mode], min_side or None, most or None
        return cls(*wanted, length, declared, argument if measured else None, begin)


class DecoderFailed(RuntimeError):
    """The worker met something it does not know: a bug of ours, not the file's fault."""


def place_bytes(limits: DecodingSettings) -> int:
    """What one file and one of its frames may need at most."""
    return frames_begin(0, limits.max_bytes) + 3 * max(limits.max_pixels, limits.max_jpeg_pixels)


def frames_begin(begin: int, length: int) -> int:
    """Where in the shared memory frames lie, behind a file of so many bytes at ``begin``."""
    # Near it: memory far from the beginning is given back after each file.
    return begin + -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


def put_frame(frame: Frame, last: bool, memory: Pixels) -> bytes:
    """Put the frame's pixels into ``memory``, unless they lie there already, and say so. ``last``: no other follows."""
    pixels = frame.pixels
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 0
    if pixels.ctypes.data != memory.ctypes.data:
        np.copyto(memory[: pixels.size].reshape(pixels.shape), pixels)
    return _FRAME.pack(_FRAME_KIND, last, _VIEWS.index(frame.view), channels, frame.number, height, width)


def refused(error: Unscannable) -> bytes:
    """The file is unscannable."""
    return _REFUSED_KIND + f"{error.reason}\0{error.detail}".encode()


def failed(error: Exception) -> bytes:
    """The worker failed; the error's message may quote the file and stays behind."""
    return _FAILED_KIND + type(error).__name__.encode()


def empty() -> bytes:
    """No frame at all."""
    return _EMPTY_KIND


def put_measured(measured: bytes, last: bool) -> bytes:
    """What was measured of a frame."""
    return _MEASURED_KIND + (b"1" if last else b"0") + measured


def take_frame(message: bytes, memory: Pixels) -> tuple[Frame, bool] | None:
    """The frame that a worker's message names, a read-only view of ``memory``, and whether it is the last; None: no
    frame is left.

    Raises:
        Unscannable: the worker says so.
        DecoderFailed: the worker says so, or its message is none.
    """
    if message[:1] == _FRAME_KIND and len(message) == _FRAME.size:
        _, last, view, channels, number, height, width = _FRAME.unpack(message)
        size = height * width * (channels or 1)
        if 0 < size <= memory.size and channels in (0, 3) and view < len(_VIEWS):
            pixels = memory[:size].reshape((height, width, 3) if channels else (height, width))
            pixels.flags.writeable = False
            return Frame(number, _VIEWS[view], pixels), bool(last)
    _take_none(message)
    return None


def take_measured(message: bytes) -> tuple[bytes, bool] | None:
    """What was measured of a frame, and whether it is the last; otherwise as `take_frame`."""
    if message[:1] == _MEASURED_KIND and len(message) >= 2:
        return message[2:], message[1:2] == b"1"
    _take_none(message)
    return None


def _take_none(message: bytes) -> None:
    """A message that holds no frame: nothing more to come, or a fault, which is raised."""
    kind = message[:1]
    if kind == _REFUSED_KIND:
        reason, _, detail = message[1:].decode(errors="replace").partition("\0")
        if reason in _REASONS:
            raise Unscannable(Reason(reason), detail)
    elif kind == _EMPTY_KIND:
        return
    elif kind == _FAILED_KIND:
        raise DecoderFailed(message[1:].decode("ascii", errors="replace"))
    raise DecoderFailed("a reply that is none")
