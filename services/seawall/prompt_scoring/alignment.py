"""Maps a place in a view back to the text it came from.

A view is made by a few steps, each from one string to the next. A step keeps what it was given and computes nothing
until somebody asks where a hit stands, which is rare. Ranges are half open and count characters, but for `Worded`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from seawall.prompt_scoring.characters import clusters

Span = tuple[int, int]


class Step(Protocol):
    """One step of a view's making."""

    def back(self, start: int, end: int) -> Span:
        """The range of the step's input that its output's ``start:end`` was made from."""
        ...


class Edit(NamedTuple):
    """``text[start:end]`` becomes ``replacement``."""

    start: int
    end: int
    replacement: str


def apply(text: str, edits: Sequence[Edit]) -> str:
    """``text`` with every edit done. Edits are in order and do not overlap."""
    parts: list[str] = []
    at = 0
    for start, end, replacement in edits:
        parts += (text[at:start], replacement)
        at = end
    parts.append(text[at:])
    return "".join(parts)


class Edited:
    """`apply`. A replacement comes from all of what it replaced."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def back(self, start: int, end: int) -> Span:
        return self._at(start)[0], self._at(max(end - 1, start))[1]

    def _at(self, position: int) -> Span:
        """The input range behind one character of the output."""
        shift = 0
        for edit in self._edits:
            begin = edit.start + shift
            if position < begin:
                break
            if position < begin + len(edit.replacement):
                return edit.start, edit.end
            shift += len(edit.replacement) - (edit.end - edit.start)
        return position - shift, position - shift + 1


class EditedLater:
    """`Edited`, by edits that are looked for when they are asked for."""

    def __init__(self, source: str, edits: Callable[[str], Sequence[Edit]]) -> None:
        self._source = source
        self._edits = edits

    def back(self, start: int, end: int) -> Span:
        return Edited(self._edits(self._source)).back(start, end)


class Folded:
    """``source.translate(table)``."""

    def __init__(self, source: str, table: Mapping[int, str | None]) -> None:
        self._source = source
        self._table = table

    def back(self, start: int, end: int) -> Span:
        at = 0
        first = last = len(self._source)
        for index, char in enumerate(self._source):
            length = len(self._table[ord(char)] or "")
            if at <= start < at + length:
                first = index
            if at < end <= at + length:
                last = index + 1
                break
            at += length
        return min(first, last), last


class Composed:
    """``unicodedata.normalize("NFC", source)``. A character and its marks stay together."""

    def __init__(self, source: str) -> None:
        self._source = source

    def back(self, start: int, end: int) -> Span:
        at = 0
        first, last = 0, len(self._source)
        found = False
        for cluster in clusters().finditer(self._source):
            length = len(unicodedata.normalize("NFC", cluster[0]))
            if not found and at <= start < at + length:
                first, found = cluster.start(), True
            if at < end <= at + length:
                last = cluster.end()
                break
            at += length
        return first, max(first, last)


#: What `normalise` takes for a word: everything but ASCII's separators.
_WORD = re.compile(r"[^\x00-/:-@\[-`{-\x7f]+")


class Worded:
    """Words of ``source``, as UTF-8, with one space between and at both ends. The output is counted in bytes."""

    def __init__(self, source: str) -> None:
        self._source = source

    def back(self, start: int, end: int) -> Span:
        at = 1
        first: int | None = None
        last = len(self._source)
        for word in _WORD.finditer(self._source):
            size = len(word[0].encode())
            if first is None and start < at + size:
                first = word.start() + _chars(word[0], start - at)
            if end <= at + size:
                last = word.start() + _chars(word[0], end - at)
                break
            at += size + 1
        return (last if first is None else first), last


def _chars(word: str, offset: int) -> int:
    """Characters in the first ``offset`` bytes of a word."""
    return len(word.encode()[: max(offset, 0)].decode("utf-8", "ignore"))


def origin(steps: Sequence[Step], start: int, end: int) -> Span:
    """The range of the first step's input behind ``start:end`` of the last step's output."""
    for step in reversed(steps):
        start, end = step.back(start, end)
    return start, max(start, end)
