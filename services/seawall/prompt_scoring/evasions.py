"""Undoes what is done to single words: spaced-out letters, punctuation inside, digits and signs for letters, repeats.

Each function takes a folded text (lower-case, lookalikes to ASCII, separators kept) and returns the edits that undo one
evasion. Plain text shows no signs of any, and is told apart by one RE2 set in one pass. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum

import re2

from seawall.prompt_scoring.alignment import Edit
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


def join(text: str) -> tuple[list[Edit], list[tuple[int, int]]]:
    """Spaced-out letters joined, and the ranges of the result where words may run together."""
    edits: list[Edit] = []
    runs: list[tuple[int, int]] = []
    shift = 0
    for match in _SPACED_OUT.finditer(text):
        if not any(char.isalpha() for char in match[0]):
            continue
        # A wider gap than the narrowest of the run is a space between words; so is a bare space among dots or dashes.
        gaps = [(gap.start() + match.start(), gap.end() + match.start()) for gap in _GAPS.finditer(match[0])]
        spaces = sum(text[start:end].isspace() for start, end in gaps)
        punctuated = 2 * spaces < len(gaps)
        narrow = min(end - start for start, end in gaps)
        begin = match.start() + shift
        for start, end in gaps:
            space = " " if end - start > narrow or (punctuated and text[start:end].isspace()) else ""
            edits.append(Edit(start, end, space))
            shift += len(space) - (end - start)
        runs.append((begin, match.end() + shift))
    return edits, runs


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
_SIGN = re.compile(f"[{re.escape(_LEET)}]+")
_REST = re.compile(r"[a-z0-9@$|!]*")
_IN_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789@$|!")
_HAS_LETTER = re.compile("[a-z]")
#: An age or an ordinal ("12yo", "10th"), or a word and its exclamation mark.
_NOT_LEET = re.compile(r"[0-9]+(?:yo|y|yrs?|st|nd|rd|th)|[a-z]+!+")
#: An age whose "o" is a figure.
_AGE = re.compile(r"[0-9]{1,2}y0")
#: A figure of two digits is an age before it is a word.
_FIGURE = re.compile(r"[0-9]{1,2}")

#: ``read(word, pack_only)``: the known words that a word with `EITHER` in it may be, the likeliest first.
Read = Callable[[str, bool], Sequence[str]]


def unleet(text: str, read: Read) -> list[list[Edit]]:
    """Digits and signs read as letters: once, or twice where a "1" may be i or l. Edits keep the length.

    A word that holds both is read as the word it is then, or if there is none with every "1" as i, and as l. Where
    there are such words, figures ("117713") and what may be an age ("80y") are also read, if they spell a pack's word.
    """
    words: list[tuple[int, int, str]] = []
    figures: list[tuple[int, int, str]] = []
    for start, end in _signed_words(text):
        word = text[start:end]
        (words if _HAS_LETTER.search(word) and _NOT_LEET.fullmatch(word) is None else figures).append(
            (start, end, word)
        )
    if not words:
        return []
    once: list[Edit] = []
    again: list[Edit] = []
    for start, end, word in words:
        first, second = (
            (word.replace("0", "o"),) * 2 if _AGE.fullmatch(word) else _two(word.translate(_LETTER_OF), read)
        )
        once.append(Edit(start, end, first))
        again.append(Edit(start, end, second))
    for start, end, word in figures:
        found = () if _FIGURE.fullmatch(word) else read(word.translate(_LETTER_OF), True)
        if found:
            once.append(Edit(start, end, found[0]))
            again.append(Edit(start, end, found[0]))
    once.sort()
    again.sort()
    return [once] if once == again else [once, again]


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


def _signed_words(text: str) -> Iterator[tuple[int, int]]:
    """Where the words with a sign in them stand. Found by their signs, which are few."""
    end = 0
    for sign in _SIGN.finditer(text):
        if sign.start() < end:
            continue
        start = sign.start()
        while start > end and text[start - 1] in _IN_WORD:
            start -= 1
        end = _REST.match(text, sign.end()).end()  # type: ignore[union-attr]
        yield start, end


_REPEATED = re.compile(r"([^\W\d_])\1{2,}")


def squeeze(text: str) -> list[list[Edit]]:
    """Letters that stand three times or more, cut to one, and to two."""
    runs = [(*match.span(), match[1]) for match in _REPEATED.finditer(text)]
    return [[Edit(start, end, letter * keep) for start, end, letter in runs] for keep in (1, 2)] if runs else []


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
