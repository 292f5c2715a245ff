"""Protobuf's wire format, where writing messages field by field would cost more than all the rest (docs/adr/0013)."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """The base-128 encoding of a number that is not negative."""
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag(field: int, wire_type: int) -> bytes:
    """What stands before a field's value; wire types: 0 varint, 1 eight bytes, 2 with a length, 5 four bytes."""
    return varint(field << 3 | wire_type)
