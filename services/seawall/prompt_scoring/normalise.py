"""Views of a prompt: the same text as different readers would see it. Pure.

Every view is lower-case words as UTF-8 with one space between them and one at each end, so that a term pack needs to
know nothing about case, punctuation or separators, and a distance in words is a count of spaces. Views only ever add
evidence: a term is a term in whichever view it stands.

    original    the text itself but for case and separators (where it is plain ASCII, "words" says the same)
    words       invisible characters removed, NFKC, casefold, separators to spaces
    skeleton    lookalike letters folded to ASCII (Unicode TR39 and a supplement), accents removed
    joined      spaced-out or punctuated letters joined
    leet        digits and signs inside words read as letters; twice, as "1" stands for i and for l
    squeezed    letters repeated three times or more cut to one, and to two
    decoded     percent escapes and base64 read once
    tags        text written in invisible tag characters
    reversed    text after a right-to-left override, as a person sees it

The last six exist only where the text shows signs of them. Plain ASCII without such signs costs two table look-ups.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import re2

#: A view is never longer than this many times the text's UTF-8 bytes: one code point may fold to eighteen.
MAX_EXPANSION = 4


class View(NamedTuple):
    """One reading of a prompt."""

    name: str
    #: Lower-case words, UTF-8, one space between and at both ends.
    words: bytes
    #: Byte ranges that were joined from single letters: words may run together there, without a space.
    glued: tuple[tuple[int, int], ...] = ()


class Expands(ValueError):
    """The text grows beyond MAX_EXPANSION when normalised: made to exhaust memory, not to be read."""


def views(text: str) -> list[View]:
    """The views of ``text``, each different from those before it.

    ``text`` must be encodable as UTF-8 (no lone surrogates). Time and memory are linear in its length.

    Raises:
        Expands: the normalised text is more than MAX_EXPANSION times as long.
    """
    if text.isascii():
        raw = text.encode().translate(_LOWER)
        words = _spaced(raw.translate(_SEPARATORS, _CONTROLS))
        found = [View("words", words)]
        if _SIGNS.search(raw) is None:
            return found
        visible = raw.translate(None, _CONTROLS).decode()
    else:
        found, visible = _unicode_views(text)
    _derived(found, text, visible)
    return _distinct(found)


def visible_text(text: str) -> str:
    """``text`` without invisible and control characters: what a sentence encoder should read."""
    if text.isascii():
        return text if _ASCII_CONTROL.search(text) is None else text.translate(_NO_CONTROLS)
    return str(_INVISIBLE.sub("", text))


# --- plain text -------------------------------------------------------------------------------------------------------

_CONTROLS = bytes(c for c in range(128) if (c < 32 and c not in b"\t\n\v\f\r") or c == 127)
_NO_CONTROLS = {c: None for c in _CONTROLS}
_ASCII_CONTROL = re.compile(f"[{re.escape(_CONTROLS.decode())}]")
_LOWER = bytes(range(256)).lower()
_SEPARATORS = bytes(c if chr(c).isalnum() and c < 128 else 32 for c in _LOWER)


def _spaced(words: bytes) -> bytes:
    return b" ".join((b"", *words.split(), b""))


# --- beyond ASCII -----------------------------------------------------------------------------------------------------

#: Default-ignorable code points, bidi controls, tag characters, variation selectors, and controls.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
#: Canonical ordering sorts each run of marks, in time that grows with the square of its length.
_MANY_MARKS = re2.compile(r"(\pM{4})\pM+")
_NOT_WORDS = re2.compile(r"[^\pL\pN\pM]+")
_MARKS = re2.compile(r"\pM+")


def _unicode_views(text: str) -> tuple[list[View], str]:
    """The first three views, and the visible text with lookalikes folded, lower-case, separators kept."""
    limit = MAX_EXPANSION * len(text.encode()) + 1024
    visible = _MANY_MARKS.sub(r"\1", _INVISIBLE.sub("", text))
    plain = _bounded(unicodedata.normalize("NFKC", visible).casefold(), limit)
    # Lookalikes first: casefolding a Greek or Cyrillic capital would leave a small letter that looks like nothing.
    letters = unicodedata.normalize("NFD", visible).translate(_confusables())
    skeleton = unicodedata.normalize("NFKD", letters).casefold()
    skeleton = _bounded(_MARKS.sub("", skeleton), limit)
    found = [
        View("original", _words(text.lower())),
        View("words", _words(plain)),
        View("skeleton", _words(skeleton)),
    ]
    return found, skeleton


def _words(text: str) -> bytes:
    return _spaced(_NOT_WORDS.sub(b" ", text.encode()))


def _bounded(text: str, limit: int) -> str:
    if len(text) * 4 > limit and len(text.encode()) > limit:
        raise Expands
    return text


@cache
def _confusables() -> dict[int, str]:
    data = resources.files(__package__).joinpath("data", "confusables.txt").read_text(encoding="utf-8")
    rows = (line.split() for line in data.splitlines() if not line.startswith("#"))
    return {int(code, 16): letters for code, letters, _origin in rows}


# --- signs of evasion -------------------------------------------------------------------------------------------------

_LEET = "013457@$|!8"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_SIGNS = re2.compile(
    "|".join(
        (
            rf"[a-z][{_LEET}]+[a-z]",
            rf"\b(?:[{_LEET}][a-z]{{2}}|[{_LEET}]+[a-z]{{3}})",
            r"[a-z]{2}[0134578$@]+\b",
            r"[$@!|][a-z]{2}",
            r"\b[a-z0-9][^a-z0-9]{1,3}[a-z0-9][^a-z0-9]{1,3}[a-z0-9][^a-z0-9]{1,3}[a-z0-9]\b",
            "|".join(letter * 3 for letter in _ALPHABET),
            r"%[0-9a-f]{2}[^%]{0,3}%[0-9a-f]{2}",
            r"[a-z0-9+/_-]{16}",
            r"[\x00-\x08\x0e-\x1f\x7f]",
        )
    )
)


def _derived(found: list[View], text: str, visible: str) -> None:
    """Append the views that undo an evasion. ``visible`` is lower-case with its separators."""
    found.extend(_decoded(text))
    found.extend(_tags(text))
    found.extend(_reversed(text))
    joined, runs = _join(visible)
    if runs:
        found.append(_view_with_runs("joined", joined, runs))
    unleet = _unleet(joined, _LEET_I)
    found.append(_view_with_runs("leet", unleet, runs))
    if _ONE.search(joined):
        found.append(_view_with_runs("leet", _unleet(joined, _LEET_L), runs))
    if _REPEATED.search(unleet):
        found.extend(View("squeezed", _words(_REPEATED.sub(keep, unleet))) for keep in (r"\1", r"\1\1"))


def _distinct(found: list[View]) -> list[View]:
    kept: dict[bytes, View] = {}
    for view in found:
        before = kept.get(view.words)
        if before is None or (view.glued and not before.glued):
            kept[view.words] = view
    return list(kept.values())


#: Four or more single letters or digits with one to three separators between them.
_SPACED_OUT = re.compile(r"(?<![^\W_])(?:[^\W_][\W_]{1,3}){3,}[^\W_](?![^\W_])")
_GAPS = re.compile(r"[\W_]+")


def _join(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Spaced-out letters joined, and the character ranges of the result where words may run together."""
    parts: list[str] = []
    runs: list[tuple[int, int]] = []
    at = length = 0
    for match in _SPACED_OUT.finditer(text):
        # A wider gap than the narrowest of the run is a space between words; so is a bare space among dots or dashes.
        gaps = _GAPS.findall(match[0])
        signs = 2 * sum(gap.isspace() for gap in gaps) < len(gaps)
        narrow = min(len(gap) for gap in gaps)
        letters = _GAPS.split(match[0])
        spaces = (" " if len(gap) > narrow or (signs and gap.isspace()) else "" for gap in gaps)
        joined = "".join(part for pair in zip(letters, (*spaces, ""), strict=True) for part in pair)
        before = text[at : match.start()]
        parts += [before, joined]
        length += len(before)
        runs.append((length, length + len(joined)))
        length += len(joined)
        at = match.end()
    parts.append(text[at:])
    return "".join(parts), runs


def _view_with_runs(name: str, text: str, runs: list[tuple[int, int]]) -> View:
    """The words of ``text`` with its character ranges turned into byte ranges of the words."""
    words = b" "
    glued: list[tuple[int, int]] = []
    at = 0
    for start, end in runs:
        words += _words(text[at:start])[1:]
        piece = _words(text[start:end])
        glued.append((len(words), len(words) + len(piece) - 2))
        words += piece[1:]
        at = end
    return View(name, words + _words(text[at:])[1:], tuple(glued))


def _leet_table(one: str) -> dict[int, str]:
    return str.maketrans({"0": "o", "1": one, "|": one, "!": one, "3": "e", "4": "a", "@": "a", "5": "s", "$": "s",
                          "7": "t", "8": "b"})  # fmt: skip


_LEET_I, _LEET_L = _leet_table("i"), _leet_table("l")
_TOKEN = re.compile(r"[a-z0-9@$|!]+")
_HAS_SIGN = re.compile(f"[{re.escape(_LEET)}]")
_HAS_LETTER = re.compile("[a-z]")
#: An age or an ordinal ("12yo", "10th"), or a word and its exclamation mark.
_NOT_LEET = re.compile(r"[0-9]+(?:yo|y|yrs?|st|nd|rd|th)|[a-z]+!+")


def _unleet(text: str, table: dict[int, str]) -> str:
    """Signs read as letters in every word that holds both."""

    def read(match: re.Match[str]) -> str:
        token = match[0]
        if _HAS_LETTER.search(token) is None or _HAS_SIGN.search(token) is None or _NOT_LEET.fullmatch(token):
            return token
        return token.translate(table)

    return _TOKEN.sub(read, text)


_ONE = re.compile(r"[1|!]")
_REPEATED = re.compile(r"([^\W\d_])\1{2,}")


# --- other encodings --------------------------------------------------------------------------------------------------

_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}.{0,3}%[0-9A-Fa-f]{2}")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}={0,2}")
_MAX_BASE64 = 64
_TAG = re.compile("[\U000e0020-\U000e007e]+")
_OVERRIDE = re.compile("[\u202e\u2067\u202b]([^\u202c\u2069\n]*)")


def _decoded(text: str) -> Iterator[View]:
    """Escapes read once: no nesting, so that the work stays linear."""
    if _PERCENT.search(text):
        yield View("decoded", _folded(unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "replace")))
    plain = []
    for match in list(_BASE64.finditer(text))[:_MAX_BASE64]:
        token = match[0].rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
        try:
            data = base64.b64decode(token + "=" * (-len(token) % 4), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            continue
        if data.isprintable():
            plain.append(data)
    if plain:
        yield View("decoded", _folded(" ".join((text, *plain))))


def _tags(text: str) -> Iterator[View]:
    found = [] if text.isascii() else _TAG.findall(text)
    if found:
        hidden = " ".join("".join(chr(ord(c) - 0xE0000) for c in run) for run in found)
        yield View("tags", _folded(f"{text} {hidden}"))


def _reversed(text: str) -> Iterator[View]:
    if not text.isascii() and _OVERRIDE.search(text):
        yield View("reversed", _folded(_OVERRIDE.sub(lambda match: match[1][::-1], text)))


def _folded(text: str) -> bytes:
    """Words with lookalikes folded, for text that was hidden anyway."""
    visible = _MANY_MARKS.sub(r"\1", _INVISIBLE.sub("", text))
    limit = MAX_EXPANSION * len(text.encode()) + 1024
    return _words(_bounded(unicodedata.normalize("NFKC", visible.translate(_confusables())).casefold(), limit))
