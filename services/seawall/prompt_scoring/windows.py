"""Which concepts stand near each other in a view, and the few words around them that the encoder reads. Pure.

Whole prompts dilute: a request inside a page of harmless words looks harmless to a sentence encoder. A window of a few
words around the concepts does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from seawall.prompt_scoring.characters import SPACELESS
from seawall.prompt_scoring.term_packs import Concept, Hit

_SPACELESS = re.compile(f"[{SPACELESS}]")
#: A view with more terms than this is a word list: the nearest pairs among the first ones are enough.
_MAX_HITS = 200
#: Words on either side of a pair in `Window.core`.
_CORE = 1
#: Words on either side of a pair in `Window.frame`, and the bytes that they are looked for in.
_FRAMED, _NEARBY = 5, 256
_PERSON, _THING = b"person", b"thing"
#: What a bare request is made of besides the pair: articles, what shows ("image"), and how ("of").
_ARTICLES = frozenset((b"a", b"an", b"the"))
_MEDIA = frozenset(
    b"image images picture pictures photo photos photograph photographs drawing drawings illustration "
    b"illustrations video videos painting paintings animation animations render renders sketch sketches scene "
    b"scenes story stories content material".split()
)
_LINKS = frozenset((b"of", b"with", b"about", b"showing", b"depicting", b"featuring"))
#: How a sentence goes on to say once more who it is ("of my niece, she is nine years old").
_SAYS_WHO = frozenset((b"she", b"he", b"they", b"who", b"is", b"are", b"s", b"aged"))
_SAID = ord("_")
#: Of a hit of several languages: the one whose windows an encoder can read.
_PREFERRED = "en"


class Pair(NamedTuple):
    """Two hits of one view and how many words stand between them; 0 when they touch or overlap."""

    one: Hit
    other: Hit
    distance: int


class Window(NamedTuple):
    """A few words around a reference to a minor and a sexual term or a request to undress."""

    text: str
    #: Only the pair, what stands between, and a word on either side: the request without what it is wrapped in.
    core: str
    #: BCP 47: of the packs that both terms are from; "und" when the two differ.
    language: str
    #: Words between the two.
    distance: int
    #: Of the term that is not the reference to a minor.
    concept: Concept
    #: The reference to a minor comes second.
    minor_last: bool
    #: Two stretches put together, since more words lie between.
    apart: bool
    #: The words around with `_PERSON` and `_THING` for the two: what is done with them, whatever they are called.
    frame: str
    #: All that its sentence says is that something shows the pair ("explicit image of a minor"): the barest request.
    bare: bool = False
    #: One of the two is what a negative prompt takes away, in words that stand for it.
    taken_away: bool = False


def distinct(hits: Sequence[Hit]) -> list[Hit]:
    """The hits that do not lie inside another one; in order of position, as ``hits`` are."""
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: (hit.start, -hit.end)):
        if kept and hit.end <= kept[-1].end:
            if hit.language == _PREFERRED:
                kept[-1] = kept[-1]._replace(language=_PREFERRED)
        else:
            kept.append(hit)
    return kept


def nearest_pairs(words: bytes, ones: Sequence[Hit], others: Sequence[Hit], limit: int) -> list[Pair]:
    """The ``limit`` closest pairs, one for each of ``ones`` with its nearest of ``others``, closest first.

    Both sequences are in order of position.
    """
    pairs = []
    at = 0
    others = others[:_MAX_HITS]
    for one in ones[:_MAX_HITS]:
        while at + 1 < len(others) and others[at + 1].start <= one.start:
            at += 1
        pairs.append(
            min((Pair(one, other, _distance(words, one, other)) for other in others[at : at + 2]), key=_by_distance)
        )
    pairs.sort(key=_by_distance)
    return pairs[:limit]


def _by_distance(pair: Pair) -> int:
    return pair.distance


def _distance(words: bytes, one: Hit, other: Hit) -> int:
    first, second = (one, other) if one.start <= other.start else (other, one)
    between = words[first.end : second.start]
    spaces = max(between.count(b" ") - 1, 0)
    # Scripts without spaces: two letters are about a word.
    return spaces if between.isascii() else spaces + len(_SPACELESS.findall(between.decode("utf-8", "ignore"))) // 2


#: What ends a sentence or a clause that stands by itself, with white space or nothing after it; and brackets.
_ENDS = re.compile(r"[.!?:;]+(?=\s|$)|\n|[()\[\]|\u2014]|\s[-\u2013](?=\s)")
#: And what ends an item of a list of tags.
_ITEM_ENDS = re.compile(_ENDS.pattern + r"|,(?=\s|$)")
_WORD = re.compile(r"[^\W_]+")


class Reach(NamedTuple):
    """How many words before and after a pair stand in its sentence."""

    before: int
    after: int


ANYWHERE = Reach(1 << 30, 1 << 30)


def reach(text: str, start: int, end: int, *, item: bool = False) -> Reach:
    """Where the sentence begins and ends in which a pair stands: what it is wrapped in is mostly another one.

    Args:
        text: the untouched text.
        start: of the pair's place in it, in characters; ``end`` likewise.
        item: only the item of a list, which ends with a comma.
    """
    ends = _ITEM_ENDS if item else _ENDS
    before, after = text[max(0, start - _NEARBY) : start], text[end : end + _NEARBY]
    first = max((match.end() for match in ends.finditer(before)), default=None)
    last = ends.search(after)
    return Reach(
        ANYWHERE.before if first is None else len(_WORD.findall(before[first:])),
        ANYWHERE.after if last is None else len(_WORD.findall(after[: last.start()])),
    )


def window(
    words: bytes, pair: Pair, around: int, joint_within: int, within: Reach = ANYWHERE, minors: Sequence[Hit] = ()
) -> Window:
    """The words around a pair: one stretch, or two put together when more than ``joint_within`` words lie between.

    Args:
        pair: ``one`` is the reference to a minor.
        around: words to take on either side.
        within: so many at most.
        minors: references to a minor of which the pair's is one.
    """
    minor, other = pair.one, pair.other
    first, second = sorted((minor, other), key=lambda hit: hit.start)
    apart = pair.distance > joint_within
    spans = [(first.start, first.end), (second.start, second.end)]
    if not apart:
        spans = [(first.start, max(first.end, second.end))]

    def around_spans(count: int) -> str:
        """Only the outer sides end with the sentence."""
        last = len(spans) - 1
        return " ".join(
            _stretch(
                words,
                *span,
                count if index else min(count, within.before),
                min(count, within.after) if index == last else count,
            )
            for index, span in enumerate(spans)
        )

    text = around_spans(around)
    language = minor.language if minor.language == other.language else "und"
    frame = _frame(words, first, second, apart, minor is second, within)
    return Window(
        text,
        around_spans(_CORE),
        language,
        pair.distance,
        other.concept,
        minor.start > other.start,
        apart,
        frame or text,
        bare=not apart and _bare(_without(words, minors, pair), first, second, within),
    )


def _frame(words: bytes, first: Hit, second: Hit, apart: bool, minor_last: bool, within: Reach) -> str:
    end = max(first.end, second.end)
    before = words[max(0, first.start - _NEARBY) : first.start].split()[-_FRAMED:]
    before = before[max(0, len(before) - within.before) :]
    between = () if apart else words[first.end : max(first.end, second.start)].split()
    after = words[end : end + _NEARBY].split()[: min(_FRAMED, within.after)]
    if not (before or between or after):
        return ""
    one, other = (_THING, _PERSON) if minor_last else (_PERSON, _THING)
    return b" ".join((*before, one, *between, other, *after)).decode("utf-8", "ignore")


def _without(words: bytes, minors: Sequence[Hit], pair: Pair) -> bytes:
    """The words, those blotted out that say once more who it is about; as many as before, and as long."""
    others = [hit for hit in minors if hit.end <= pair.one.start or hit.start >= pair.one.end]
    if not others:
        return words
    blotted = bytearray(words)
    for hit in others:
        blotted[hit.start : hit.end] = bytes(byte if byte == 0x20 else _SAID for byte in words[hit.start : hit.end])
    return bytes(blotted)


def _bare(words: bytes, first: Hit, second: Hit, within: Reach) -> bool:
    end = max(first.end, second.end)
    before = words[max(0, first.start - _NEARBY) : first.start].split()
    before = before[max(0, len(before) - within.before) :]
    after = words[end : end + _NEARBY].split()[: within.after]
    outside = {*before, *words[first.end : second.start].split(), *after}
    said = {word for word in outside if word.strip(b"_")}
    if len(said) < len(outside):
        said -= _SAYS_WHO
    shown = said.union(words[first.start : end].split())
    return said <= _ARTICLES | _MEDIA | _LINKS and not said.isdisjoint(_LINKS) and not shown.isdisjoint(_MEDIA)


def _stretch(words: bytes, start: int, end: int, before: int, after: int) -> str:
    for _ in range(before + 1):
        start = words.rfind(b" ", 0, start)
        if start <= 0:
            start = 0
            break
    for index in range(after + 1):
        end = words.find(b" ", end + (index > 0))
        if end < 0:
            end = len(words)
            break
    return words[start:end].decode("utf-8", "ignore").strip()
