"""`Decoder`: where decoding happens, as the media stages see it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, Generic, Protocol, TypeVar

from seawall.runtime.decoding.frames import Frame, iterate_frames, sample_frames
from seawall.runtime.decoding.limits import DecodingSettings
from seawall.runtime.decoding.pixels import Mode, Pixels

Item = TypeVar("Item", covariant=True)
Made = TypeVar("Made")


class Decoding(Protocol[Item]):
    """A file that is being decoded: what comes of its frames, one after the other. For one thread.

    What is not read to its end must be closed. Reading raises as `Decoder.frames`.
    """

    @property
    def due(self) -> float:
        """Monotonic instant until which the next item is waited for."""
        ...

    def late(self) -> bool:
        """`due` has passed. False: it goes on elsewhere, or waits on; True: reading it will not wait any more."""
        ...

    def fileno(self) -> int:
        """A descriptor that can be read when the next item is there; -1: there is nothing to wait for."""
        ...

    def ready(self) -> bool:
        """The descriptor can be read; whether that is because the next item is there."""
        ...

    @property
    def room(self) -> bool:
        """Whether its thread may begin more than `workers.BEGUN`, this one being the last begun."""
        ...

    def close(self) -> None:
        """Free what it holds. May be called twice."""
        ...

    def __iter__(self) -> Iterator[Item]: ...

    def __next__(self) -> Item: ...


class Decoder(Protocol):
    """Makes frames of untrusted bytes. Safe for threads."""

    def frames(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", most: int | None = None
    ) -> Decoding[Frame]:
        """Every frame as `iterate_frames` gives them, or the ``most`` that differ most, as `sample_frames`.

        Decoding begins now, where it has a process of its own. A frame's pixels are valid until the next frame is
        asked for or the decoding closed: copy what is to be kept.

        Raises:
            Unscannable: also after some frames.
            Retryable: the decoder itself is not to be had.
        """
        ...

    def measured(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", argument: str = ""
    ) -> Decoding[bytes]:
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
    ) -> Decoding[Frame]:
        """See `Decoder.frames`."""
        return _Here(in_process(data, mode, min_side, declared, most, self._limits))

    def measured(
        self, data: bytes, mode: Mode, min_side: int | None = None, declared: str = "", argument: str = ""
    ) -> Decoding[bytes]:
        """See `Decoder.measured`."""
        measure = self._measure
        if measure is None:
            raise ValueError("this decoder was made without a measure")
        frames = in_process(data, mode, min_side, declared, None, self._limits)
        return _Here(measure(frame, argument) for frame in frames)

    def close(self) -> None:
        """See `Decoder.close`."""


class _Here(Generic[Made]):
    """A `Decoding` that does its work when it is asked."""

    due = 0.0
    room = False

    def __init__(self, items: Generator[Made, None, None]) -> None:
        self._items = items

    def fileno(self) -> int:
        return -1

    def late(self) -> bool:
        return True

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self._items.close()

    def __iter__(self) -> Iterator[Made]:
        return self

    def __next__(self) -> Made:
        return next(self._items)


def in_process(
    data: bytes,
    mode: Mode,
    min_side: int | None,
    declared: str,
    most: int | None,
    limits: DecodingSettings,
    into: Pixels | None = None,
) -> Generator[Frame, None, None]:
    """What `Decoder.frames` gives, decoded here; ``into`` as `iterate_frames`."""
    if most is None:
        return iterate_frames(data, mode, min_side, declared, limits, into)
    return sample_frames(data, mode, most, min_side, declared, limits, into)
