"""Why a file cannot be scanned."""

from __future__ import annotations

from enum import StrEnum

from seawall.core.errors import Poison


class Reason(StrEnum):
    """Machine-readable reasons; they travel in ``ItemResult.reason``."""

    #: The first bytes are none of the formats on the allow-list (no bytes at all included).
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    #: The sender declared something that is no picture, or for a video no video: a viewer would show other content than
    #: was scanned.
    TYPE_MISMATCH = "TYPE_MISMATCH"
    #: Another file (an archive, a document, a second picture) rides behind or inside the picture.
    POLYGLOT = "POLYGLOT"
    #: More bytes than are decoded.
    TOO_LARGE = "TOO_LARGE"
    #: The header claims more pixels, or a longer side, than are decoded. Checked before any pixel is.
    TOO_MANY_PIXELS = "TOO_MANY_PIXELS"
    #: More frames, or more pixels in all frames together, than are looked at.
    TOO_MANY_FRAMES = "TOO_MANY_FRAMES"
    #: A progressive JPEG with more passes than any encoder writes: each costs a pass over the whole picture.
    TOO_MANY_SCANS = "TOO_MANY_SCANS"
    #: The file ends before its picture does.
    TRUNCATED = "TRUNCATED"
    #: The file contradicts its format, or itself.
    CORRUPT = "CORRUPT"
    #: A video that claims to be longer, or is longer, than is looked at.
    TOO_LONG = "TOO_LONG"
    #: A video in a codec that is not on the allow-list.
    UNKNOWN_CODEC = "UNKNOWN_CODEC"
    #: A video, and the extra `video` (`pip install seawall[video]`) is not installed.
    VIDEO_EXTRA_MISSING = "VIDEO_EXTRA_MISSING"
    #: Decoding it takes more memory than a worker has.
    TOO_MUCH_MEMORY = "TOO_MUCH_MEMORY"
    #: Decoding it takes more time than a worker has.
    TOO_SLOW = "TOO_SLOW"
    #: The decoder crashed over it.
    DECODER_DIED = "DECODER_DIED"


class Unscannable(Poison):
    """The file cannot be read safely or completely. It is never clean: a person decides."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason.value, detail)


def truncated(what: str) -> Unscannable:
    """The file ends within ``what``."""
    return Unscannable(Reason.TRUNCATED, f"the file ends within {what}: send it whole")


def corrupt(what: str) -> Unscannable:
    """The file breaks its format at ``what``."""
    return Unscannable(Reason.CORRUPT, f"{what}: send a valid file")
