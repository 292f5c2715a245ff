"""Repairs spelling, benign and risky words alike, so that "explicti" is read and "miner" stays a miner.

A language's known words are ordinary ones and those of the term packs. A known word is never touched. An unknown one is
repaired when a pack's word is within one edit of it (two for long words) and no frequent ordinary word is nearer; where
one is, that one is taken. Unknown words are also read backwards, put together from pieces ("chi ld"), and taken apart
where words run together. A text that is mostly unknown words is in another language, and is left alone.

All bounds are counted, so that the work is linear in the text. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from seawall.prompt_scoring.characters import EITHER
from seawall.prompt_scoring.memory import Memory

#: A pack's word shorter than this is repaired by nothing: too many others are one letter away.
_MIN_LETTERS = 4
#: From this length on, two edits.
_TWO_EDITS_FROM = 8
#: What one edit and two may cost, and what is no repair.
_MAX_COST, _MAX_COST_OF_TWO, _FAR = 1.0, 2.0, 3.0
_SWAPPED, _DOUBLED, _EXTRA = 0.7, 0.7, 0.95
_MAX_LETTERS = 24
#: Unknown words of a text that are looked at; the text's other words stay as they are.
_MAX_UNKNOWN = 32
#: Words that are run together: letters of the whole.
_RUN_LETTERS = (8, 120)
#: Pieces of a broken word, and letters of a piece.
_MAX_PIECES, _PIECE_LETTERS = 5, 4
#: Of a text's words so many must be known, or become known, before any is repaired.
_KNOWN_SHARE = 0.5
#: An ordinary word of two or three letters is taken for one only among the most frequent.
_SHORT_WORDS_WITHIN = 4000
#: An ordinary word is what was meant, rather than a pack's, only if it is one of the most frequent.
_MEANT_WITHIN = 20_000
#: A word as rare as this that is a pack's word with a letter left out, one of the most frequent words, is a slip that a
#: list of words has picked up ("shool").
_RARE_FROM, _FREQUENT_WITHIN = 40_000, 2_000


class Repair(NamedTuple):
    """``length`` words from ``first`` on are to be read as ``text``."""

    first: int
    length: int
    text: str


class _Look(NamedTuple):
    """What an unknown word shows by itself."""

    #: What it is repaired to.
    single: str | None
    #: It may be a piece of a pack's word.
    piece: bool


#: Most unknown words.
_NOTHING = _Look(None, False)


class Spelling:
    """One language's words. Immutable."""

    def __init__(self, ordinary: Sequence[str], risky: Iterable[str]) -> None:
        """Args:
        ordinary: words of the language, most frequent first, folded as the skeleton view folds them.
        risky: words of packs, folded likewise.
        """
        #: Words of packs.
        self.risky = frozenset(word for word in risky if word.isalpha())
        self._near: Mapping[str, Sequence[str]] = _deletions(self.risky)
        frequent = self.risky.intersection(ordinary[:_FREQUENT_WITHIN])
        self._ordinary = frozenset(
            word
            for rank, word in enumerate(ordinary)
            if (len(word) > 3 or (len(word) > 1 and rank < _SHORT_WORDS_WITHIN))
            and (rank < _RARE_FROM or word in self.risky or frequent.isdisjoint(self._near.get(word, ())))
        ) | {"a", "i"}
        #: Words that need no look; and the same as UTF-8.
        self.words = self._ordinary | self.risky
        self.known = frozenset(word.encode() for word in self.words)
        self._neighbours = _Neighbours(dict.fromkeys(ordinary[:_MEANT_WITHIN]))
        #: Words of packs that may come in pieces, as UTF-8.
        broken = [word for word in self.risky if _MIN_LETTERS <= len(word) <= _MAX_LETTERS]
        self._broken = frozenset(word.encode() for word in broken)
        #: Every part of one, and those that may be a piece by themselves.
        self._parts = frozenset(
            word[start:end].encode()
            for word in broken
            for start in range(len(word))
            for end in range(start + 1, len(word) + 1)
        )
        self._pieces = frozenset(part for part in self._parts if len(part.decode()) <= 2 * _PIECE_LETTERS)
        #: Words of packs that two edits may lead to, by their first and last letters, with the set of their letters.
        self._by_ends: dict[str, list[tuple[str, int]]] = {}
        for word in sorted(self.risky):
            if _TWO_EDITS_FROM <= len(word) <= _MAX_LETTERS:
                self._by_ends.setdefault(word[0] + word[-1], []).append((word, _letters(word)))
        #: How the words of packs begin.
        self._starts = frozenset(word[:_MIN_LETTERS] for word in self.risky if len(word) >= _MIN_LETTERS)
        self._backwards = {word[::-1]: word for word in self.risky if len(word) >= _MIN_LETTERS}
        self._looks = Memory(self._look)

        #: Words that differ in nothing but i and l, under themselves with every l as i: those of packs first, then the
        #: frequent ones. Ordinary words with neither letter are not asked for.
        self._either: dict[str, tuple[str, ...]] = {}
        for word in dict.fromkeys((*sorted(self.risky), *(one for one in ordinary if one in self._ordinary))):
            if word in self.risky or "i" in word or "l" in word:
                key = word.replace("l", "i")
                self._either[key] = (*self._either.get(key, ()), word)

    def readings(self, word: str, pack_only: bool = False) -> list[str]:
        """The known words that ``word`` may be, each `EITHER` in it an i or an l: those of packs first."""
        return [
            known
            for known in self._either.get(word.replace(EITHER, "i").replace("l", "i"), ())
            if (not pack_only or known in self.risky)
            and all(letter in (other, EITHER) for letter, other in zip(word, known, strict=True))
        ]

    def repair(self, words: Sequence[bytes], unknown: Sequence[int]) -> list[Repair]:
        """What to read differently in a text, in order, without overlap.

        Args:
            words: the text's, UTF-8.
            unknown: where those stand that are not `known`.
        """
        repairs: list[Repair] = []
        taken = looked = 0
        looks = map(self._looks.__getitem__, map(words.__getitem__, unknown))
        for index, look in zip(unknown, looks, strict=True):
            if look is None or index < taken:
                continue
            looked += 1
            if looked > _MAX_UNKNOWN:
                break
            if look is _NOTHING:
                continue
            repair, word = None, words[index]
            # Nearly every piece ends here: with neither of its neighbours it is a part of anything.
            if look.piece and (
                (index > taken and words[index - 1] + word in self._parts)
                or (index + 1 < len(words) and word + words[index + 1] in self._parts)
            ):
                repair = self._together(words, index, taken)
            if repair is None and look.single is not None:
                repair = Repair(index, 1, look.single)
            if repair is not None:
                repairs.append(repair)
                taken = repair.first + repair.length
        if not repairs:
            return []
        figures = sum(map(bytes.isdigit, words))
        wrong = sum(not words[index].isdigit() for index in unknown) - sum(one.length for one in repairs)
        letters = len(words) - figures
        return repairs if letters - wrong >= _KNOWN_SHARE * letters else []

    def _look(self, word: bytes) -> _Look | None:
        """None: not a word of letters."""
        text = word.decode()
        if not text.isalpha():
            return None
        look = _Look(self._single(text), word in self._pieces)
        return _NOTHING if look == _NOTHING else look

    def _single(self, word: str) -> str | None:
        if _MIN_LETTERS <= len(word) <= _MAX_LETTERS:
            found = self._backwards.get(word) or self._nearest(word)
            if found is not None:
                return found
        if _RUN_LETTERS[0] <= len(word) <= _RUN_LETTERS[1] and not self._starts.isdisjoint(
            [word[index : index + _MIN_LETTERS] for index in range(len(word) - _MIN_LETTERS + 1)]
        ):
            parts = self._apart(word)
            if parts is not None:
                return " ".join(parts)
        return None

    def _nearest(self, word: str) -> str | None:
        """The word that ``word`` was meant to be, or None. An ordinary word that is nearer than any of a pack wins."""
        best: str | None = None
        best_cost = _FAR
        for candidate in self._candidates(word):
            cost = _cost(word, candidate)
            if (cost, candidate) < (best_cost, best or ""):
                best, best_cost = candidate, cost
        if best is None or best_cost > (
            _MAX_COST_OF_TWO if min(len(word), len(best)) >= _TWO_EDITS_FROM else _MAX_COST
        ):
            return None
        return next((other for other in self._neighbours.of(word) if _cost(word, other) < best_cost), best)

    def _candidates(self, word: str) -> Iterable[str]:
        """Words of packs that one edit may have made ``word`` of, or two if it is long."""
        size = len(word)
        once = _shortened(word)
        found: dict[str, None] = {}
        if not self._near.keys().isdisjoint(once):
            for reduced in once:
                found.update(dict.fromkeys(self._near.get(reduced, ())))
        # Two slips leave the first and the last letter as they were, or it is not worth the search.
        if size >= _TWO_EDITS_FROM - 1 and (alike := self._by_ends.get(word[0] + word[-1])):
            letters = _letters(word)
            for candidate, others in alike:
                # An edit takes one letter away and brings another at most.
                if abs(len(candidate) - size) <= 2 and (letters ^ others).bit_count() <= 4:
                    found[candidate] = None
        return found

    def _together(self, words: Sequence[bytes], index: int, taken: int) -> Repair | None:
        """A pack's word broken into pieces, of which the one at ``index`` is unknown."""
        pieces = self._pieces
        first, last = index, index + 1
        while first > taken and index - first < _MAX_PIECES - 1 and words[first - 1] in pieces:
            first -= 1
        while last < len(words) and last - index < _MAX_PIECES and words[last] in pieces:
            last += 1
        for start in range(first, index + 1):
            text = b"".join(words[start:index])
            for end in range(index, min(start + _MAX_PIECES, last)):
                text += words[end]
                if text not in self._parts:
                    break
                if end > start and len(text) >= _MIN_LETTERS and text in self._broken:
                    return Repair(start, end - start + 1, text.decode())
        return None

    def _apart(self, word: str) -> list[str] | None:
        """``word`` as the fewest known words, if one of them is a pack's."""
        best: list[tuple[int, int] | None] = [(0, 0)] + [None] * len(word)
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - _MAX_LETTERS), end):
                before = best[start]
                if before is None or (best[end] is not None and before[0] + 1 >= best[end][0]):  # type: ignore[index]
                    continue
                if word[start:end] in self.words:
                    best[end] = (before[0] + 1, start)
        parts: list[str] = []
        end = len(word)
        while end:
            step = best[end]
            if step is None:
                return None
            parts.append(word[step[1] : end])
            end = step[1]
        parts.reverse()
        return parts if any(part in self.risky and len(part) >= _MIN_LETTERS for part in parts) else None


def repaired(words: Sequence[bytes], repairs: Sequence[Repair]) -> list[bytes]:
    """The words with every repair done."""
    found: list[bytes] = []
    at = 0
    for first, length, text in repairs:
        found += words[at:first]
        found += text.encode().split()
        at = first + length
    return found + list(words[at:])


def _letters(word: str) -> int:
    """The set of a word's letters, as bits; letters that share one only make it a worse filter."""
    found = 0
    for letter in word:
        found |= 1 << (ord(letter) & 63)
    return found


def _deletions(words: Iterable[str]) -> dict[str, list[str]]:
    """Every word under itself and under itself with a letter taken out."""
    found: dict[str, set[str]] = {}
    for word in words:
        if _MIN_LETTERS <= len(word) <= _MAX_LETTERS:
            for key in _shortened(word):
                found.setdefault(key, set()).add(word)
    return {key: sorted(near) for key, near in found.items()}


class _Neighbours:
    """Words under the hashes of themselves and of themselves with a letter taken out: a dict of as many strings would
    take ten times the memory."""

    def __init__(self, words: Iterable[str]) -> None:
        """Args:
        words: the most frequent first.
        """
        self._words = [word for word in words if _MIN_LETTERS - 1 <= len(word) <= _MAX_LETTERS + 1]
        keys = np.array([hash(key) for word in self._words for key in _shortened(word)], np.int64)
        numbers = np.repeat(np.arange(len(self._words), dtype=np.int32), [len(word) + 1 for word in self._words])
        order = np.argsort(keys)
        self._keys, self._numbers = keys[order], numbers[order]

    def of(self, word: str) -> Iterator[str]:
        """Every word that is one edit from ``word``, and some that are two; the most frequent first."""
        keys = np.array([hash(key) for key in _shortened(word)], np.int64)
        firsts, lasts = np.searchsorted(self._keys, keys, "left"), np.searchsorted(self._keys, keys, "right")
        found: set[int] = set()
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            if first < last:
                found.update(self._numbers[first:last].tolist())
        return map(self._words.__getitem__, sorted(found))


def _shortened(word: str) -> list[str]:
    return [word, *[word[:index] + word[index + 1 :] for index in range(len(word))]]


#: What looks or sounds alike, or is a slip of one finger more than of the head: cheaper than any other replacement.
_ALIKE = frozenset(map(frozenset, ("il", "ij", "ou", "ae", "ei", "iy", "uv", "vw", "mn", "bd", "pq", "ck", "cs", "sz",
                                   "ce", "ao", "eo", "ai", "iu")))  # fmt: skip


def _cost(word: str, meant: str) -> float:
    """Damerau's distance (optimal string alignment) with cheap transpositions, doubled letters and lookalikes.

    One edit, or two where both words are long; more are `_FAR`.
    """
    # A first letter is rarely wrong.
    first = 0.0 if word[0] == meant[0] else 0.05
    head = common_start(word, meant)
    cost = _one_edit(word, meant, head)
    if cost == _FAR and min(len(word), len(meant)) >= _TWO_EDITS_FROM:
        cost = _two_edits(word, meant, head)
    return cost if cost == _FAR else cost + first


def common_start(word: str, meant: str) -> int:
    """How many letters both begin with."""
    at = 0
    for one, other in zip(word, meant, strict=False):
        if one != other:
            break
        at += 1
    return at


def _one_edit(word: str, meant: str, head: int) -> float:
    size, other = len(word), len(meant)
    if size == other:
        if word[head + 1 :] == meant[head + 1 :]:
            return 0.0 if head == size else _replaced(word[head], meant[head])
        swapped = word[head + 2 :] == meant[head + 2 :] and word[head : head + 2] == meant[head : head + 2][::-1]
        return _SWAPPED if swapped else _FAR
    if size == other + 1 and word[head + 1 :] == meant[head:]:
        return _DOUBLED if head and word[head] == word[head - 1] else _EXTRA
    if size + 1 == other and word[head:] == meant[head + 1 :]:
        return _DOUBLED if head and meant[head] == meant[head - 1] else _EXTRA
    return _FAR


def _two_edits(word: str, meant: str, head: int) -> float:
    """The first edit is where the two begin to differ, whichever it is; the second one is in the rest."""
    if abs(len(word) - len(meant)) > 2:
        return _FAR
    left, right = word[head:], meant[head:]
    if not left or not right:
        return 2 * _EXTRA
    ways = [
        (_replaced(left[0], right[0]), left[1:], right[1:]),
        (_DOUBLED if head and left[0] == word[head - 1] else _EXTRA, left[1:], right),
        (_DOUBLED if head and right[0] == word[head - 1] else _EXTRA, left, right[1:]),
    ]
    if left[:2] == right[:2][::-1]:
        ways.append((_SWAPPED, left[2:], right[2:]))
    return min(_FAR, *(cost + _one_edit(one, other, common_start(one, other)) for cost, one, other in ways))


def _replaced(letter: str, meant: str) -> float:
    return 0.8 if frozenset((letter, meant)) in _ALIKE else 1.0


@cache
def english() -> tuple[str, ...]:
    """The ordinary English words that ship with Seawall, most frequent first."""
    text = resources.files(__package__).joinpath("data", "words-en.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))
