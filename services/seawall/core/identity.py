"""Ids are derived, not random: a replay writes the same ids, so consumers can be idempotent.

Each id is the first 32 hex digits (128 bits) of SHA-256 over the kind and the parts, separated by U+001F, which the
grammar of ids does not allow.
"""

from __future__ import annotations

import hashlib
import re

from seawall.core.errors import Poison

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
_ITEM_ID = re.compile(r"[a-z0-9/_-]{1,64}\Z")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def signal_id(generation_id: str, attempt: int, stage: str) -> str:
    """The id of a stage's signal for one generation attempt, 32 hex digits."""
    return _digest(f"signal\x1f{generation_id}\x1f{attempt}\x1f{stage}")


def retroactive_signal_id(
    generation_id: str, attempt: int, partition: int, offset: int, bank: str, entry_id: str
) -> str:
    """The id of the signal that a bank's new entry causes for a generation record measured before, 32 hex digits.

    Of the record's coordinates as well: of an attempt that was sent twice only one record is decided, and a signal that
    speaks of the other is absorbed.
    """
    parts = (generation_id, attempt, partition, offset, bank, entry_id)
    return _digest("\x1f".join(("retroactive_signal", *map(str, parts))))


def decision_id(generation_id: str, attempt: int, policy_digest: str) -> str:
    """The id of the joint decision for one generation attempt under one policy, 32 hex digits."""
    return _digest(f"decision\x1f{generation_id}\x1f{attempt}\x1f{policy_digest}")


def amendment_id(signal: str, topic: str, partition: int, offset: int, policy_digest: str) -> str:
    """The id of the amendment that the late signal at these coordinates caused, 32 hex digits."""
    return _digest(f"amendment\x1f{signal}\x1f{topic}\x1f{partition}\x1f{offset}\x1f{policy_digest}")


def dead_letter_id(room: str, topic: str, partition: int, offset: int) -> str:
    """The id of the dead letter that a room wrote for the record at these coordinates, 32 hex digits."""
    return _digest(f"dead_letter\x1f{room}\x1f{topic}\x1f{partition}\x1f{offset}")


def override_id(generation_id: str, by: str, made_unix_nano: int, outcome: int) -> str:
    """The id of what a person said of a generation at one time, 32 hex digits."""
    return _digest(f"override\x1f{generation_id}\x1f{by}\x1f{made_unix_nano}\x1f{outcome}")


def unkeyed_generation_id(topic: str, partition: int, offset: int) -> str:
    """The generation id of a record whose own id cannot be read: it names the coordinates."""
    return f"undecodable:{topic}:{partition}:{offset}"


def is_id(value: str) -> bool:
    """True if ``value`` is a well-formed id, ``[A-Za-z0-9._:-]{1,128}``."""
    return _ID.match(value) is not None


def bad_id(field: str) -> Poison:
    """The error about a field that holds no well-formed id."""
    return Poison("BAD_ID", f"{field} must match [A-Za-z0-9._:-]{{1,128}}: send a pseudonymous id, not free text")


def check_item_id(field: str, value: str) -> None:
    """Raise Poison unless ``value`` is a well-formed item id, ``[a-z0-9/_-]{1,64}``."""
    if not _ITEM_ID.match(value):
        raise Poison("BAD_ITEM_ID", f'{field} must match [a-z0-9/_-]{{1,64}}, for example "output/0"')
