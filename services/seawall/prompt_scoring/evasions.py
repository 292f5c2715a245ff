"""Undoes what is done to single words: spaced-out letters, punctuation inside, digits and signs for letters, repeats.

Each function takes a folded text (lower-case, lookalikes to ASCII, separators kept) and returns the edits that undo one
evasion. Plain text shows no signs of any, and is told apart by one RE2 set in one pass. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import product
from typing import NamedTuple

import re2

from seawall.prompt_scoring.alignment import Edit, apply
from seawall.prompt_scoring.characters import EITHER, SPACELESS


class Sign(IntEnum):
    """What a text may show; the number is its pattern's place in the set."""

    LEET = 0
    SPACED = 1
    REPEATED = 2
    CLOSED = 3
    PERCENT = 4
    ENTITY = 5
    BASE64 = 6
    ESCAPE = 7


_LEET = "013457@$|!8"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PATTERNS: dict[Sign, str] = {
    Sign.LEET: "|".join(
        (
            rf"[a-z][{_LEET}]+[a-z]",
            rf"\b(?:[{_LEET}][a-z]{{2}}|[{_LEET}]+[a-z]{{3}})",
            r"[a-z]{2}[0134578$@]+(?:[^0-9a-z]|$)",
            r"[$@!|][a-z]{2}",
        )
    ),
    Sign.SPACED: r"\b[a-z0-9][^a-z0-9]{1,3}[a-z0-9][^a-z0-9]{1,3}[a-z0-9]\b",
    Sign.REPEATED: "|".join(letter * 3 for letter in _LETTERS),
    Sign.CLOSED: r"[a-z0-9][^a-z0-9\s\x80-\x{10FFFF}]+[a-z]",
    Sign.PERCENT: r"%[0-9a-f]{2}",
    Sign.ENTITY: r"&#[0-9x]",
    Sign.BASE64: r"[a-z0-9+/_-]{12}",
    Sign.ESCAPE: r"\\[ux][0-9a-f]{2}",
}


def _compile() -> object:
    options = re2.Options()
    options.log_errors = False
    found = re2.Set.SearchSet(options)
    for sign in Sign:
        found.Add(_PATTERNS[sign])
    found.Compile()
    return found


_SIGNS = _compile()


def signs(text: bytes) -> Sequence[int]:
    """The signs that a lower-case text shows."""
    return _SIGNS.Match(text) or ()  # type: ignore[attr-defined]


#: Three or more single letters or digits with one to three separators between them.
_SPACED_OUT = re.compile(r"(?<![^\W_])(?:[^\W_][\W_]{1,3}){2,}[^\W_](?![^\W_])")
_GAPS = re.compile(r"[\W_]+")
_SIGNS_BETWEEN = frozenset("@$|!")


def join(text: str) -> tuple[list[Edit], list[tuple[int, int]], bool]:
    """Spaced-out letters joined, the ranges of the result where words may run together, and whether a sign that may
    be a letter was taken for a separator."""
    edits: list[Edit] = []
    runs: list[tuple[int, int]] = []
    signs = False
    shift = 0
    for match in _SPACED_OUT.finditer(text):
        if not any(char.isalpha() for char in match[0]):
            continue
        # A wider gap than the narrowest of the run is a space between words; so is a bare space among dots or dashes.
        gaps = _GAPS.findall(match[0])
        punctuated = 2 * sum(map(str.isspace, gaps)) < len(gaps)
        narrow = min(map(len, gaps))
        start, last = match.span()
        begin = start + shift
        for gap in gaps:
            start += 1
            end = start + len(gap)
            space = " " if len(gap) > narrow or (punctuated and gap.isspace()) else ""
            edits.append(Edit(start, end, space))
            shift += len(space) - len(gap)
            start = end
        runs.append((begin, last + shift))
        signs = signs or not _SIGNS_BETWEEN.isdisjoint(match[0])
    return edits, runs, signs


#: Punctuation with a letter after it. A class at the beginning is found several times faster than a look behind.
_INSIDE = re.compile(r"[!-/:-@\[-`{-~]+(?=[^\W\d_])")


def close(text: str) -> list[Edit]:
    """Punctuation inside words removed."""
    return [
        Edit(start, end, "")
        for start, end in (match.span() for match in _INSIDE.finditer(text))
        if start and text[start - 1].isalnum()
    ]


_LETTER_OF = str.maketrans({"0": "o", "1": EITHER, "|": EITHER, "!": EITHER, "3": "e", "4": "a", "@": "a", "5": "s",
                            "$": "s", "7": "t", "8": "b"})  # fmt: skip
SIGNS = frozenset(_LEET)
_SIGNED_WORD = re.compile(r"[a-z0-9@$|!]+")
#: Figures and signs, an age or an ordinal ("12yo", "10th"), or a word and its exclamation mark.
_NOT_LEET = re.compile(r"[^a-z]+|[0-9]+(?:yo|y|yrs?|years?|years?olds?|st|nd|rd|th)|[a-z]+!+")
#: An age whose "o" is a figure.
_AGE = re.compile(r"[0-9]{1,2}y0")
#: A figure of two digits is an age before it is a word.
_FIGURE = re.compile(r"[0-9]{1,2}")

#: ``read(word, pack_only)``: the known words that a word with `EITHER` in it may be, the likeliest first.
Read = Callable[[str, bool], Sequence[str]]


class Unleeted(NamedTuple):
    """A token with digits and signs read as letters; each as long as the token."""

    #: With the likeliest reading of a "1" that may be i or l.
    once: str
    #: With the one after it.
    again: str
    #: The token says so by itself: letters and signs stand in one word. Figures ("117713") and what may be an age
    #: ("80y") that spell a pack's word are to be read so only beside others.
    sure: bool


def unleet(token: str, read: Read) -> Unleeted | None:
    """A word that holds letters and signs is read as the word it is then, or if there is none with every "1" as i,
    and as l. None: nothing is to be read so."""
    once, again, sure, at = "", "", False, 0
    for match in _SIGNED_WORD.finditer(token):
        word = match[0]
        if SIGNS.isdisjoint(word):
            continue
        if _NOT_LEET.fullmatch(word) is None:
            first, second = (
                (word.replace("0", "o"),) * 2 if _AGE.fullmatch(word) else _two(word.translate(_LETTER_OF), read)
            )
            sure = True
        elif _FIGURE.fullmatch(word) is None and (readings := read(word.translate(_LETTER_OF), True)):
            first = second = readings[0]
        else:
            continue
        start, end = match.span()
        once += token[at:start] + first
        again += token[at:start] + second
        at = end
    return Unleeted(once + token[at:], again + token[at:], sure) if at else None


def _two(word: str, read: Read) -> Sequence[str]:
    """The two likeliest readings."""
    if EITHER not in word:
        return word, word
    found = read(word, False)
    return (
        (found[0], found[min(1, len(found) - 1)]) if found else (word.replace(EITHER, "i"), word.replace(EITHER, "l"))
    )


_EITHER_WORD = re.compile(f"[a-z0-9]*{EITHER}[a-z0-9{EITHER}]*")


def resolve(text: str, read: Read) -> list[Edit]:
    """Words with an `EITHER` in them read as the word they are then, or if there is none with every one as l."""
    return [
        Edit(*match.span(), (*read(match[0], False), match[0].replace(EITHER, "l"))[0])
        for match in _EITHER_WORD.finditer(text)
    ]


_REPEATED = re.compile(r"([^\W\d_])\1{2,}")


#: Runs of a token that are cut each by itself.
_MAX_RUNS = 4


def squeeze(token: str) -> list[str]:
    """Letters that stand three times or more, all cut to one, all cut to two, and then some to one and some to two."""
    once = _REPEATED.sub(r"\1", token)
    if once == token:
        return []
    runs = list(_REPEATED.finditer(token))
    found = [once, _REPEATED.sub(r"\1\1", token)]
    if 1 < len(runs) <= _MAX_RUNS:
        for keeps in product((1, 2), repeat=len(runs)):
            edits = [Edit(*run.span(), run[1] * keep) for run, keep in zip(runs, keeps, strict=True)]
            found.append(apply(token, edits))
    return list(dict.fromkeys(found))


_SPACELESS_GAP = re.compile(rf"(?<=[{SPACELESS}])[\x00-/:-@\[-`{{-\x7f]+(?=[{SPACELESS}])")
_SPACELESS_EDGE = re.compile(rf"(?<=[a-z])(?=[{SPACELESS}])|(?<=[{SPACELESS}])(?=[a-z])")
_SPACELESS = re.compile(f"[{SPACELESS}]")


def has_spaceless(text: str) -> bool:
    """Whether the text holds a letter of a script without spaces."""
    return _SPACELESS.search(text) is not None


def spaceless_edges(text: str) -> list[Edit]:
    """A space between a Latin letter and a letter of a script without spaces: there a word ends."""
    return [Edit(match.start(), match.start(), " ") for match in _SPACELESS_EDGE.finditer(text)]


def spaceless_gaps(text: str) -> list[Edit]:
    """Separators removed between letters of scripts without spaces."""
    return [Edit(*match.span(), "") for match in _SPACELESS_GAP.finditer(text)]
