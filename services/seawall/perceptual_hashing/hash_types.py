"""The types of hashes that a bank lists, what is refused as one, and the kind under which each is indexed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

#: Bytes of a digest of a file: it matches exactly or not at all.
DIGEST_BYTES: Final = {"sha256": 32, "sha1": 20, "md5": 16}
#: Bytes of the hashes that have one length.
HASH_BYTES: Final = {"pdq": 32, **DIGEST_BYTES}
#: Quality of a PDQ hash below which it says little (plain colour, gradients): the reference's own floor for matching.
MIN_QUALITY: Final = 50
#: Bits of a PDQ hash within which a match is as good as the picture itself: re-encoding and scaling move it by so much.
NEAR_EXACT: Final = 8
#: A video: the PDQ hashes of its frames, one after the other.
VPDQ: Final = "vpdq"
MAX_LISTED_FRAMES: Final = 4096
#: Names that no plug-in may have: those above, and those of measured hashes.
BUILT_IN: Final = frozenset({*HASH_BYTES, VPDQ, "pdq_512"})
#: Of a plug-in's hash.
MAX_PLUG_IN_BYTES: Final = 1024
_PLUG_IN: Final = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")


def is_plug_in(hash_type: str) -> bool:
    """Whether a plug-in may have this name."""
    return hash_type not in BUILT_IN and _PLUG_IN.match(hash_type) is not None


def fault(hash_type: str, length: int) -> str:
    """What is wrong with a listed hash of so many bytes; empty: nothing."""
    wanted = HASH_BYTES.get(hash_type)
    if wanted is not None:
        return "" if length == wanted else f"a {hash_type} hash has {wanted} bytes, this one {length}"
    if hash_type == VPDQ:
        if length and length % HASH_BYTES["pdq"] == 0 and length <= HASH_BYTES["pdq"] * MAX_LISTED_FRAMES:
            return ""
        return f"a vpdq hash has 32 bytes a frame, of 1 to {MAX_LISTED_FRAMES} frames, this one {length} bytes"
    if is_plug_in(hash_type):
        return "" if 0 < length <= MAX_PLUG_IN_BYTES else f"a plug-in's hash has 1 to {MAX_PLUG_IN_BYTES} bytes"
    return f"hash types are {', '.join(HASH_BYTES)}, {VPDQ}, or a plug-in's name"


def indexed(hash_type: str, value: bytes, pipeline: str) -> Iterator[tuple[str, bytes]]:
    """The kinds and values by which a listed hash is indexed: "pdq.full", "vpdq.512" (one a frame), "md5", and for a
    plug-in its name and the length: "photodna.144"."""
    if hash_type in DIGEST_BYTES:
        yield hash_type, value
    elif hash_type == "pdq":
        yield f"pdq.{pipeline}", value
    elif hash_type == VPDQ:
        for begin in range(0, len(value), 32):
            yield f"vpdq.{pipeline}", value[begin : begin + 32]
    else:
        # The length too, so that one wrong value costs itself and not the column.
        yield f"{hash_type}.{len(value)}", value


def is_pdq(kind: str) -> bool:
    """Whether a kind is searched by Hamming distance."""
    return kind.startswith(("pdq.", "vpdq."))
