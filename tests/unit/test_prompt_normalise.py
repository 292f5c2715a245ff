from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.prompt_scoring import memory
from seawall.prompt_scoring.characters import ORIGINAL, PLAIN, SKELETON, Table, beyond_ascii
from seawall.prompt_scoring.memory import Memory
from seawall.prompt_scoring.normalise import MAX_EXPANSION, Expands, View, views, visible_text
from seawall.prompt_scoring.spelling import Spelling, english


def readings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for view in views(text):
        found.setdefault(view.name, []).append(view.words.decode().strip())
    return found


def all_words(text: str) -> set[str]:
    return {view.words.decode().strip() for view in views(text)}


@pytest.mark.parametrize(
    "text",
    ["A lake, at SUNRISE; 35mm -- f/8", "a\tlake, at\nsunrise 16:9", "what is up (really)?", "x", "at 7:00, 12 x 8"],
)
def test_plain_ascii_has_one_view(text: str) -> None:
    (view,) = views(text)
    assert view.name == "words"
    assert view.words == view.words.lower()
    assert view.words.startswith(b" ") and view.words.endswith(b" ")
    assert b"  " not in view.words


def test_ascii_is_never_folded_to_lookalikes() -> None:
    assert all_words("modern corner, minor 10 Illinois") == {"modern corner minor 10 illinois"}


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("s\u200bt\u200da\u2060t\ufeffu\u00ade", "statue"),
        ("ｓｔａｔｕｅ", "statue"),
        ("𝓼𝓽𝓪𝓽𝓾𝓮", "statue"),
        ("stаtuе", "statue"),
        ("ЅТАТUЕ", "statue"),
        ("sτατue", "statue"),
        ("śtátùe̽", "statue"),
        ("🅢🅣🅐🅣🅤🅔", "statue"),
        ("ꜱᴛᴀᴛᴜᴇ", "statue"),
        ("s t a t u e", "statue"),
        ("s.t.a.t.u.e", "statue"),
        ("s-t-a-t-u-e  g-a-r-d-e-n", "statue garden"),
        ("s.t.a.t.u.e g.a.r.d.e.n", "statue garden"),
        ("S T A T U E   G A R D E N", "statue garden"),
        ("st4tu3", "statue"),
        ("$tatue g@rden", "statue garden"),
        ("va1ley", "valley"),
        ("staaaatue", "statue"),
        ("bellllls", "bells"),
        ("hilllll", "hill"),
        ("s\x00t\x01atue", "statue"),
        ("s.t.a", "sta"),
        ("st-at.ue in a gar_den", "statue in a garden"),
        ("&#115;tatue &#x67;arden", "statue garden"),
        ("\\u0073tatue \\x67arden", "statue garden"),
        ("%2573tatue", "statue"),
        ("庭 園 の statueです", "庭園の statue です"),
        ("१२ साल", "12 साल"),
        ("عــام", "عام"),
        ("%73%74%61%74%75%65", "statue"),
        ("\u202eeutats\u202c", "statue"),
        ("a \U000e0073\U000e0074\U000e0061\U000e0074\U000e0075\U000e0065", "a statue"),
    ],
)
def test_a_disguise_is_undone_in_some_view(text: str, reading: str) -> None:
    assert reading in all_words(text)


def test_base64_is_read_beside_the_text() -> None:
    hidden = base64.b64encode(b"a statue in a garden").decode()
    assert any(words.endswith("a statue in a garden") for words in all_words(f"draw {hidden}"))


def test_the_untouched_text_is_scored_too() -> None:
    assert readings("Статуя в саду")["original"] == ["статуя в саду"]
    assert readings("Статуя, в са\u200bду") == {
        "original": ["статуя в са ду"],
        "words": ["статуя в саду"],
        "skeleton": readings("Статуя в саду")["skeleton"],
    }


@pytest.mark.parametrize("text", ["मूर्ति की तस्वीर", "ภาพถ่ายของรูปปั้น", "صورة تمثال"])
def test_marks_that_spell_a_script_stay_in_the_plain_view(text: str) -> None:
    assert text in all_words(text)


def test_a_script_whose_casefold_is_a_capital_is_lower_case_too() -> None:
    assert "\uab70\uab71" in all_words("\u13a0\u13a1")
    assert all(words == words.lower() for words in all_words("\u13a0\u13a1"))


def test_ages_survive_the_reading_of_digits_as_letters() -> None:
    assert "a statue 12yo 10th" in all_words("a st4tue 12yo 10th")


def test_joined_letters_are_marked_as_run_together() -> None:
    view = next(view for view in views("see s t o n e w a l l now") if view.name == "joined")
    assert view.words == b" see stonewall now "
    assert [view.words[start:end] for start, end in view.glued] == [b"stonewall"]


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\u0301", "!?", "\x00"])
def test_text_without_words_has_views_without_words(text: str) -> None:
    assert all(view.words.strip(b" ") in (b"", text.encode()) for view in views(text))


def test_a_normalisation_bomb_is_refused() -> None:
    with pytest.raises(Expands):
        views("\ufdfa" * 10_000)


@pytest.mark.parametrize(
    "unit",
    ["a\u0301", "\u0301\u0323", "a ", "a-", "1a", "0a|", "%41", "c3RhdHVl", "\u202eab", "à", "👨\u200d", "a\x00"],
)
def test_work_grows_with_length_and_not_with_its_square(unit: str) -> None:
    """Sizes, not times: no view of a repetitive text grows faster than the text."""
    for length in (1_000, 8_000):
        text = unit * length
        assert sum(len(view.words) for view in views(text)) <= 12 * len(text.encode()) + 4096


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_has_well_formed_views(text: str) -> None:
    try:
        found = views(text)
    except Expands:
        assert len(text) > 0
        return
    except UnicodeEncodeError:
        assert any("\ud800" <= char <= "\udfff" for char in text)
        return
    assert found
    assert len({view.words for view in found}) == len(found)
    for view in found:
        check(view, text)


def check(view: View, text: str) -> None:
    assert view.words.decode()
    assert view.words[:1] == b" " and view.words[-1:] == b" "
    assert len(view.words) <= 2 * MAX_EXPANSION * len(text.encode()) + 2048
    for start, end in view.glued:
        assert 0 < start <= end < len(view.words)


@pytest.mark.parametrize("table", [ORIGINAL, PLAIN, SKELETON], ids=["original", "plain", "skeleton"])
def test_few_characters_are_folded_as_many_are(table: Table) -> None:
    for code in (*range(0x3100), *range(0xFB00, 0x10000), *range(0x1D400, 0x1D800), *range(0xE0000, 0xE0080)):
        text = f"A-b{chr(code)}\x01 \u0430{chr(code)}!"
        assert table.translate(text, beyond_ascii(text)) == text.translate(table), hex(code)


def test_a_memory_is_bounded_in_tokens_and_in_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_TOKENS", 10)
    asked: list[str] = []

    def look(token: str) -> str:
        asked.append(token)
        return token.upper()

    kept = Memory(look)
    assert [kept[token] for token in ("a", "a", "b" * 65, "b" * 65)] == ["A", "A", "B" * 65, "B" * 65]
    assert asked == ["a", "b" * 65, "b" * 65]
    for number in range(100):
        assert kept[str(number)] == str(number)
        assert len(kept) <= 10


def test_visible_text_keeps_what_a_person_sees() -> None:
    assert visible_text("A lake, f/8") == "A lake, f/8"
    assert visible_text("a\x00 l\x07ake\n") == "a lake\n"
    assert visible_text("a\u200b l\u202eake é") == "a lake é"


# --- spelling ---------------------------------------------------------------------------------------------------------

SPELLING = (Spelling(english(), ("statue", "sculptures", "garden")),)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("a sttaue in the park", "a statue in the park"),
        ("a statu in the park", "a statue in the park"),
        ("a statuue in the park", "a statue in the park"),
        ("the scluptrues in the park", "the sculptures in the park"),
        ("a sta tue in the park", "a statue in the park"),
        ("a s tat ue in the park", "a statue in the park"),
        ("a eutats in the park", "a statue in the park"),
        ("astatueinthepark", "a statue in the park"),
        ("a st4tuu3 in the park", "a statue in the park"),
        ("a sttttatu in the park", "a statue in the park"),
    ],
)
def test_spelling_is_repaired(text: str, reading: str) -> None:
    assert reading in {view.words.decode().strip() for view in views(text, SPELLING)}


@pytest.mark.parametrize(
    "text", ["a status in the park", "the statute of the park", "a statute", "a warden in the park"]
)
def test_a_word_that_is_one_is_left_alone(text: str) -> None:
    assert [view.words.decode().strip() for view in views(text, SPELLING)] == [text]


def test_an_ordinary_word_that_is_nearer_wins() -> None:
    readings = {view.words.decode().strip() for view in views("the statuse in the park", SPELLING)}
    assert "the statues in the park" in readings
    assert "the statue in the park" not in readings


@pytest.mark.parametrize("text", ["il statu dans le parc", "xq statu qz vwx", "statu"])
def test_a_text_of_unknown_words_is_another_language(text: str) -> None:
    readings = {view.words.decode().strip() for view in views(text, SPELLING)}
    assert (readings == {text}) == (text != "statu")


def test_a_slip_that_a_list_of_words_has_picked_up_is_a_slip() -> None:
    ordinary = ["a", "garden", "school", "in", *(f"word{letter}" for letter in "abcdefgh")]
    rare = [*ordinary, *(f"filler{number}" for number in range(40_000)), "shool", "gardn"]
    slips = (Spelling(rare, ("school", "statue")),)
    assert "a school in" in {view.words.decode().strip() for view in views("a shool in", slips)}
    # Only of the frequent words of packs; and a frequent word is one whatever it looks like.
    assert {view.words.decode().strip() for view in views("a gardn", slips)} == {"a gardn"}
    known = (Spelling([*ordinary, "shool"], ("school",)),)
    assert {view.words.decode().strip() for view in views("a shool in", known)} == {"a shool in"}


# --- signs that stand for several letters -----------------------------------------------------------------------------

EITHER_WORDS = (Spelling(english(), ("little", "girl", "old", "boy", "statue", "garden", "who", "is")),)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("a 1it71e g1r1 in the garden", "a little girl in the garden"),
        ("the !0ve1y 1igh7 of a val|ey", "the lovely light of a valley"),
        ("see the 117713 g4rd3n", "see the little garden"),
        ("a 80y in the g4rd3n", "a boy in the garden"),
        ("a 13y0 in the g4rd3n", "a 13yo in the garden"),
        ("g4rd3n 4 k!d !s in", "garden 4 kid is in"),
        ("a sтаtue of a gігӏ", "a statue of a girl"),
        ("an оІd stаtue", "an old statue"),
        ("the ӏіttlє gагdєn", "the little garden"),
        ("Іn thе vаӏlеy", "in the valley"),
        ("ϵrrεd stєϱ", "erred step"),
    ],
)
def test_a_sign_that_stands_for_two_letters_is_read_as_the_one_that_makes_a_word(text: str, reading: str) -> None:
    assert reading in {view.words.decode().strip() for view in views(text, EITHER_WORDS)}


@pytest.mark.parametrize("text", ["a woman of 80y", "117713 units of stock", "who is 15 today", "at 80 by 15"])
def test_figures_stay_figures_in_a_text_without_a_disguise(text: str) -> None:
    readings = {view.words.decode().strip() for view in views(text, EITHER_WORDS)}
    assert readings == {text}


def test_an_age_is_no_word_even_in_a_disguised_text() -> None:
    assert all(" 15 " in view.words.decode() for view in views("a g4rd3n who 15 at 15", EITHER_WORDS))


def test_of_two_words_that_look_the_same_both_are_read() -> None:
    spelling = (Spelling(("ail", "all"), ()),)
    assert spelling[0].readings("al\ue000") == ["all"]
    assert spelling[0].readings("a\ue000l") == ["ail", "all"]
    readings = {view.words.decode().strip() for view in views("a1l s0", spelling)}
    assert readings & {"ail so", "all so"} == {
        "ail so",
        "all so",
    }


def test_words_of_packs_are_the_likelier_reading() -> None:
    assert Spelling(("oid", "old"), ("old",)).readings("o\ue000d") == ["old", "oid"]
    assert Spelling(("oid", "old"), ("old",)).readings("o\ue000d", pack_only=True) == ["old"]
    assert Spelling(("oid",), ("old",)).readings("old") == ["old"]


@pytest.mark.parametrize("unit", ["1", "1|", "a1", "І", "ӏa", "gіrІ ", "1l1l1l1l ", "80y g1 "])
def test_readings_grow_with_length_and_not_with_their_number(unit: str) -> None:
    """Two readings a word at most, and a look-up each, however many signs it holds."""
    looked = 0

    class Counting(Spelling):
        def readings(self, word: str, pack_only: bool = False) -> list[str]:
            nonlocal looked
            looked += len(word)
            return super().readings(word, pack_only)

    spelling = (Counting(("girl", "gill", "all", "ill"), ("boy",)),)
    for length in (1_000, 16_000):
        looked = 0
        text = unit * length
        found = views(text, spelling)
        assert len(found) <= 12
        assert sum(len(view.words) for view in found) <= 12 * len(text.encode()) + 4096
        assert looked <= 8 * len(text)


# --- origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word", "origin"),
    [
        ("A quiet GARDEN, at dawn", "garden", "GARDEN"),
        ("the gar\u200bden at dawn", "garden", "gar\u200bden"),
        ("ﬁne ｇａｒｄｅｎ", "garden", "ｇａｒｄｅｎ"),
        ("é e\u0301 gardé\u0301n", "garden", "gardé\u0301n"),
        ("see g a r d e n now", "garden", "g a r d e n"),
        ("the gar-den now", "garden", "gar-den"),
        ("the g4rd3n now", "garden", "g4rd3n"),
        ("the gaaaarden now", "garden", "gaaaarden"),
        ("the gadren now", "garden", "gadren"),
        ("the gar den now", "garden", "gar den"),
        ("%67arden %41", "garden", "%67arden"),
        ("ab c3RhdHVlIGdhcmRlbg== cd", "garden", "c3RhdHVlIGdhcmRlbg=="),
        ("x\x00y garden", "garden", "garden"),
    ],
)
def test_a_view_knows_where_its_words_came_from(text: str, word: str, origin: str) -> None:
    found = set()
    for view in views(text, SPELLING):
        at = view.words.find(f" {word} ".encode())
        if at >= 0:
            start, end = view.origin(at + 1, at + 1 + len(word))
            found.add(text[start:end])
    assert origin in found
