"""Reads text that is hidden in escapes: percent, references, backslashes, base64, invisible tags, bidi overrides.

Every function returns the edits that show it. Each is done once a round, and `normalise` bounds the rounds, so that the
work stays linear. Pure.
"""

from __future__ import annotations

import binascii
import html
import re
from urllib.parse import unquote_to_bytes

from seawall.prompt_scoring.alignment import Edit
from seawall.prompt_scoring.characters import OVERRIDES, TAGS
from seawall.prompt_scoring.memory import Memory

_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_PERCENT_SPACE = re.compile(r"\+")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,8});")
_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\u\{[0-9A-Fa-f]{1,6}\}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")
#: The URL-safe alphabet to the standard one.
_STANDARD = bytes.maketrans(b"-_", b"+/")
_MAX_BASE64 = 64
_TAGS = re.compile(f"[{min(TAGS)}-{max(TAGS)}]+")
_OVERRIDE = re.compile(f"[{''.join(sorted(OVERRIDES))}]([^\u202c\u2069\n]*)")


def percent(text: str) -> list[Edit]:
    """``%65`` and its like, as UTF-8, and ``+`` as the space it then stands for."""
    edits = [Edit(*m.span(), unquote_to_bytes(m[0]).decode("utf-8", "replace")) for m in _PERCENT.finditer(text)]
    return sorted(edits + [Edit(*m.span(), " ") for m in _PERCENT_SPACE.finditer(text)]) if edits else []


def references(text: str) -> list[Edit]:
    """``&#101;`` and ``&amp;``, as HTML means them."""
    return [Edit(*match.span(), html.unescape(match[0])) for match in _ENTITY.finditer(text)]


def backslashes(text: str) -> list[Edit]:
    r"""``\u0065`` and ``\x65``."""
    edits = []
    for match in _ESCAPE.finditer(text):
        code = int(match[0][2:].strip("{}"), 16)
        # A surrogate is half a character, and no text.
        if code < 0x110000 and not 0xD800 <= code < 0xE000:
            edits.append(Edit(*match.span(), chr(code)))
    return edits


def base64_words(text: str) -> list[Edit]:
    """The first tokens that are base64 of printable UTF-8, standard or URL-safe alphabet."""
    edits = []
    for number, match in enumerate(_BASE64.finditer(text)):
        if number == _MAX_BASE64:
            break
        if (plain := _PLAIN_OF[match[0]]) is not None:
            edits.append(Edit(*match.span(), f" {plain} "))
    return edits


def _decoded(word: str) -> str | None:
    token = word.rstrip("=").encode().translate(_STANDARD)
    if len(token) % 4 == 1:
        return None
    try:
        plain = binascii.a2b_base64(token + b"=" * (-len(token) % 4), strict_mode=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return plain if plain.replace("\n", " ").replace("\t", " ").isprintable() else None


_PLAIN_OF = Memory(_decoded)


def tags(text: str) -> list[Edit]:
    """Text written in invisible tag characters."""
    return [
        Edit(*match.span(), f" {''.join(chr(ord(char) - 0xE0000) for char in match[0])} ")
        for match in _TAGS.finditer(text)
    ]


def overrides(text: str) -> list[Edit]:
    """Text after a right-to-left override, as a person sees it."""
    return [Edit(*match.span(), match[1][::-1]) for match in _OVERRIDE.finditer(text)]
