"""Undoes what is done to single words: spaced-out letters, punctuation inside, digits and signs for letters, repeats.

Each function takes a folded text (lower-case, lookalikes to ASCII, separators kept) and returns the edits that undo one
evasion. Plain text shows no signs of any, and is told apart by one RE2 set in one pass. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product, zip_longest
from string import punctuation
from typing import Final, NamedTuple

import re2

from seawall.prompt_scoring.alignment import Edit, Span, apply
from seawall.prompt_scoring.characters import EITHER, SPACELESS


class Sign:
    """What a text may show, as bits: plain ones, since an enum's cost ten times as much to ask for."""

    LEET: Final = 1
    SPACED: Final = 2
    REPEATED: Final = 4
    CLOSED: Final = 8
    PERCENT: Final = 16
    ENTITY: Final = 32
    BASE64: Final = 64
    ESCAPE: Final = 128


_LEET = "013457@$|!8"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PATTERNS: dict[int, str] = {
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
    for pattern in _PATTERNS.values():
        found.Add(pattern)
    found.Compile()
    return found


_SIGNS = _compile()
_SIGN_OF = tuple(_PATTERNS)


def signs(text: bytes) -> int:
    """The `Sign`s that a lower-case text shows."""
    found = 0
    for number in _SIGNS.Match(text) or ():  # type: ignore[attr-defined]
        found |= _SIGN_OF[number]
    return found


def _spaced_out(letter: str, other: str) -> re.Pattern[str]:
    # What stands before is matched too: a class at the beginning is found several times faster than a look behind.
    return re.compile(f"{other}({letter}(?:{other}{{1,3}}{letter}){{2,}})(?!{letter})")


#: Three or more single letters or digits with one to three separators between them, and a separator before.
_SPACED_OUT = _spaced_out(r"[^\W_]", r"[\W_]")
_SPACED_OUT_ASCII = _spaced_out("[a-z0-9]", "[^a-z0-9]")
_GAPS = re.compile(r"[\W_]+")
_SIGNS_BETWEEN = frozenset("@$|!")


class _Run(NamedTuple):
    """Letters that are spaced out."""

    start: int
    text: str
    letters: Sequence[str]
    #: What stands between them.
    gaps: Sequence[str]
    #: What becomes of each gap: nothing, or a space. Empty: of all of them nothing.
    spaces: Sequence[str]


def _runs(text: str) -> Iterator[_Run]:
    for match in (_SPACED_OUT_ASCII if text.isascii() else _SPACED_OUT).finditer(f" {text}"):
        run = match[1]
        letters: Sequence[str] = run[::2]
        gaps: Sequence[str] = run[1::2]
        even = run[::2].isalnum()
        if not even:
            # Not every gap is one character.
            letters, gaps = _GAPS.split(run), _GAPS.findall(run)
        if not any(map(str.isalpha, letters)):
            continue
        # A wider gap than the narrowest is a space between words; so is a bare space among dots or dashes.
        spaces: Sequence[str] = ()
        if not (even and run[1::2].isspace()):
            narrow = min(map(len, gaps))
            punctuated = 2 * sum(map(str.isspace, gaps)) < len(gaps)
            spaces = [" " if len(gap) > narrow or (punctuated and gap.isspace()) else "" for gap in gaps]
        yield _Run(match.start(), run, letters, gaps, spaces)


def join(text: str) -> tuple[str, list[Span], bool]:
    """Spaced-out letters joined, the ranges of the result where words may run together, and whether a sign that may
    be a letter was taken for a separator."""
    parts: list[str] = []
    ranges: list[Span] = []
    signs = False
    at = size = 0
    for start, run, letters, _gaps, spaces in _runs(text):
        joined = "".join(chain.from_iterable(zip_longest(letters, spaces, fillvalue="")) if spaces else letters)
        parts += (text[at:start], joined)
        size += start - at
        ranges.append((size, size + len(joined)))
        size += len(joined)
        at = start + len(run)
        signs = signs or not _SIGNS_BETWEEN.isdisjoint(run)
    return "".join((*parts, text[at:])), ranges, signs


def join_edits(text: str) -> list[Edit]:
    """What `join` does to a text."""
    edits = []
    for start, _run, _letters, gaps, spaces in _runs(text):
        at = start
        for gap, space in zip_longest(gaps, spaces, fillvalue=""):
            edits.append(Edit(at + 1, at + 1 + len(gap), space))
            at += 1 + len(gap)
    return edits


_PUNCTUATION = frozenset(punctuation)
#: Punctuation with a letter after it. A class at the beginning is found several times faster than a look behind.
_INSIDE = re.compile(r"[!-/:-@\[-`{-~](?=[^\W\d_])")


def close(text: str) -> list[Edit]:
    """Punctuation inside words removed."""
    edits = []
    for match in _INSIDE.finditer(text):
        start = end = match.end()
        while start and text[start - 1] in _PUNCTUATION:
            start -= 1
        if start and text[start - 1].isalnum():
            edits.append(Edit(start, end, ""))
    return edits


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


def spaceless_edges(text: str) -> list[Edit]:
    """A space between a Latin letter and a letter of a script without spaces: there a word ends."""
    return [Edit(match.start(), match.start(), " ") for match in _SPACELESS_EDGE.finditer(text)]


def spaceless_gaps(text: str) -> list[Edit]:
    """Separators removed between letters of scripts without spaces."""
    return [Edit(*match.span(), "") for match in _SPACELESS_GAP.finditer(text)]
