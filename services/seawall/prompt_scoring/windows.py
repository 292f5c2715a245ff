"""Which concepts stand near each other in a view, and the few words around them that the encoder reads. Pure.

Whole prompts dilute: a request inside a page of harmless words looks harmless to a sentence encoder. A window of a few
words around the concepts does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from seawall.prompt_scoring.term_packs import Hit

#: A view with more terms than this is a word list: the nearest pairs among the first ones are enough.
_MAX_HITS = 200


class Pair(NamedTuple):
    """Two hits of one view and how many words stand between them; 0 when they touch or overlap."""

    one: Hit
    other: Hit
    distance: int


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
    return max(words.count(b" ", first.end, second.start) - 1, 0)


def window(words: bytes, pair: Pair, around: int, joint_within: int) -> str:
    """The words around a pair: one stretch, or two put together when more than ``joint_within`` words lie between.

    Args:
        around: words to take on either side.
    """
    first, second = sorted((pair.one, pair.other), key=lambda hit: hit.start)
    if pair.distance <= joint_within:
        return _stretch(words, first.start, max(first.end, second.end), around)
    return f"{_stretch(words, first.start, first.end, around)} {_stretch(words, second.start, second.end, around)}"


def _stretch(words: bytes, start: int, end: int, around: int) -> str:
    for _ in range(around + 1):
        start = words.rfind(b" ", 0, start)
        if start <= 0:
            start = 0
            break
    for index in range(around + 1):
        end = words.find(b" ", end + (index > 0))
        if end < 0:
            end = len(words)
            break
    return words[start:end].decode("utf-8", "ignore").strip()
