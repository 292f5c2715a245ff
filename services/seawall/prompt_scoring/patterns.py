"""Reads patterns of term packs as text: the words they spell out, and how they look with letters folded. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping

#: Spellings of one pattern that are followed; of more, these are enough.
_MAX_SPELLINGS = 512
#: Stands for anything that is not spelled out.
_UNKNOWN = "\x00"
_TOKEN = re.compile(
    r"\\[pPx]\{[^}]*\}|\\[pP][A-Z]|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[a-zA-Z-]*[:)]|\(\?P?<[^>]*>|\{\d*,?\d*\}\??|.",
    re.DOTALL,
)


def folded(pattern: str, table: Mapping[int, str | None]) -> str:
    """``pattern`` with the letters it spells out folded by ``table``; its syntax, and ASCII, as they are.

    A class that holds a range beyond ASCII stays as it is: a range has no folded form.
    """
    return "".join(_fold(token, table) for token in _TOKEN.findall(unicodedata.normalize("NFC", pattern)))


def _fold(token: str, table: Mapping[int, str | None]) -> str:
    if token.isascii():
        return token
    if token.startswith("["):
        if re.search(r"[^\x00-\x7f]-|-[^\x00-\x7f]", token):
            return token
        inside = (char if char.isascii() else table[ord(char)] or "" for char in token)
        return "".join(letter for letter in inside if len(letter) == 1)
    letters = "".join(char if char.isascii() else table[ord(char)] or "" for char in token)
    if len(letters) == 1 and letters.isalnum():
        return letters
    return f"(?:{re.escape(letters)})"


def unreachable(pattern: str) -> list[str]:
    """Why ``pattern`` asks for what no view holds: "ascii" (\\w or \\b), "letter" (a capital), "sign" (punctuation)."""
    found: dict[str, None] = {}
    for part in _TOKEN.findall(pattern):
        if part in (r"\w", r"\W", r"\b", r"\B"):
            found["ascii"] = None
        literal = part[1:] if part.startswith("\\") and not part[1:].isalnum() else part
        if len(literal) != 1 or part in "()|?*+^$. ":
            continue
        if literal.isalpha() and literal != literal.lower():
            found["letter"] = None
        elif literal.isascii() and not literal.isalnum():
            found["sign"] = None
    return list(found)


def literal_words(pattern: str) -> set[str]:
    """Every whole word that some spelling of ``pattern`` holds: ``child(?:ren)?`` gives child and children.

    Classes, wildcards and open repeats spell nothing: a word that holds one is left out.
    """
    spellings = _Parser(pattern).alternatives()
    return {word for text in spellings for word in text.split(" ") if word and _UNKNOWN not in word}


class _Parser:
    """Reads RE2's syntax as far as it matters here; what it does not know becomes unknown, never an error."""

    def __init__(self, pattern: str) -> None:
        self._tokens: Iterator[str] = iter(_TOKEN.findall(pattern))
        self._next = next(self._tokens, "")

    def alternatives(self) -> list[str]:
        """Spellings up to the end, or to the bracket that closes this group."""
        found = self._sequence()
        while self._next == "|":
            self._advance()
            found += self._sequence()
        return found[:_MAX_SPELLINGS]

    def _advance(self) -> str:
        part, self._next = self._next, next(self._tokens, "")
        return part

    def _sequence(self) -> list[str]:
        found = [""]
        while self._next and self._next not in ("|", ")"):
            piece = self._repeated(self._piece())
            found = [before + after for before in found for after in piece][:_MAX_SPELLINGS]
        return found

    def _piece(self) -> list[str]:
        part = self._advance()
        if part.startswith("("):
            if part.startswith("(?") and part.endswith(")"):
                return [""]
            inner = self.alternatives()
            if self._next == ")":
                self._advance()
            return inner
        if part in ("^", "$"):
            return [""]
        if part.startswith("[") or part == "." or (part.startswith("\\") and part[1:2].isalnum()):
            return [_UNKNOWN]
        return [part[1:] if part.startswith("\\") else part]

    def _repeated(self, piece: list[str]) -> list[str]:
        part = self._next
        if part in ("?", "*", "+") or part.startswith("{"):
            self._advance()
            if self._next == "?":
                self._advance()
            if part == "?":
                return ["", *piece]
            return [_UNKNOWN] if part == "+" else ["", _UNKNOWN]
        return piece
