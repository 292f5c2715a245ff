"""Takes a condition apart into alternatives: what must hold together for it to hold (disjunctive normal form).

An alternative is comparisons of scores with numbers, which are intervals, and everything else, which is opaque: equal
if it is written the same. CEL's `&&` and `||` are Kleene's (false && error is false), so the parts say exactly when the
whole is false. From this follow

* rules that can never decide: sound, not complete; what only a deeper look could show to be dead passes;
* what must be seen before a rule can hold at all (``watch``).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Tree = tuple[Any, ...]
#: More alternatives than this are not looked at.
_MAX_ALTERNATIVES = 128
_COMPARISONS: Final = {"_<_": "<", "_<=_": "<=", "_>_": ">", "_>=_": ">=", "_==_": "=="}
_NEGATED: Final = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_MIRRORED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}


@dataclass
class Alternative:
    """Things that must all hold."""

    #: Label → (low, high); scores lie in [0, 1]. Strict bounds are the next float.
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    opaque: frozenset[tuple[bool, Tree]] = frozenset()

    def possible(self) -> bool:
        """False if it contradicts itself, or asks for a score outside 0 to 1."""
        if any(low > high for low, high in self.scores.values()):
            return False
        return not any((not wanted, tree) in self.opaque for wanted, tree in self.opaque)

    def implies(self, other: Alternative) -> bool:
        """True if whenever this holds, the other does."""
        for label, (low, high) in other.scores.items():
            ours = self.scores.get(label, (0.0, 1.0))
            if ours[0] < low or ours[1] > high:
                return False
        return other.opaque <= self.opaque


Alternatives = Sequence[Alternative]


def alternatives(checked: bytes, thresholds: Mapping[str, float]) -> Alternatives | None:
    """The alternatives of a checked condition; None if there are too many."""
    tree = _decode(checked)
    return None if tree is None else _expand(tree, thresholds, True)


def always_answered_by(of: Alternatives, by: Alternatives) -> bool:
    """True if whenever ``of`` holds, ``by`` holds too."""
    return all(any(one.implies(other) for other in by) for one in of)


def needs(tree: Tree) -> str | None:
    """The field of the evidence that must not be empty for an opaque part to be true: "matches" or "held_matches"."""
    match tree:
        case ("call", "_>_" | "_!=_", ("call", "size", ("select", ("ident", "evidence"), str(name))), ("const", 0)):
            found = name
        # exists(): over nothing it is what it begins with, false.
        case (
            "comprehension",
            _,
            str(accumulator),
            ("select", ("ident", "evidence"), str(name)),
            ("const", False),
            *_,
            ("ident", str(result)),
        ) if result == accumulator:
            found = name
        case _:
            return None
    return found if found in ("matches", "held_matches") else None


# ---- from the tree to alternatives -----------------------------------------------------------------------------------


def _expand(tree: Tree, thresholds: Mapping[str, float], wanted: bool) -> list[Alternative] | None:
    match tree:
        case ("const", bool(value)):
            return [Alternative()] if value is wanted else []
        case ("call", "!_", operand):
            return _expand(operand, thresholds, not wanted)
        case ("call", "_&&_" | "_||_" as operator, *operands):
            parts = [_expand(operand, thresholds, wanted) for operand in operands]
            if any(part is None for part in parts):
                return None
            if (operator == "_||_") is wanted:
                joined = [one for part in parts for one in part or ()]
                return joined if len(joined) <= _MAX_ALTERNATIVES else None
            product = [Alternative()]
            for part in parts:
                product = [_both(a, b) for a in product for b in part or ()]
                if len(product) > _MAX_ALTERNATIVES:
                    return None
            return product
        case ("call", operator, left, right) if operator in _COMPARISONS:
            compared = _comparison(_COMPARISONS[operator], left, right, thresholds, wanted)
            if compared is not None:
                return compared
    return [Alternative(opaque=frozenset({(wanted, tree)}))]


def _comparison(
    operator: str, left: Tree, right: Tree, thresholds: Mapping[str, float], wanted: bool
) -> list[Alternative] | None:
    a, b = _number(left, thresholds), _number(right, thresholds)
    if a is not None and b is not None:
        holds = {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b}[operator]
        return [Alternative()] if holds is wanted else []
    label, value = _label(left), b
    if label is None:
        label, value, operator = _label(right), a, _MIRRORED[operator]
    if label is None or value is None:
        return None
    if not wanted:
        if operator == "==":
            return None
        operator = _NEGATED[operator]
    low, high = 0.0, 1.0
    if operator in (">=", "=="):
        low = value
    if operator in ("<=", "=="):
        high = value
    if operator == ">":
        low = math.nextafter(value, math.inf)
    if operator == "<":
        high = math.nextafter(value, -math.inf)
    return [Alternative(scores={label: (max(low, 0.0), min(high, 1.0))})]


def _both(a: Alternative, b: Alternative) -> Alternative:
    scores = dict(a.scores)
    for label, (low, high) in b.scores.items():
        before = scores.get(label, (0.0, 1.0))
        scores[label] = (max(low, before[0]), min(high, before[1]))
    return Alternative(scores, a.opaque | b.opaque)


def _label(tree: Tree) -> str | None:
    match tree:
        case ("call", "_[_]", ("select", ("ident", "evidence"), "score"), ("const", str(label))):
            return label
    return None


def _number(tree: Tree, thresholds: Mapping[str, float]) -> float | None:
    match tree:
        case ("call", "_[_]", ("ident", "threshold"), ("const", str(name))):
            return thresholds.get(name)
        case ("select", ("ident", "threshold"), str(name)):
            return thresholds.get(name)
        case ("const", bool()):
            return None
        case ("const", float(value)) | ("const", int(value)):
            return float(value)
    return None


# ---- cel.expr.CheckedExpr in wire format -----------------------------------------------------------------------------
# The runtime ships no Python classes for it; what is needed are a few fields of cel.expr.Expr (cel-spec, syntax.proto).


def _decode(serialized: bytes) -> Tree | None:
    """The tree of a google.protobuf.Any that holds a CheckedExpr; None if there is none."""
    for value in _all(serialized, 2):
        for expression in _all(value, 4):
            return _expr(expression)
    return None


def _expr(data: bytes) -> Tree:
    for number, value in _fields(data):
        if number == 3:
            return ("const", _const(value))
        if number == 4:
            return ("ident", _text(value, 1))
        if number == 5:
            operand = [_expr(one) for one in _all(value, 1)]
            kind = "has" if _all(value, 3) else "select"
            return (kind, *operand, _text(value, 2))
        if number == 6:
            target = [_expr(one) for one in _all(value, 1)]
            return ("call", _text(value, 2), *target, *(_expr(one) for one in _all(value, 3)))
        if number == 7:
            return ("list", *(_expr(one) for one in _all(value, 1)))
        if number == 9:
            parts = [_expr(one) for part in (2, 4, 5, 6, 7) for one in _all(value, part)]
            return ("comprehension", _text(value, 1), _text(value, 3), *parts)
        if number != 2:
            # A message literal: never equal to another.
            return ("other", data)
    return ("other", data)


def _const(data: bytes) -> Any:
    for number, value in _fields(data):
        if number == 2:
            return bool(value)
        if number in (3, 4):
            return value if number == 4 or value < 1 << 63 else value - (1 << 64)
        if number == 5:
            return struct.unpack("<d", value)[0]
        if number == 6:
            return value.decode("utf-8")
        return (number, value)
    return None


def _text(data: bytes, wanted: int) -> str:
    return next((value.decode("utf-8") for value in _all(data, wanted)), "")


def _all(data: bytes, wanted: int) -> list[Any]:
    return [value for number, value in _fields(data) if number == wanted]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        else:
            size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            yield number, data[at : at + size]
            at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
