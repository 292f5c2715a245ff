"""Several term packs compiled to RE2 sets, which match every pattern in one pass. Time is linear in the text.

A pattern is compiled as it is written, and once more with its letters folded as the skeleton view folds a text, so that
"niña" is found in "nina" and a Cyrillic term in a text that mixes in Latin lookalikes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import re2

from seawall.core.errors import Fatal
from seawall.prompt_scoring.normalise import View
from seawall.prompt_scoring.term_packs import Concept, Hit, Term, TermPack


class MatchFailed(RuntimeError):
    """RE2 ran out of its memory budget: nothing is known of the text."""


class TermSet:
    """Several packs compiled together. Safe for threads."""

    def __init__(self, packs: Sequence[TermPack], max_mem_bytes: int = 256 * 1024 * 1024) -> None:
        """Args:
            packs: what to compile; the order does not matter.
            max_mem_bytes: RE2's budget for one compiled set. When matching exceeds it, ``MatchFailed`` is raised.

        Raises:
            Fatal: ``BAD_TERM_PACK`` naming the pack, file and line of a pattern that does not compile.
        """
        if not packs:
            raise Fatal("NO_TERM_PACKS", "packs: none is configured, so nothing could be found: keep the bundled packs")
        self._terms = [term for pack in packs for term in pack.terms]
        self._spans: dict[int, Any] = {}
        self._options = re2.Options()
        # RE2 would print the pattern.
        self._options.log_errors = False
        self._options.max_mem = max_mem_bytes
        self._set = self._compile(glued=False)
        self._glued_set = self._compile(glued=True)

    def hits(self, view: View) -> list[Hit]:
        """Every term in the view, in order of position, those in a ``not_in`` span left out.

        Raises:
            MatchFailed: the memory budget is spent; the text must not be taken for clean.
        """
        found = self._match(self._set, view.words)
        hits = self._located(found, view.words, glued=False) if found else []
        for start, end in view.glued:
            part = view.words[start:end]
            glued = self._match(self._glued_set, part)
            hits += [
                hit._replace(start=hit.start + start, end=hit.end + start) for hit in self._located(glued, part, True)
            ]
        hits.sort(key=lambda hit: (hit.start, hit.end))
        return hits

    def _compile(self, glued: bool) -> Any:
        compiled = re2.Set.SearchSet(self._options)
        for term in self._terms:
            # re2.error quotes the pattern.
            try:
                compiled.Add(_wrapped(term, glued))
            except re2.error:
                raise Fatal("BAD_TERM_PACK", f"{term.where} is not a pattern RE2 can compile: mend it") from None
        # Matches everything, so that its absence shows a search that gave up.
        compiled.Add("")
        try:
            compiled.Compile()
        except re2.error:
            raise Fatal(
                "BAD_TERM_PACK", "the packs together exceed the memory budget: raise re2_max_mem_bytes"
            ) from None
        return compiled

    def _match(self, compiled: Any, text: bytes) -> list[int]:
        found = compiled.Match(text) or []
        if len(self._terms) not in found:
            raise MatchFailed
        return [index for index in found if index != len(self._terms)]

    def _located(self, indices: Iterable[int], text: bytes, glued: bool) -> list[Hit]:
        hits: list[Hit] = []
        exempt: dict[Concept, list[tuple[int, int]]] = {}
        for index in indices:
            term = self._terms[index]
            spans = self._find(index, text, glued)
            if term.exempts:
                exempt.setdefault(term.concept, []).extend(spans)
            else:
                hits += [Hit(term.concept, *span, term.language) for span in spans]
        if exempt:
            hits = [hit for hit in hits if not _inside(hit, exempt.get(hit.concept, ()))]
        return hits

    def _find(self, index: int, text: bytes, glued: bool) -> list[tuple[int, int]]:
        term = self._terms[index]
        key = index * 2 + glued
        compiled = self._spans.get(key)
        if compiled is None:
            # Only terms that are met: a pattern's own program is larger than its share of the set.
            compiled = self._spans[key] = re2.compile(_wrapped(term, glued), self._options)
        spans = []
        at = 0
        while at <= len(text) and (match := compiled.search(text, at)) is not None:
            spans.append(match.span(1))
            # From the term's own end: the boundary after it may be the boundary before the next.
            at = max(match.end(1), at + 1)
        return spans


_EDGE = r"[^0-9A-Za-z\x80-\x{10FFFF}]"


def _wrapped(term: Term, glued: bool) -> str:
    """The term as RE2 gets it: between edges of words, or, where the spaces between words are lost, anywhere."""
    if glued:
        return f"({term.pattern.replace(' ?', ' ').replace(' ', ' ?')})"
    return rf"(?:^|{_EDGE})({term.pattern})(?:$|{_EDGE})" if term.boundary else f"({term.pattern})"


def _inside(hit: Hit, spans: Iterable[tuple[int, int]]) -> bool:
    return any(start <= hit.start and hit.end <= end for start, end in spans)


def by_concept(hits: Iterable[Hit]) -> Mapping[Concept, list[Hit]]:
    """The hits grouped, each group in order of position."""
    groups: dict[Concept, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(hit.concept, []).append(hit)
    return groups
