"""Protobuf's wire format, where writing messages field by field would cost more than all the rest (docs/adr/0013)."""

from __future__ import annotations

from functools import lru_cache

_LAST = [bytes((number,)) for number in range(0x80)]
_MORE = [bytes((number | 0x80,)) for number in range(0x80)]


def varint(number: int) -> bytes:
    """The base-128 encoding of a number that is not negative."""
    if number < 0x80:
        return _LAST[number]
    # Lengths and offsets come close together: what stands above their last seven bits is mostly known.
    return _MORE[number & 0x7F] + _above(number >> 7)


_above = lru_cache(maxsize=4096)(varint)


def is_one_field(message: bytes, field: int) -> bool:
    """Whether a message is one field with a length, and nothing before or after it."""
    if not message or message[0] != field << 3 | 2:
        return False
    size = shift = 0
    for at in range(1, min(len(message), 6)):
        byte = message[at]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return at + 1 + size == len(message)
        shift += 7
    return False


def tag(field: int, wire_type: int) -> bytes:
    """What stands before a field's value; wire types: 0 varint, 1 eight bytes, 2 with a length, 5 four bytes."""
    return varint(field << 3 | wire_type)
