"""`seawall packs`: what authors and operators of term packs are told, and that no pattern is among it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from seawall.cli.app import app
from seawall.core.errors import Fatal
from seawall.prompt_scoring import pack_check, term_packs
from seawall.prompt_scoring.patterns import folded, literal_words, unreachable

SECRET = "zugzwang"  # noqa: S105  a pattern that nobody may see


def make(folder: Path, *terms: str, cases: list[dict[str, Any]] | None = None, **card: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "coercion.yaml").write_text(
        "concept: coercion\nterms:\n" + "".join(f"  - {json.dumps(term)}\n" for term in terms), encoding="utf-8"
    )
    if cases is not None:
        (folder / "cases.yaml").write_text(yaml.safe_dump({"cases": cases}), encoding="utf-8")
    fields = {"name": folder.name, "version": "1", "language": "en", "licence": "Apache-2.0", "files": {}, **card}
    (folder / "pack.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    term_packs.stamp(folder)
    return folder


@pytest.mark.parametrize(
    ("pattern", "mend"),
    [
        (f"{SECRET}(", "RE2 cannot compile it"),
        (f"{SECRET}(?=x)", "RE2 cannot compile it"),
        (f"(?:{SECRET})?", "matches the empty text"),
        (f"{SECRET} ", "begins or ends with a space"),
        (f"{SECRET.capitalize()}", "capital letter"),
        (f"{SECRET}-move", "sign"),
        (f"{SECRET}\\.", "sign"),
        (rf"\b{SECRET}", "ASCII only"),
        (rf"{SECRET}\w+", "ASCII only"),
    ],
)
def test_a_fault_is_named_by_file_line_and_mend_and_never_quoted(tmp_path: Path, pattern: str, mend: str) -> None:
    _, faults = pack_check.check(make(tmp_path / "demo", "fine", pattern))
    (fault,) = faults
    assert fault.where == "demo/coercion.yaml line 4"
    assert mend in fault.mend
    assert SECRET not in str(fault).lower()


def test_a_sound_pack_has_no_faults_and_a_repeated_pattern_is_one(tmp_path: Path) -> None:
    pack, faults = pack_check.check(make(tmp_path / "demo", "(?:check|stale)mates?", "pre ?move[sd]?", "[0-9]+ moves"))
    assert pack is not None and faults == []
    _, faults = pack_check.check(make(tmp_path / "demo", "fine", SECRET, SECRET))
    assert [str(fault) for fault in faults] == [
        "demo/coercion.yaml line 5: it repeats coercion.yaml line 4: remove one"
    ]


@pytest.mark.parametrize("folder", term_packs.bundled(), ids=lambda folder: folder.name)
def test_bundled_packs_have_no_faults(folder: Path) -> None:
    assert pack_check.check(folder)[1] == []


def test_cases_that_do_not_hold_are_named_by_line(tmp_path: Path) -> None:
    cases = [
        {"text": f"a {SECRET} in the park", "finds": ["coercion"]},
        {"text": "a lake", "finds": ["coercion"]},
        {"text": f"ｚｕｇzwang {SECRET}", "finds": []},
        {"text": SECRET, "finds": ["coercion"], "lacks": ["coercion"]},
    ]
    pack = term_packs.load(make(tmp_path / "demo", SECRET, cases=cases))
    faults = [str(fault) for fault in pack_check.test(pack)]
    assert faults == [
        "demo/cases.yaml line 5: misses coercion",
        "demo/cases.yaml line 8: finds coercion",
        "demo/cases.yaml line 10: finds coercion",
    ]


def test_a_pack_without_cases_cannot_be_tested(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="NO_CASES"):
        pack_check.test(term_packs.load(make(tmp_path / "demo", SECRET)))


def test_a_command_prints_digests_and_faults_but_no_pattern(tmp_path: Path) -> None:
    good = make(tmp_path / "good", SECRET, cases=[{"text": SECRET, "finds": ["coercion"]}])
    bad = make(tmp_path / "bad", f"{SECRET}(", cases=[{"text": SECRET, "finds": []}])
    run = CliRunner().invoke
    passed = run(app, ["packs", "check", str(good)])
    assert passed.exit_code == 0
    assert term_packs.load(good).digest.hex() in passed.output
    failed = run(app, ["packs", "check", str(good), str(bad), "--json"])
    assert failed.exit_code == 1
    assert [one["ok"] for one in json.loads(failed.output)] == [True, False]
    tested = run(app, ["packs", "test", str(good)])
    assert (tested.exit_code, "1 of 1 cases hold" in tested.output) == (0, True)
    assert SECRET not in passed.output + failed.output + tested.output


def test_list_tells_how_each_pack_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    private, public = tmp_path / "private.json", tmp_path / "public.json"
    assert run(app, ["packs", "keys", str(private), str(public)]).exit_code == 0
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    pinned, signed = make(tmp_path / "pinned", SECRET), make(tmp_path / "signed", SECRET)
    assert run(app, ["packs", "stamp", str(signed), "--keys", str(private)]).exit_code == 0
    packs = [{"path": str(pinned), "sha256": term_packs.load(pinned).digest.hex()}, {"path": str(signed)}]
    monkeypatch.setenv("SEAWALL_PACKS", json.dumps(packs))
    monkeypatch.setenv("SEAWALL_PACK_KEYS", str(public))
    listed = run(app, ["packs", "list", "--json"])
    trust = {pack["name"]: pack["trust"] for pack in json.loads(listed.output)}
    assert trust["pinned"] == "pinned" and trust["signed"] == "signed" and trust["en-clinical"] == "bundled"
    assert SECRET not in listed.output


# --- patterns as text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("child(?:ren)?", {"child", "children"}),
        ("(?:under|over) ?age", {"underage", "overage", "under", "over", "age"}),
        ("wom[ae]n|m[ae]n", set()),
        ("[a-z]+ lakes?", {"lake", "lakes"}),
        ("a{2}b lake*", set()),
        (r"\pL+ sea", {"sea"}),
        ("(?i)sea(?P<name>side)", {"seaside"}),
        ("sea(", {"sea"}),
    ],
)
def test_the_words_a_pattern_spells_out(pattern: str, words: set[str]) -> None:
    assert literal_words(pattern) >= words
    assert all(word.isalpha() for word in literal_words(pattern))


def test_a_patterns_letters_are_folded_and_its_syntax_is_not() -> None:
    table = {ord("ñ"): "n", ord("ß"): "ss", ord("’"): ""}
    assert folded("ni[ñn]as?", table) == "ni[nn]as?"
    assert folded("stra(?:ß|ss)e ?ß+", table) == "stra(?:(?:ss)|ss)e ?(?:ss)+"
    assert folded("d’?or [à-ÿ]", table) == "d(?:)?or [à-ÿ]"


@pytest.mark.parametrize("pattern", ["fine", "a|b", "[^a-z]x?", r"\d{2,3}", r"\pL+", "(?:a b)+", "^a$"])
def test_what_a_view_can_hold_is_not_complained_of(pattern: str) -> None:
    assert unreachable(pattern) == []
