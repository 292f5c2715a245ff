"""Every hash of a frame: as it is, without its borders, in every pipeline and variant, and by the plug-ins.

This runs where the frame was decoded, in a worker, so that no pixels travel: `make` is the decoder's measure, and
`read` takes what it says apart again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from seawall.perceptual_hashing import borders, pdq, signal_types
from seawall.perceptual_hashing.bank_card import Pipeline
from seawall.perceptual_hashing.measured import PDQ_TYPES, STRIPPED
from seawall.perceptual_hashing.reduction import prepare
from seawall.perceptual_hashing.signal_types import SignalType
from seawall.runtime.decoding import Frame, Pixels

#: `make`, as `decoding.isolated.make_decoder` wants it named.
MEASURE: Final = "seawall.perceptual_hashing.hashing:make"
#: Lengths of the type and the name, quality, rows, bytes of a row.
_HEAD: Final = struct.Struct("<BBBBH")


class Hashed(NamedTuple):
    """The hashes of one type of one picture of a frame."""

    #: A value of PDQ_TYPES, or a plug-in's name.
    hash_type: str
    #: Which picture: "" the still as it is; "frame-5", "alpha-black", "stripped", joined by "/".
    picture: str
    #: 0 to 100.
    quality: int
    #: uint8 (n, bytes): n is 8 for PDQ, in the order of `pdq.VARIANTS`, or 1: the picture as it is.
    values: Pixels


class Hasher:
    """A `decoding.Measure`; its argument is the PDQ pipelines that are wanted, joined by commas. Safe for threads."""

    def __init__(self, *, variants: bool, strip_borders: bool, plug_ins: Sequence[SignalType] = ()) -> None:
        self._pdq = pdq.hash_variants if variants else pdq.hash_original
        self._strip_borders = strip_borders
        self._plug_ins = tuple(plug_ins)

    def __call__(self, frame: Frame, argument: str) -> bytes:
        """What `read` reads."""
        pipelines: list[Any] = argument.split(",")
        found = bytearray()
        for name, picture in self._pictures(frame):
            for hashed in self._hashes(name, picture, pipelines):
                kind, label = hashed.hash_type.encode(), hashed.picture.encode()
                found += _HEAD.pack(len(kind), len(label), hashed.quality, *hashed.values.shape)
                found += kind + label + hashed.values.tobytes()
        return bytes(found)

    def _pictures(self, frame: Frame) -> Iterator[tuple[str, Pixels]]:
        parts = []
        if frame.number:
            parts.append(f"frame-{frame.number}")
        if frame.view != "white":
            parts.append(f"alpha-{frame.view}")
        yield "/".join(parts), frame.pixels
        if self._strip_borders:
            inner = borders.strip(frame.pixels)
            if inner is not None:
                yield "/".join([*parts, STRIPPED]), inner

    def _hashes(self, name: str, gray: Pixels, pipelines: Sequence[Pipeline]) -> Iterator[Hashed]:
        wanted = {*pipelines, *(plug_in.pipeline for plug_in in self._plug_ins)}
        sizes = {pipeline: prepare(gray, pipeline) for pipeline in wanted}
        before: tuple[Pixels, pdq.PdqVariants] | None = None
        for pipeline in pipelines:
            # Pictures up to 512 pixels are the same in both pipelines.
            if before is None or before[0] is not sizes[pipeline]:
                before = sizes[pipeline], self._pdq(sizes[pipeline])
            yield Hashed(PDQ_TYPES[pipeline], name, before[1].quality, before[1].values)
        for plug_in in self._plug_ins:
            picture = np.ascontiguousarray(sizes[plug_in.pipeline]).view()
            picture.flags.writeable = False
            value, quality = plug_in.hash(picture)
            if len(value) != plug_in.hash_bytes:
                raise ValueError("a plug-in's hash has the wrong length")
            yield Hashed(plug_in.name, name, quality, np.frombuffer(value, np.uint8)[None])


def make(options: dict[str, Any]) -> Hasher:
    """The hasher, compiled.

    Args:
        options: ``variants``, ``strip_borders``, and ``signal_types``, names of plug-ins.

    Raises Fatal as `signal_types.load`.
    """
    plug_ins = signal_types.load(options["signal_types"])
    hasher = Hasher(variants=options["variants"], strip_borders=options["strip_borders"], plug_ins=plug_ins)
    blank = np.zeros((96, 96), np.uint8)
    blank[8:-8, 8:-8] = 255
    hasher(Frame(0, "white", blank), "full,512")
    return hasher


def read(measured: bytes) -> Iterator[Hashed]:
    """What a hasher said of one frame. Raises ValueError if no hasher said it."""
    offset = 0
    while offset < len(measured):
        try:
            kind, label, quality, rows, width = _HEAD.unpack_from(measured, offset)
        except struct.error:
            raise ValueError("no hashes") from None
        offset += _HEAD.size
        end = offset + kind + label + rows * width
        if end > len(measured) or not rows * width or quality > 100:
            raise ValueError("no hashes")
        names = measured[offset : offset + kind + label].decode()
        values = np.frombuffer(measured, np.uint8, rows * width, offset + kind + label).reshape(rows, width)
        yield Hashed(names[:kind], names[kind:], quality, values)
        offset = end
