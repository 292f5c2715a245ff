"""A measured hash as it travels in a signal: which picture of the item it is of, and its turns.

A PDQ hash says which of 16 x 16 frequencies are above their median. Exchanging the picture's axes exchanges theirs, so
four of the eight turns follow from the other four bit by bit, exactly. Mirroring does not follow from a hash: it moves
the points at which the picture is sampled, and the median; guessed from the upright hash it is 16 to 24 bits off at the
median, and up to 48. So four hashes travel, and stand for eight (docs/adr/0034).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from seawall.api.signal.v1 import signal_pb2
from seawall.perceptual_hashing.bank_card import Pipeline

#: ``ItemHash.hash_type`` of PDQ by pipeline.
PDQ_TYPES: Final[dict[Pipeline, str]] = {"full": "pdq", "512": "pdq_512"}
#: Marks the picture inside its borders, at the end of its name.
STRIPPED: Final = "stripped"
#: The turns whose hashes travel: the value itself, and those in ``ItemHash.turned``.
SENT_TURNS: Final = ("original", "mirror", "flip", "rot180")
#: What each of them becomes when the axes are exchanged.
EXCHANGED_TURNS: Final = ("transpose", "rot90", "rot270", "transverse")

_BYTES: Final = 32


def is_pdq(hash_type: str) -> bool:
    """Whether it is the type of a measured PDQ hash."""
    return hash_type in PDQ_TYPES.values()


def sent_turns(measured: signal_pb2.ItemHash) -> npt.NDArray[np.uint8]:
    """The PDQ hashes of SENT_TURNS, uint8 (4, 32); the first alone, (1, 32), where no others were measured."""
    whole = len(measured.turned) == _BYTES * (len(SENT_TURNS) - 1)
    joined = measured.value[:_BYTES] + (measured.turned if whole else b"")
    return np.frombuffer(joined, np.uint8).reshape(-1, _BYTES)


def all_turns(measured: signal_pb2.ItemHash) -> list[tuple[str, bytes]]:
    """Every turn that is known of a PDQ hash, by name: eight, or the upright one and that with its axes exchanged."""
    sent = sent_turns(measured)
    pairs = [*zip(SENT_TURNS, sent, strict=False), *zip(EXCHANGED_TURNS, exchanged(sent), strict=False)]
    return [(turn, value.tobytes()) for turn, value in pairs]


def exchanged(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The hashes of the same pictures with their axes exchanged, uint8 (n, 32)."""
    bits = np.unpackbits(values, axis=1).reshape(-1, 16, 16)
    return np.packbits(bits.transpose(0, 2, 1).reshape(-1, 256), axis=1)


def name(variant: str, picture: str) -> str:
    """What a match is said to be of: "mirror/frame-5/stripped"."""
    return f"{variant}/{picture}" if picture else variant


def frame_of(picture: str) -> str:
    """The frame that a picture is of, whatever was done to it: "frame-5"; "" for the first, and for a still."""
    first = picture.partition("/")[0]
    return first if first.startswith("frame-") else ""


def spread(pictures: Sequence[signal_pb2.ItemHash], most: int) -> list[signal_pb2.ItemHash]:
    """At most so many of them, from the first to the last at even steps."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[k * (len(pictures) - 1) // (most - 1)] for k in range(most)]
