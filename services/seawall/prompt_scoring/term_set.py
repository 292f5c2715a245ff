"""Several term packs compiled to RE2 sets, which match every pattern in one pass. Time is linear in the text.

A pattern is compiled as it is written, and once more with its letters folded as the skeleton view folds a text, so that
"niña" is found in "nina" and a Cyrillic term in a text that mixes in Latin lookalikes.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import re2

from seawall.core.errors import Fatal
from seawall.prompt_scoring import patterns, spelling
from seawall.prompt_scoring.alignment import Span
from seawall.prompt_scoring.characters import PLAIN, SKELETON
from seawall.prompt_scoring.normalise import View
from seawall.prompt_scoring.term_packs import Concept, Hit, Term, TermPack

_DIGITS = b"0123456789"
_ANCHOR = re.compile(r"(?<!\[)\^|\$|\\[AzZ]")


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
        self._terms = [variant for pack in packs for term in pack.terms for variant in _variants(term)]
        #: The languages whose spelling is repaired before matching; English first.
        self.spelling = tuple(_spelling(packs))
        self._spans: dict[int, Any] = {}
        self._options = re2.Options()
        # RE2 would print the pattern.
        self._options.log_errors = False
        self._options.max_mem = max_mem_bytes
        # Matches everything, so that its absence shows a search that gave up.
        self._canary = len(self._terms)
        # Such a pattern asks where a view begins or ends.
        self._anchored = any(_ANCHOR.search(term.pattern) for term in self._terms)
        self._set = self._compile(glued=False)
        self._glued_set = self._compile(glued=True)

    def none_in(self, views: Sequence[View]) -> bool:
        """Whether no term stands in any of the views. One search of all together costs half of one search of each.

        Raises:
            MatchFailed: as `hits`.
        """
        # What stands in one view stands in all together. A term that reaches over two of them is no hit, only reason
        # to ask each by itself.
        glued = b"".join([view.words[start:end] + b"  " for view in views for start, end in view.glued])
        return not (
            self._anchored
            or self._match(self._set, b"".join([view.words for view in views]))
            or (glued and self._match(self._glued_set, glued))
        )

    def hits(self, view: View, text: str) -> list[Hit]:
        """Every term in the view, in order of position, those in a ``not_in`` span left out.

        Such a span is a phrase: where the text ends one between a term and what would give it another sense ("of a
        minor, key light"), it has not got it.

        Args:
            text: what the view was made of.

        Raises:
            MatchFailed: the memory budget is spent; the text must not be taken for clean.
        """
        found = self._match(self._set, view.words)
        if not found and not view.glued:
            return []
        phrases = _Phrases(view, text)
        hits = self._located(found, view.words, 0, phrases, glued=False)
        for start, end in view.glued:
            part = view.words[start:end]
            hits += self._located(self._match(self._glued_set, part), part, start, phrases, glued=True)
        return sorted(set(hits), key=_position)

    def _compile(self, glued: bool) -> Any:
        compiled = re2.Set.SearchSet(self._options)
        for term in self._terms:
            # re2.error quotes the pattern.
            try:
                compiled.Add(_wrapped(term, glued))
            except re2.error:
                raise Fatal("BAD_TERM_PACK", f"{term.where} is not a pattern RE2 can compile: mend it") from None
        compiled.Add("")
        try:
            compiled.Compile()
        except re2.error:
            raise Fatal(
                "BAD_TERM_PACK", "the packs together exceed the memory budget: raise re2_max_mem_bytes"
            ) from None
        return compiled

    def _match(self, compiled: Any, text: bytes) -> list[int]:
        found: list[int] = compiled.Match(text) or []
        try:
            found.remove(self._canary)
        except ValueError:
            raise MatchFailed from None
        return found

    def _located(self, indices: Iterable[int], words: bytes, at: int, phrases: _Phrases, *, glued: bool) -> list[Hit]:
        """The hits of some terms in a part of a view, which begins ``at``."""
        hits: list[Hit] = []
        exempt: dict[Concept, list[tuple[int, int]]] = {}
        for index in indices:
            term = self._terms[index]
            spans = [(start + at, end + at) for start, end in self._find(index, words, glued)]
            if term.exempts:
                exempt.setdefault(term.concept, []).extend(spans)
            else:
                hits += [Hit(term.concept, *span, term.language) for span in spans]
        for concept, spans in exempt.items():
            hits = _outside(hits, concept, spans, phrases)
        return hits

    def _find(self, index: int, text: bytes, glued: bool) -> list[Span]:
        term = self._terms[index]
        key = index * 2 + glued
        compiled = self._spans.get(key)
        if compiled is None:
            # Only terms that are met: a pattern's own program is larger than its share of the set.
            compiled = self._spans[key] = re2.compile(_wrapped(term, glued), self._options)
        spans = []
        at = 0
        while at <= len(text) and (match := compiled.search(text, at)) is not None:
            start, end = match.span(1)
            if term.boundary or not _cuts_number(text, start, end):
                spans.append((start, end))
            # From the term's own end: the boundary after it may be the boundary before the next.
            at = max(end, at + 1)
        return spans


_KEPT = 2
_kept: OrderedDict[tuple[int, bytes], TermSet] = OrderedDict()
_keeping = threading.Lock()


def compiled(packs: Sequence[TermPack], max_mem_bytes: int) -> TermSet:
    """`TermSet`, or the one that the same packs were compiled to last: it takes seconds, and a model may change alone.

    Raises Fatal as TermSet does.
    """
    key = (max_mem_bytes, b"".join(sorted(pack.digest for pack in packs)))
    with _keeping:
        if key not in _kept:
            _kept[key] = TermSet(packs, max_mem_bytes)
            while len(_kept) > _KEPT:
                _kept.popitem(last=False)
        return _kept[key]


def by_concept(hits: Iterable[Hit]) -> Mapping[Concept, list[Hit]]:
    """The hits grouped, each group in order of position."""
    groups: dict[Concept, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(hit.concept, []).append(hit)
    return groups


def _position(hit: Hit) -> tuple[int, int, str, str]:
    return hit.start, hit.end, hit.concept, hit.language


def _wrapped(term: Term, glued: bool) -> str:
    """The term as RE2 gets it: between edges of words, or, where the spaces between words are lost, anywhere."""
    if glued:
        return f"({term.pattern.replace(' ?', ' ').replace(' ', ' ?')})"
    # A view has one space between words and at both ends, and no other edge.
    return f" ({term.pattern}) " if term.boundary else f"({term.pattern})"


def _variants(term: Term) -> Iterator[Term]:
    plain = patterns.folded(term.pattern, PLAIN)
    yield term._replace(pattern=plain)
    skeleton = patterns.folded(term.pattern, SKELETON)
    if skeleton != plain:
        yield term._replace(pattern=skeleton)


def _spelling(packs: Sequence[TermPack]) -> Iterator[spelling.Spelling]:
    """English, and every other language that brings a vocabulary."""
    english = [pack for pack in packs if pack.card.language.partition("-")[0] == "en"]
    yield _language(english, spelling.english())
    for pack in packs:
        if pack.vocabulary and pack not in english:
            yield _language([pack], ())


def _language(packs: Sequence[TermPack], words: Sequence[str]) -> spelling.Spelling:
    ordinary = [*words]
    risky: set[str] = set()
    for pack in packs:
        ordinary += [word.translate(SKELETON) for word in pack.vocabulary]
        for term in pack.terms:
            spelled = {word.translate(SKELETON) for word in patterns.literal_words(term.pattern)}
            if term.exempts or term.concept == "benign_context":
                # Late in the order, where two letters are no word.
                ordinary += sorted(word for word in spelled if len(word) > 3)
            else:
                risky |= spelled
    return spelling.Spelling(ordinary, risky)


def _cuts_number(text: bytes, start: int, end: int) -> bool:
    before, first = text[start - 1 : start], text[start : start + 1]
    last, after = text[end - 1 : end], text[end : end + 1]
    return (first in _DIGITS and before != b"" and before in _DIGITS) or (
        last in _DIGITS and after != b"" and after in _DIGITS
    )


def _outside(hits: Iterable[Hit], concept: Concept, spans: list[Span], phrases: _Phrases) -> list[Hit]:
    """The hits but those of ``concept`` that lie inside a span of the same phrase."""
    spans = sorted(set(spans))
    starts = [start for start, _ in spans]
    # The furthest end of the spans that begin no later.
    furthest = list(accumulate((end for _, end in spans), max))

    def inside(hit: Hit) -> bool:
        index = bisect_right(starts, hit.start)
        while index and hit.end <= furthest[index - 1]:
            index -= 1
            if hit.end <= spans[index][1] and phrases.holds(hit, spans[index]):
                return True
        return False

    return [hit for hit in hits if hit.concept != concept or not inside(hit)]


#: What ends a phrase.
_BREAK = re.compile("[,;:.!?|()\\[\\]{}\n\u2014\u2026\u3001\u3002\uff0c\uff1a\uff1b]")
#: Spans of a view that are looked up in the text; each takes time in its length. No innocent text has more, and a
#: term in one that has is a term.
_MAX_LOOKED_UP = 32


class _Phrases:
    """Whether two places of a view stand in one phrase of the text."""

    def __init__(self, view: View, text: str) -> None:
        self._view = view
        self._text = text
        self._left = _MAX_LOOKED_UP if _BREAK.search(text) else None

    def holds(self, hit: Hit, span: Span) -> bool:
        """Whether no phrase ends in the span before or after the hit that lies in it."""
        if self._left is None or span == (hit.start, hit.end):
            return True
        if not self._left:
            return False
        self._left -= 1
        first, last = self._view.origin(*span)
        start, end = self._view.origin(hit.start, hit.end)
        return not (_BREAK.search(self._text, first, start) or _BREAK.search(self._text, end, last))
