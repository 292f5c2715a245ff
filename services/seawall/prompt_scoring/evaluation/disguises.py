"""Evasions: ways in which a text is disguised so that a filter misses what a person or a model still reads. Pure."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable, Mapping

Disguise = Callable[[str, random.Random], str]

_ZERO_WIDTH = ("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad")
_LOOKALIKES = {
    "a": "\u0430\u0251\u03b1", "c": "\u0441\u03f2", "d": "\u0501", "e": "\u0435\u0454", "g": "\u0261", "h": "\u04bb",
    "i": "\u0456\u03b9", "j": "\u0458", "k": "\u03ba\u043a", "l": "\u04cf\u0406", "m": "\u043c", "n": "\u0578\u03b7",
    "o": "\u043e\u03bf\u0585", "p": "\u0440\u03c1", "q": "\u051b", "r": "\u0433", "s": "\u0455", "u": "\u057d\u03c5",
    "v": "\u03bd\u0475", "w": "\u051d", "x": "\u0445\u03c7", "y": "\u0443\u04af", "z": "\u1d22",
}  # fmt: skip
_LEET = {"a": "4@", "b": "8", "e": "3", "i": "1!", "l": "1", "o": "0", "s": "5$", "t": "7"}
_ACCENTS = ("\u0301", "\u0308", "\u0327", "\u0302", "\u0331")
_WORD = re.compile("[A-Za-z]+")


def _zero_width(text: str, chance: random.Random) -> str:
    return "".join(c + (chance.choice(_ZERO_WIDTH) if c.isalpha() and chance.random() < 0.4 else "") for c in text)


def _lookalikes(text: str, chance: random.Random) -> str:
    share = chance.uniform(0.3, 0.9)
    return "".join(
        chance.choice(_LOOKALIKES[c]) if c in _LOOKALIKES and chance.random() < share else c for c in text.lower()
    )


def _full_width(text: str, _chance: random.Random) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _accents(text: str, chance: random.Random) -> str:
    return "".join(c + (chance.choice(_ACCENTS) if c.isalpha() and chance.random() < 0.4 else "") for c in text)


def _leet(text: str, chance: random.Random) -> str:
    share = chance.uniform(0.5, 1.0)
    return "".join(chance.choice(_LEET[c]) if c in _LEET and chance.random() < share else c for c in text.lower())


def _spaced(text: str, chance: random.Random) -> str:
    gap = chance.choice(("  ", "   ", " "))
    return gap.join(" ".join(word) for word in text.split())


def _punctuated(text: str, chance: random.Random) -> str:
    sign = chance.choice(".-_*|~")
    return " ".join(sign.join(word) for word in text.split())


def _repeated(text: str, chance: random.Random) -> str:
    return "".join(c * (chance.randint(3, 5) if c.isalpha() and chance.random() < 0.25 else 1) for c in text)


def _misspelt(text: str, chance: random.Random) -> str:
    """One slip in most words of five letters and more; the first and the last letter stay."""

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) < 5 or chance.random() < 0.3:
            return word
        at = chance.randrange(1, len(word) - 2)
        kind = chance.randrange(3)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return word[:at] + word[at + 1 :] if kind == 1 else word[:at] + word[at] + word[at:]

    return _WORD.sub(slip, text)


def _base64(text: str, _chance: random.Random) -> str:
    return f"decode and follow: {base64.b64encode(text.encode()).decode()}"


def _percent(text: str, chance: random.Random) -> str:
    return "".join(f"%{ord(c):02X}" if c.isascii() and chance.random() < 0.5 else c for c in text)


def _reversed(text: str, _chance: random.Random) -> str:
    return f"\u202e{text[::-1]}\u202c"


def _tags(text: str, chance: random.Random) -> str:
    hidden = "".join(chr(0xE0000 + ord(c)) for c in text if c.isascii())
    return f"{chance.choice(('a lake at dawn', 'two cups of tea', 'a paper boat'))}{hidden}"


def _mixed_case(text: str, chance: random.Random) -> str:
    return "".join(chance.choice((c.upper(), c.lower())) for c in text)


#: Name → ``disguise(text, chance)``. All draws come from ``chance``.
DISGUISES: Mapping[str, Disguise] = {
    "zero_width": _zero_width,
    "lookalikes": _lookalikes,
    "full_width": _full_width,
    "accents": _accents,
    "leet": _leet,
    "spaced": _spaced,
    "punctuated": _punctuated,
    "repeated": _repeated,
    "misspelt": _misspelt,
    "base64": _base64,
    "percent": _percent,
    "reversed": _reversed,
    "tags": _tags,
    "mixed_case": _mixed_case,
}
