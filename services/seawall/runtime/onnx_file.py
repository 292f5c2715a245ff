"""What a model file refers to, read from its protobuf wire format.

The ``onnx`` package is not a dependency of the rooms, and a model runtime would already have opened the files that this
check is there to refuse. Field numbers are those of onnx.proto (ONNX IR), which never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from seawall.core.errors import Fatal

# Subgraphs nest (If, Loop, Scan); real models stay far below this.
_MAX_DEPTH = 64
#: Field of a Node that names its operator.
_OP_TYPE = 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# message → field number → what it holds: the name of a nested message, or the name under which the walk yields it.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "Opset", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 9: "Opset", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "External"},
    "External": {},
    "Opset": {},
}


class References(NamedTuple):
    """Operator sets by domain ("" is ONNX's own), and the relative locations of tensor data outside the file."""

    opsets: dict[str, int]
    external_locations: frozenset[str]
    #: Names of the operators of all graphs, without their domains.
    operators: frozenset[str] = frozenset()


def references(data: bytes, name: str) -> References:
    """Read an ONNX file's references without loading it.

    Args:
        data: the file.
        name: the file's name, for the error.

    Raises:
        Fatal: ``BAD_MODEL``, not a well-formed ONNX file.
    """
    opsets: dict[str, int] = {}
    locations: set[str] = set()
    operators: set[str] = set()
    pending: list[tuple[str, memoryview, int]] = [("Model", memoryview(data), 0)]
    graphs = 0
    try:
        while pending:
            kind, view, depth = pending.pop()
            if depth > _MAX_DEPTH:
                raise ValueError("nested too deeply")
            graphs += kind == "Graph"
            if kind == "Opset":
                fields = {number: value for number, value in _fields(view)}
                opsets[_text(fields.get(1, b""))] = int(fields.get(2, 0))
            elif kind == "External":
                entry = {number: _text(value) for number, value in _fields(view)}
                if entry.get(1) == "location":
                    locations.add(entry.get(2, ""))
            else:
                wanted = _FIELDS[kind]
                for number, value in _fields(view):
                    if number in wanted and isinstance(value, memoryview):
                        pending.append((wanted[number], value, depth + 1))
                    elif number == _OP_TYPE and kind == "Node":
                        operators.add(_text(value))
    except (ValueError, IndexError) as error:
        raise Fatal("BAD_MODEL", f"{name} is not a well-formed ONNX file ({error}): export it again") from error
    if not graphs or not opsets:
        raise Fatal("BAD_MODEL", f"{name} holds no graph or names no operator set: export it again")
    return References(opsets, frozenset(locations), frozenset(operators))


def _text(value: int | memoryview | bytes) -> str:
    if isinstance(value, int):
        raise ValueError("a number where text belongs")
    return bytes(value).decode("utf-8")


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position, end = 0, len(view)
    while position < end:
        tag, position = _varint(view, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(view, position)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, position = _varint(view, position)
        elif wire == _FIXED64:
            size = 8
        elif wire == _FIXED32:
            size = 4
        else:
            raise ValueError("unknown wire type")
        if size > end - position:
            raise ValueError("truncated")
        yield tag >> 3, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("varint too long")
