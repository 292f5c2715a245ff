"""What an author of a term pack wants to know: does it load, can each pattern match at all, do its own cases hold.

Faults name file, line and mend. No pattern and no case is ever quoted: what is printed may end in a log.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import re2

from seawall.core.errors import Fatal
from seawall.prompt_scoring import patterns, term_packs
from seawall.prompt_scoring.characters import PLAIN
from seawall.prompt_scoring.normalise import Expands, views
from seawall.prompt_scoring.term_packs import CASES_FILE, Concept, Term, TermPack
from seawall.prompt_scoring.term_set import TermSet

#: A case's ``finds`` is exact for these.
_EVIDENCE: frozenset[Concept] = frozenset(
    ("minor_reference", "sexual_context", "undressing_request", "real_person_photo", "coercion")
)


class Fault(NamedTuple):
    """Something to mend."""

    #: "de-clinical/coercion.yaml line 7"
    where: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: {self.mend}"


def check(folder: Path) -> tuple[TermPack | None, list[Fault]]:
    """The pack, if it loads, and everything that is wrong with it."""
    try:
        pack = term_packs.load(folder)
    except Fatal as error:
        return None, [Fault(error.reason, error.detail)]
    faults = [fault for term in pack.terms for fault in _lint(term)]
    faults += _repeated(pack)
    if not faults:
        try:
            TermSet([pack])
        except Fatal as error:
            faults.append(Fault(error.reason, error.detail))
    return pack, faults


def test(pack: TermPack) -> list[Fault]:
    """The cases that do not hold. Raises Fatal as TermSet does, or if the pack brings no cases."""
    name = pack.card.name
    if not pack.cases:
        raise Fatal(
            "NO_CASES", f"{name}: there is no {CASES_FILE}: write one, so that a change of the pack can be told"
        )
    terms = TermSet([pack])
    faults = []
    for line, case in pack.cases:
        where = f"{name}/{CASES_FILE} line {line}"
        try:
            found = {hit.concept for view in views(case.text, terms.spelling) for hit in terms.hits(view, case.text)}
        except Expands:
            faults.append(Fault(where, "the text expands beyond all bounds when it is normalised"))
            continue
        missed = set(case.finds) - found
        wrong = (found & _EVIDENCE) - set(case.finds) | found & set(case.lacks)
        said = [f"{what} {', '.join(sorted(which))}" for what, which in (("misses", missed), ("finds", wrong)) if which]
        if said:
            faults.append(Fault(where, " and ".join(said)))
    return faults


def _lint(term: Term) -> Iterator[Fault]:
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(patterns.folded(term.pattern, PLAIN), options)
    except re2.error:
        yield Fault(term.where, "RE2 cannot compile it: no look-around, no back-references, brackets closed")
        return
    if compiled.fullmatch("") is not None:
        yield Fault(term.where, "it matches the empty text: make a part of it mandatory")
    if term.pattern.strip(" ") != term.pattern or "  " in term.pattern:
        yield Fault(term.where, "it begins or ends with a space, or has two in a row: no view has those")
    for kind in patterns.unreachable(term.pattern):
        yield Fault(term.where, _UNREACHABLE[kind])


_UNREACHABLE = {
    "ascii": r"\w and \b know ASCII only: write [\pL\pN], and leave edges to the card's boundary",
    "letter": "it asks for a capital letter: views are lower-case",
    "sign": "it asks for a sign: in views every sign is a space, and there is one space between words",
}


def _repeated(pack: TermPack) -> Iterator[Fault]:
    seen: dict[tuple[str, bool, str], str] = {}
    for term in pack.terms:
        before = seen.setdefault((term.concept, term.exempts, term.pattern), term.where)
        if before is not term.where:
            yield Fault(term.where, f"it repeats {before.rpartition('/')[2]}: remove one")
