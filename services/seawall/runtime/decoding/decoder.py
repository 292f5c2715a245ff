"""`Decoder`: where decoding happens, as the media stages see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from seawall.runtime.decoding.frames import Frame, iterate_frames, sample_frames
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.pixels import Mode, Pixels


class Decoder(Protocol):
    """Makes frames of untrusted bytes. Safe for threads."""

    def frames(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", most: int | None = None
    ) -> Iterator[Frame]:
        """Every frame as `iterate_frames` gives them, or the ``most`` that differ most, as `sample_frames`.

        A frame's pixels are valid until the next frame is asked for: copy what is to be kept.

        Raises:
            Unscannable: also after some frames.
            Retryable: the decoder itself is not to be had.
        """
        ...

    def measured(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", argument: str = ""
    ) -> Iterator[bytes]:
        """What the decoder's `Measure` says of every frame: pixels need not travel for that.

        Raises as `frames`.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Measure(Protocol):
    """Says in a few bytes what is wanted of a frame. It must not keep the frame."""

    def __call__(self, frame: Frame, argument: str) -> bytes:
        """Args:
        argument: as given to `Decoder.measured`.

        Returns at most `MAX_MEASURED` bytes.
        """
        ...


#: What a `Measure` may say of one frame, bytes.
MAX_MEASURED: Final = 32 * 1024


class InProcessDecoder:
    """Decodes in the calling thread: for files that are ours (examples, tests, lists made by hand)."""

    def __init__(self, limits: DecodingSettings, measure: Measure | None = None) -> None:
        self._limits = limits
        self._measure = measure

    def frames(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", most: int | None = None
    ) -> Iterator[Frame]:
        """See `Decoder.frames`."""
        return in_process(data, mode, min_side, declared, most, self._limits)

    def measured(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", argument: str = ""
    ) -> Iterator[bytes]:
        """See `Decoder.measured`."""
        if self._measure is None:
            raise ValueError("this decoder was made without a measure")
        for frame in in_process(data, mode, min_side, declared, None, self._limits):
            yield self._measure(frame, argument)

    def close(self) -> None:
        """See `Decoder.close`."""


def in_process(
    data: bytes,
    mode: Mode,
    min_side: int | None,
    declared: str,
    most: int | None,
    limits: DecodingSettings,
    into: Pixels | None = None,
) -> Iterator[Frame]:
    """What `Decoder.frames` gives, decoded here; ``into`` as `iterate_frames`."""
    if most is None:
        return iterate_frames(data, mode, min_side, declared, limits, into)
    return sample_frames(data, mode, most, min_side, declared, limits, into)
