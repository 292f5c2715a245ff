"""What every exchange says, in one form: pages of records, and what of them could not be read."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from seawall.core.errors import Poison
from seawall.perceptual_hashing.hash_types import HASH_BYTES, MAX_LISTED_FRAMES, MIN_QUALITY, VPDQ, fault

#: Where a pull goes on: JSON values only, made by an exchange and understood by it alone.
Checkpoint = Mapping[str, Any]

_MAX_ENTRY_ID: Final = 128


class ListedHash(NamedTuple):
    """One hash of a listed file."""

    #: See `hash_types`.
    hash_type: str
    value: bytes


class ExchangeRecord(NamedTuple):
    """What an exchange says of one listed file now; it replaces what was said before."""

    entry_id: str
    #: Empty when the exchange lists only hashes that no bank can hold.
    hashes: tuple[ListedHash, ...]
    #: Withdrawn: the entry goes out of the bank.
    deleted: bool = False
    #: The exchange's own class for it: "A1". For a person; the bank's category is what rules see.
    note: str = ""


class Refused(NamedTuple):
    """A page or record that could not be read. Never its content: a digest, so that the exchange can be asked."""

    #: "page", "record" or "hash".
    what: str
    #: Machine-readable: "BAD_XML", "BAD_LENGTH", …
    reason: str
    #: SHA-256 of the bytes as they came, hex.
    digest: str
    #: Where: the page's place in the exchange, or an entry's id. Never a hash.
    where: str


class Page(NamedTuple):
    """A piece of an exchange's list, and how to go on after it."""

    records: Sequence[ExchangeRecord]
    refused: Sequence[Refused]
    #: To be kept together with the records.
    checkpoint: Checkpoint
    #: True for the last page of this pull.
    last: bool
    #: Records that the exchange seems still to have, where it says so.
    remaining: int | None = None
    #: A list that starts afresh: what is in the bank and in none of these pages was withdrawn unseen.
    afresh: bool = False


class Vote(NamedTuple):
    """Our opinion of one entry, for the exchange it came from."""

    entry_id: str
    hashes: tuple[ListedHash, ...]
    up: bool
    #: The exchange's own name or id of a reason for a vote down, where it asks for one.
    reason: str = ""


class Exchange(Protocol):
    """One exchange. Blocking; not for concurrent use."""

    #: "ncmec", …
    kind: str

    def pages(self, checkpoint: Checkpoint | None) -> Iterator[Page]:
        """Everything that changed since the checkpoint, from the start if None.

        What cannot be read is refused and passed over. Raises Retryable when the exchange is away or asks for a longer
        wait than is allowed, Fatal when a person must mend something (credentials, TLS, an exchange that is broken).
        """
        ...

    def vote(self, vote: Vote) -> None:
        """Send a vote. To send it twice changes nothing.

        Raises Poison when the exchange cannot take this vote, Retryable and Fatal as `pages`.
        """
        ...


def digest_of(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()


def entry_id_of(*parts: str) -> str:
    """An exchange's own id as an entry's id: percent-encoded with ":" for "%", parts joined by ".", reversibly.

    Raises Poison("BAD_ID") when it is empty or too long.
    """
    if not all(parts):
        raise Poison("BAD_ID", "the record has no id")
    quoted = ".".join(_quote(part) for part in parts)
    if len(quoted) > _MAX_ENTRY_ID:
        raise Poison("BAD_ID", f"the record's id is longer than {_MAX_ENTRY_ID} characters")
    return quoted


def parts_of(entry_id: str) -> list[str]:
    """What `entry_id_of` was given."""
    return [urllib.parse.unquote(part.replace(":", "%")) for part in entry_id.split(".")]


def listed_hash(hash_type: str, text: str) -> ListedHash:
    """A hash from its hex digits; a video also as python-threatexchange writes it, see `_frames`.

    Raises Poison: ``BAD_LENGTH``, ``NOT_HEX``, ``BAD_VIDEO``.
    """
    digits = text.strip()
    if hash_type == VPDQ and digits.startswith("["):
        return ListedHash(VPDQ, _frames(digits))
    length = HASH_BYTES.get(hash_type)
    if length is not None and len(digits) != 2 * length:
        raise Poison("BAD_LENGTH", f"a {hash_type} hash has {2 * length} hex digits, this one {len(digits)}")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        raise Poison("NOT_HEX", f"a {hash_type} hash has hex digits only") from None
    if 2 * len(value) != len(digits):  # bytes.fromhex skips blanks
        raise Poison("NOT_HEX", f"a {hash_type} hash has hex digits only")
    if wrong := fault(hash_type, len(value)):
        raise Poison("BAD_LENGTH", wrong)
    return ListedHash(hash_type, value)


def _frames(text: str) -> bytes:
    """The hashes in a JSON list of "hex,quality,seconds", one a frame; those of poor quality say nothing."""
    try:
        rows = json.loads(text)
        if not isinstance(rows, list) or len(rows) > MAX_LISTED_FRAMES:
            raise ValueError
        frames = []
        for row in rows:
            value, quality, _ = str(row).split(",")
            if int(quality) >= MIN_QUALITY:
                frames.append(listed_hash("pdq", value).value)
    except ValueError:
        raise Poison(
            "BAD_VIDEO", f'a vpdq hash is hex digits, or a list of at most {MAX_LISTED_FRAMES} "hex,quality,seconds"'
        ) from None
    if not frames:
        raise Poison("BAD_VIDEO", f"none of its frames has a quality of {MIN_QUALITY} or more")
    return b"".join(frames)


def _quote(part: str) -> str:
    # "." separates the parts, "~" is no character of an entry's id, and quote leaves both as they are.
    quoted = urllib.parse.quote(part, safe="")
    return quoted.replace("~", "%7E").replace(".", "%2E").replace("%", ":")
