from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from seawall.core.errors import Fatal
from seawall.prompt_scoring import term_packs
from seawall.prompt_scoring.normalise import View, views
from seawall.prompt_scoring.term_set import MatchFailed, TermSet


def make_pack(folder: Path, files: dict[str, object], **card: object) -> Path:
    folder.mkdir(exist_ok=True)
    for concept, content in files.items():
        (folder / f"{concept}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    fields = {"name": folder.name, "version": "1", "language": "en", "licence": "Apache-2.0", "files": {}, **card}
    (folder / "pack.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return folder


def terms(concept: str, *patterns: str, not_in: tuple[str, ...] = ()) -> dict[str, object]:
    return {concept: {"concept": concept, "terms": list(patterns), "not_in": list(not_in)}}


def found(term_set: TermSet, text: str) -> list[tuple[str, str]]:
    return [
        (hit.concept, view.words[hit.start : hit.end].decode())
        for view in views(text)
        for hit in term_set.hits(view, text)
    ]


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return make_pack(tmp_path / "demo", terms("benign_context", "stone ?walls?", "garden", not_in=("garden city",)))


@pytest.fixture(scope="module")
def bundled() -> TermSet:
    return TermSet([term_packs.load(folder) for folder in term_packs.bundled()])


def test_a_stamped_pack_loads_with_the_same_digest_each_time(pack: Path) -> None:
    stamped = term_packs.stamp(pack)
    assert term_packs.load(pack).digest == stamped.digest
    assert term_packs.load(pack, stamped.digest.hex()).card.name == "demo"


def test_terms_match_words_and_not_parts_of_words(pack: Path) -> None:
    term_set = TermSet([term_packs.stamp(pack)])
    assert found(term_set, "Stone, walls in a GARDEN.") == [
        ("benign_context", "stone walls"),
        ("benign_context", "garden"),
    ]
    assert found(term_set, "gardens and gardeners") == []
    assert found(term_set, "jardin éгgarden") == []


def test_neighbouring_terms_are_both_found(pack: Path) -> None:
    assert len(found(TermSet([term_packs.stamp(pack)]), "garden garden garden")) == 3


def test_another_sense_excuses_its_own_span_only(pack: Path) -> None:
    term_set = TermSet([term_packs.stamp(pack)])
    assert found(term_set, "a garden city") == []
    assert found(term_set, "a garden city with a garden") == [("benign_context", "garden")]


@pytest.mark.parametrize("text", ["a garden, city light", "a garden. City lights", "a (garden) city", "garden: city"])
def test_another_sense_does_not_reach_over_the_end_of_a_phrase(pack: Path, text: str) -> None:
    assert found(TermSet([term_packs.stamp(pack)]), text) == [("benign_context", "garden")]


def test_a_phrase_that_ends_elsewhere_keeps_its_sense(pack: Path) -> None:
    term_set = TermSet([term_packs.stamp(pack)])
    assert found(term_set, "gulls, a garden-city, a pier") == []
    assert found(term_set, "g a r d e n, a garden city") == [("benign_context", "garden")]


def test_a_term_that_reaches_over_the_end_itself_is_excused_as_a_whole(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "demo", terms("benign_context", "walls? garden", not_in=("stone walls? garden",)))
    term_set = TermSet([term_packs.stamp(pack)])
    assert found(term_set, "stone wall, garden") == []
    assert found(term_set, "stone, wall, garden") == [("benign_context", "wall garden")]


def test_of_many_phrases_some_are_looked_up_and_the_others_excuse_nothing(pack: Path) -> None:
    term_set = TermSet([term_packs.stamp(pack)])
    assert found(term_set, "garden city " * 1000) == []
    assert len(found(term_set, "garden city, " * 1000)) == 1000 - 32


def test_words_that_run_together_are_found_where_letters_were_joined(pack: Path) -> None:
    term_set = TermSet([term_packs.stamp(pack)])
    assert found(term_set, "x g a r d e n s t o n e w a l l") == [
        ("benign_context", "garden"),
        ("benign_context", "stonewall"),
    ]
    assert found(term_set, "xgardenstonewall") == []


def test_a_script_without_spaces_needs_no_boundary(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "ja", terms("benign_context", "庭園"), language="ja", boundary="none")
    assert ("benign_context", "庭園") in found(TermSet([term_packs.stamp(pack)]), "京都の庭園について")


def test_a_changed_file_is_refused(pack: Path) -> None:
    term_packs.stamp(pack)
    (pack / "benign_context.yaml").write_text("concept: benign_context\nterms: [hedge]\n", encoding="utf-8")
    with pytest.raises(Fatal, match=r"TERM_PACK_DIGEST_MISMATCH: demo/benign_context\.yaml"):
        term_packs.load(pack)


def test_a_pack_that_is_not_the_pinned_one_is_refused(pack: Path) -> None:
    term_packs.stamp(pack)
    with pytest.raises(Fatal, match="TERM_PACK_DIGEST_MISMATCH"):
        term_packs.load(pack, "0" * 64)


def test_a_file_the_card_does_not_list_is_refused(pack: Path) -> None:
    term_packs.stamp(pack)
    shutil.copy(pack / "benign_context.yaml", pack / "coercion.yaml")
    with pytest.raises(Fatal, match=r"does not list coercion\.yaml"):
        term_packs.load(pack)


def test_a_missing_pack_and_a_missing_file_are_named(pack: Path) -> None:
    with pytest.raises(Fatal, match="TERM_PACK_MISSING"):
        term_packs.load(pack.parent / "absent")
    term_packs.stamp(pack)
    (pack / "benign_context.yaml").unlink()
    with pytest.raises(Fatal, match=r"TERM_PACK_MISSING: demo/benign_context\.yaml"):
        term_packs.load(pack)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("concept: weather\nterms: [secretword]", "concept"),
        ("concept: coercion\nterms: []", "terms"),
        ("concept: coercion\nterms: secretword", "terms"),
        ("concept: coercion\nterms: ['secretword']\nextra: secretword", "extra"),
        ("concept: coercion\nterms: [secretword: secretword", "line"),
        ("- secretword", "file"),
    ],
)
def test_a_malformed_file_is_refused_without_quoting_it(pack: Path, content: str, named: str) -> None:
    (pack / "benign_context.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(Fatal, match="BAD_TERM_PACK") as caught:
        term_packs.stamp(pack)
    assert named in caught.value.detail
    assert "secretword" not in caught.value.detail
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("pattern", ["secretword(", "secretword(?=x)", r"(secretword)\1", "(?:secretword){2000}{2000}"])
def test_a_pattern_that_does_not_compile_is_named_by_number(
    tmp_path: Path, pattern: str, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = term_packs.stamp(make_pack(tmp_path / "demo", terms("coercion", "fine", pattern)))
    with pytest.raises(Fatal, match=r"BAD_TERM_PACK: demo/coercion\.yaml line 5") as caught:
        TermSet([loaded])
    assert "secretword" not in str(caught.value)
    assert "secretword" not in "".join(capfd.readouterr())


def test_no_packs_at_all_is_refused() -> None:
    with pytest.raises(Fatal, match="NO_TERM_PACKS"):
        TermSet([])


def test_packs_beyond_the_memory_budget_are_refused_at_load(tmp_path: Path) -> None:
    loaded = term_packs.stamp(make_pack(tmp_path / "demo", terms("coercion", *(f"word{n}" for n in range(200)))))
    with pytest.raises(Fatal, match="re2_max_mem_bytes"):
        TermSet([loaded], max_mem_bytes=20_000)


def test_a_search_that_gave_up_is_not_taken_for_clean(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RE2 reports nothing at all when its budget is spent in mid-search, as it does for a clean text."""
    term_set = TermSet([term_packs.stamp(pack)])

    class Exhausted:
        def Match(self, text: bytes) -> None:
            return None

    monkeypatch.setattr(term_set, "_set", Exhausted())
    with pytest.raises(MatchFailed):
        term_set.hits(View("words", b" a mountain lake "), "a mountain lake")


def test_time_is_linear_on_text_made_against_backtracking(tmp_path: Path) -> None:
    loaded = term_packs.stamp(make_pack(tmp_path / "demo", terms("coercion", "(?:a+)+b"), boundary="none"))
    assert TermSet([loaded]).hits(View("words", b" " + b"a" * 100_000 + b" "), "a" * 100_000) == []


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("explicit image of a minor", "minor_reference"),
        ("explicit image of a minor", "sexual_context"),
        ("a 12 year old", "minor_reference"),
        ("a 12-year-old child", "minor_reference"),
        ("12yo", "minor_reference"),
        ("twelve years old", "minor_reference"),
        ("she is 14", "minor_reference"),
        ("aged 9", "minor_reference"),
        ("7th grader", "minor_reference"),
        ("high school student", "minor_reference"),
        ("person under the age of 18", "minor_reference"),
        ("sexually explicit", "sexual_context"),
        ("nude, photograph", "sexual_context"),
        ("remove the clothes from this photo", "undressing_request"),
        ("undress the person in this photo", "undressing_request"),
        ("make the person in this photo nude", "undressing_request"),
        ("the person in this photo", "real_person_photo"),
        ("a deepfake of someone", "real_person_photo"),
        ("blackmail", "coercion"),
        ("against their will", "coercion"),
        ("paediatric guide", "benign_context"),
    ],
)
def test_bundled_packs_know_clinical_terms(bundled: TermSet, text: str, concept: str) -> None:
    assert concept in {name for name, _ in found(bundled, text)}


@pytest.mark.parametrize(
    "text",
    [
        "Sonata in A minor for cello",
        "chord progression in A minor, slow",
        "A minor chord, guitar tutorial",
        "a bottle of 15-year-old whisky",
        "cheddar aged 12 months",
        "a 12-year-old car with a dented door",
        "kid leather gloves",
        "hey baby, rock and roll",
        "baby elephant and its mother",
        "minor league baseball",
        "fix a minor bug",
        "nude lipstick",
        "naked mole rat in a burrow",
        "visible to the naked eye",
        "explicit casts in C++",
        "same-sex couple",
        "16:9, 16k, f/16, 8k uhd, 35mm",
        "a 35 year old woman",
        "5 years of experience, level 12, 14 points",
        "he is 6 feet tall",
        "oilseed rape field in bloom",
    ],
)
def test_bundled_packs_know_the_other_senses(bundled: TermSet, text: str) -> None:
    assert {name for name, _ in found(bundled, text)} <= {"benign_context", "negated_clothing", "negated_adulthood"}


def test_another_sense_nearby_does_not_hide_the_first(bundled: TermSet) -> None:
    hits = found(bundled, "song in A minor; explicit image of a minor")
    assert [text for concept, text in hits if concept == "minor_reference"] == ["minor"]


def test_a_pattern_that_asks_where_a_text_begins_is_not_lost_when_views_are_searched_together(tmp_path: Path) -> None:
    term_set = TermSet([term_packs.stamp(make_pack(tmp_path / "p", terms("coercion", "^ statue")))])
    several = views("statue in a g\u200barden", term_set.spelling)
    assert len(several) > 1
    assert not term_set.none_in(several)


def test_views_without_a_term_are_passed_over_together(pack: Path) -> None:
    term_set = TermSet([term_packs.stamp(pack)])
    assert term_set.none_in(views("a qu\u200biet harbour", term_set.spelling))
    assert not term_set.none_in(views("a qu\u200biet garden", term_set.spelling))
    assert not term_set.none_in(views("qu\u200biet s t o n e w a l l now", term_set.spelling))
