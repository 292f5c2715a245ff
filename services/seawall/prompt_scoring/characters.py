"""What single characters are folded to, in tables that fill themselves as characters are met."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Set
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from seawall.prompt_scoring.memory import Memory

#: Default-ignorable code points, bidi controls, tag characters, variation selectors, and controls.
_INVISIBLE_CLASS = (
    "\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
INVISIBLE = re.compile(f"[{_INVISIBLE_CLASS}]")
#: Letters of scripts that put no space between words: Thai, Lao, Myanmar, Khmer, kana, Han and their extensions.
SPACELESS = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_SPACELESS = re.compile(f"[{SPACELESS}]")
#: Invisible copies of ASCII's printable characters.
TAGS = frozenset(map(chr, range(0xE0020, 0xE007F)))
#: Right-to-left override, isolate and embedding.
OVERRIDES = frozenset("\u202e\u2067\u202b")
#: Arabic's tatweel stretches a word and means nothing.
_TATWEEL = "\u0640"
#: Stands for a letter that may be i or l. Private use, which no fold leaves in a text.
EITHER = "\ue000"
#: A table stops to remember here: a text of every code point there is must not fill the memory.
_MAX_REMEMBERED = 65_536
_ASCII = bytes(range(128))
#: Of so many different characters each is replaced by itself; more are looked up one after the other.
_MAX_REPLACED = 32


class Table(dict[int, str | None]):
    """For ``str.translate``: computes what a character is folded to when it is first met. Safe for threads.

    What a character is folded to, is folded to itself.
    """

    def __init__(self, fold: Callable[[str], str]) -> None:
        super().__init__()
        self._fold = fold
        ascii_ = [(code, fold(chr(code))) for code in range(128)]
        self._ascii = bytes(ord(folded or "\0") for _, folded in ascii_) + bytes(range(128, 256))
        self._dropped = bytes(code for code, folded in ascii_ if not folded)

    def __missing__(self, code: int) -> str:
        folded = self._fold(chr(code))
        if len(self) < _MAX_REMEMBERED:
            self[code] = folded
        return folded

    def translate(self, text: str, beyond: Set[str]) -> str:
        """``text.translate(self)``, several times as fast where few different characters are `beyond_ascii`."""
        if len(beyond) > _MAX_REPLACED:
            return text.translate(self)
        changed = text
        for char in beyond:
            folded = self[ord(char)] or ""
            if folded != char:
                if not folded.isascii():
                    return text.translate(self)
                changed = changed.replace(char, folded)
        return changed.encode().translate(self._ascii, self._dropped).decode()


def _original(char: str) -> str:
    """Lower case; separators and invisible characters to a space, digits of every script to 0-9."""
    return "".join(" " if INVISIBLE.match(c) else _letter(c) for c in char.lower())


def _plain(char: str) -> str:
    """NFKC and casefold; separators to a space, invisible characters to nothing, digits of every script to 0-9."""
    if INVISIBLE.match(char) or char == _TATWEEL:
        return ""
    text = unicodedata.normalize("NFKC", _cased(unicodedata.normalize("NFKC", char)))
    return "".join(map(_letter, text))


def _skeleton(char: str) -> str:
    """As it looks: lookalikes to ASCII, marks removed. ASCII separators stay; others become a full stop or a space."""
    if INVISIBLE.match(char) or char == _TATWEEL:
        return ""
    # Lookalikes first: casefolding a Greek or Cyrillic capital would leave a small letter that looks like nothing.
    text = unicodedata.normalize("NFD", char).translate(_lookalikes().folds)
    text = _cased(unicodedata.normalize("NFKD", text))
    letters = (c if c.isascii() else _letter(c) for c in text if not unicodedata.category(c).startswith("M"))
    text = unicodedata.normalize("NFC", "".join(letters))
    return "." if text == " " and not char.isspace() else text


def _cased(text: str) -> str:
    # Cherokee is casefolded to capitals.
    return text.casefold().lower()


def _marked(char: str) -> str:
    return EITHER if char in _lookalikes().either else SKELETON[ord(char)] or ""


def _letter(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    return char if category[0] in "LMN" else " "


def beyond_ascii(text: str) -> Set[str]:
    """The characters of a text that are not ASCII."""
    return set(text.encode().translate(None, _ASCII).decode())


class Trait:
    """What a character beyond ASCII asks to be looked at for, as bits."""

    #: It looks like i and like l.
    EITHER: Final = 1
    #: It is, or folds to, a combining mark.
    MARK: Final = 2
    #: It is, or folds to, a letter of a script without spaces.
    SPACELESS: Final = 4
    #: It is an invisible copy of an ASCII character.
    TAG: Final = 8
    #: It turns round what follows.
    OVERRIDE: Final = 16


def traits(beyond: Set[str]) -> int:
    """The `Trait`s of all these characters together."""
    found = 0
    for char in beyond:
        found |= _TRAITS[char]
    return found


def _traits(char: str) -> int:
    folded = PLAIN[ord(char)] or ""
    asked = (
        (Trait.EITHER, char in _lookalikes().either),
        (Trait.MARK, any(unicodedata.category(c).startswith("M") for c in folded)),
        (Trait.SPACELESS, _SPACELESS.search(folded) is not None),
        (Trait.TAG, char in TAGS),
        (Trait.OVERRIDE, char in OVERRIDES),
    )
    return sum(trait for trait, shown in asked if shown)


_TRAITS = Memory(_traits)


class _Lookalikes(NamedTuple):
    folds: dict[int, str]
    #: What may be i or l.
    either: frozenset[str]


@cache
def _lookalikes() -> _Lookalikes:
    data = resources.files(__package__).joinpath("data", "confusables.txt").read_text(encoding="utf-8")
    rows = [line.split() for line in data.splitlines() if not line.startswith("#")]
    return _Lookalikes(
        {int(code, 16): letters.partition("|")[0] for code, letters, _origin in rows},
        frozenset(chr(int(code, 16)) for code, letters, _origin in rows if "|" in letters),
    )


ORIGINAL = Table(_original)
PLAIN = Table(_plain)
SKELETON = Table(_skeleton)
#: The same, but `EITHER` for what may be i or l.
MARKED = Table(_marked)


@cache
def _marks(beyond: bool) -> str:
    """Every combining mark, as the inside of a character class; those beyond the basic plane if asked for."""
    ranges: list[list[int]] = []
    for code in (*range(0x300, 0x10000), *(range(0x10000, 0x1F000) if beyond else ())):
        if unicodedata.category(chr(code)).startswith("M"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


@cache
def _runs_of_marks(beyond: bool) -> re.Pattern[str]:
    return re.compile(f"[{_marks(beyond)}]{{5,}}")


def runs_of_marks(text: str) -> Iterator[re.Match[str]]:
    """Five combining marks or more in a row."""
    # Canonical ordering sorts each run of marks, in time that grows with the square of its length. A class that stays
    # inside the basic plane is searched for ten times as fast.
    return _runs_of_marks(max(set(text)) > "\uffff").finditer(text)


@cache
def clusters() -> re.Pattern[str]:
    """A character with what may compose with it: combining marks, and the vowels and finals of Hangul."""
    return re.compile(f"(?s).[{_marks(True)}\u1160-\u11ff]*")
