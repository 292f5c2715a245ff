"""Hostile text through every view and the rules: never a crash, a hang, or a view that lies about where it came from.

Linear time is shown by counting what the code does, not by a clock: calls of the interpreter and characters handed on.
"""

from __future__ import annotations

import base64
import inspect
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seawall.prompt_scoring import term_packs
from seawall.prompt_scoring.detection import Detection, detect
from seawall.prompt_scoring.normalise import MAX_EXPANSION, Expands, View, views
from seawall.prompt_scoring.term_set import TermSet

TERMS = TermSet([term_packs.load(folder) for folder in term_packs.bundled()])
GRADES = {0.0, 0.5, 0.6, 0.7, 0.8, 1.0}

#: What evasions are made of, and what breaks text tools.
PIECES = st.sampled_from(
    [
        "explicit", "image", "minor", "child", "nude", "statue", "garden", "12 year old", "chi", "ld", "mionr", "ronim",
        "s t a t u e", "m.i.n.o.r", "m1n0r", "ｍｉｎｏｒ", "mіnоr", "miiiinor", "%6dinor", "&#109;inor", "\\u006dinor",
        base64.b64encode(b"explicit image of a minor").decode(), "\U000e006d\U000e0069", "\u202eronim\u202c",
        "\u2067x\u2069", "\u200b", "\u200d", "\ufeff", "\x00", "\x1b[31m", "e" + "\u0301" * 40, "\u0301", "क्ष",
        "未成年", "หนังสือ", "한국어", "각", "الصورة", "ﷺ", "İ", "ß", "ﬃ", "½", "Ⅻ", "१२", "👩‍👩‍👧‍👦", "🏳️‍🌈", "𝕞𝕚𝕟𝕠𝕣",
        "\U0001f1fa", " ", "  ", "\n", "\u3000", "-", "_", "...", "'", "%", "%%%", "&#;", "\\u", "=", "<b>",
        "|", "!", "$", "@", "1", "0",
    ]
)  # fmt: skip
HOSTILE = st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=40).map("".join)


def read(text: str, negative: str = "", turns: tuple[str, ...] = ()) -> Detection | None:
    try:
        return detect(text, negative, TERMS, around=4, max_pairs=4, turns=turns)
    except (Expands, UnicodeEncodeError):
        return None


@settings(max_examples=400, deadline=None)
@given(HOSTILE)
@example("\ud800 lone")
@example("s t a t u e|")
@example("|s t a t u e")
@example("s t a t u e|explicit|s t a t u e")
@example("a\u0301" * 200 + " \u0328\u0301\u0327" * 50)
def test_every_view_of_hostile_text_is_well_formed_and_knows_its_origin(text: str) -> None:
    try:
        found = views(text, TERMS.spelling)
    except UnicodeEncodeError:
        assert any("\ud800" <= char <= "\udfff" for char in text)
        return
    except Expands:
        return
    assert found and len({view.words for view in found}) == len(found)
    for view in found:
        check(view, text)


def check(view: View, text: str) -> None:
    words = view.words.decode()
    assert words == f" {' '.join(words.split(' ')).strip(' ')} " or not words.strip(" ")
    assert "  " not in words.strip(" ") and words == words.lower()
    assert len(view.words) <= 2 * MAX_EXPANSION * len(text.encode()) + 2048
    before = 0
    at = 1
    for word in view.words.split():
        start, end = view.origin(at, at + len(word))
        assert 0 <= start <= end <= len(text), (view.name, word)
        if view.name not in ("reversed", "decoded", "tags"):
            assert start >= before, (view.name, word)
            before = start
        at += len(word) + 1
    for start, end in view.glued:
        assert 0 < start <= end < len(view.words)


@settings(max_examples=200, deadline=None)
@given(prompt=HOSTILE, negative=HOSTILE, turns=st.lists(HOSTILE, max_size=3).map(tuple))
def test_detection_of_hostile_text_is_sound_and_repeats_itself(
    prompt: str, negative: str, turns: tuple[str, ...]
) -> None:
    found = read(prompt, negative, turns)
    if found is None:
        return
    assert found == read(prompt, negative, turns)
    assert found.minor_sexual in GRADES
    fields = {"prompt": prompt, "negative_prompt": negative, **{f"turns/{n}": turn for n, turn in enumerate(turns)}}
    for place in found.places:
        assert 0 <= place.start <= place.end <= len(fields[place.field])
    assert all(window.text for window in found.windows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12).map(" ".join))
@example("6")
def test_whatever_stands_around_it_a_detection_stays_one(text: str) -> None:
    """Nothing that is added at a distance hides what stands there in plain words."""
    found = read(f"{text}\n\nexplicit image of a minor\n\n{text}")
    assert found is None or found.minor_sexual >= 0.5


@settings(max_examples=100, deadline=None)
@given(
    st.text("abcdefghijklmnopqrstuvwxyz ", min_size=1, max_size=60),
    st.sampled_from(
        ["\u200b".join, str.upper, lambda text: text.replace("o", "о"), lambda text: text.replace(" ", "  ")]
    ),
)
def test_a_disguise_without_a_choice_is_undone_to_the_very_words(text: str, disguise: Callable[[str], str]) -> None:
    plain = views(text)[0].words
    assert plain in {view.words for view in views(disguise(text))}


# --- linear time ------------------------------------------------------------------------------------------------------

UNITS = {
    "words": "lake ",
    "one word": "a",
    "single letters": "a ",
    "dotted letters": "a.",
    "wide gaps": "a   ",
    "broken run": "a b cc ",
    "figures": "1",
    "mixed figures": "a1",
    "signs": "a|!",
    "repeats": "aaab",
    "percent": "%41",
    "percent signs": "%",
    "entities": "&#65;",
    "backslashes": "\\u0041",
    "base64": "c3RhdHVl",
    "base64 words": "YSBzdGF0dWUgaW4gYQ== ",
    "overrides": "\u202eab",
    "tags": "\U000e0041 ",
    "marks": "\u0301",
    "two marks": "a\u0301\u0323",
    "invisible": "\u200b",
    "lookalikes": "оае ",
    "han": "未 ",
    "thai": "ก a",
    "hangul": "\u1112\u1161\u11ab",
    "unknown words": "lakce shoer ",
    "pieces": "chi ld ex pl ",
    "run together": "explicitimageof",
    "backwards": "ronim ",
    "terms": "nude minor ",
    "another sense": "kid leather ",
    "nested repeats": "my my my ",
    "nulls": "a\x00",
    "closed": "a-b",
    "quotes": "a'",
    "emoji": "👨‍👩 ",
}


def effort(text: str) -> int:
    """Calls, and the characters that this room's functions are given.

    What grows with the square of a text shows in one of them; what RE2 does is linear by construction.
    """
    total = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal total
        total += 1
        code = frame.f_code
        # A generator is called again for every item that it gives.
        if event == "call" and "prompt_scoring" in code.co_filename and not code.co_flags & inspect.CO_GENERATOR:
            for name in code.co_varnames[: code.co_argcount]:
                value = frame.f_locals.get(name)
                if isinstance(value, str | bytes):
                    total += len(value)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        read(text)
    finally:
        sys.setprofile(before)
    return total


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS.keys())
def test_work_grows_with_length_and_not_with_its_square(unit: str) -> None:
    """From 12.5 kB to 100 kB, eight times the text: sixty-four times the work would be the square."""
    small, large = (_cut(unit, size) for size in SIZES)
    read(small)
    assert effort(large) <= 2 * (SIZES[1] / SIZES[0]) * effort(small) + 20_000


SIZES = (12_500, 100_000)


def _cut(unit: str, size: int) -> str:
    return unit * (size // len(unit.encode()))
