"""Repairs spelling, benign and risky words alike, so that "explicti" is read and "miner" stays a miner.

A language's known words are ordinary ones and those of the term packs. A known word is never touched. An unknown one is
repaired when a pack's word is within one edit of it (two for long words) and no ordinary word is nearer; where one is,
that one is taken. Unknown words are also read backwards, put together from pieces ("chi ld"), and taken apart where
words run together. A text that is mostly unknown words is in another language, and is left alone.

All bounds are counted, so that the work is linear in the text. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

from seawall.prompt_scoring.characters import EITHER

#: A pack's word shorter than this is repaired by nothing: too many others are one letter away.
_MIN_LETTERS = 4
#: From this length on, two edits.
_TWO_EDITS_FROM = 8
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


class Repair(NamedTuple):
    """``length`` words from ``first`` on are to be read as ``text``."""

    first: int
    length: int
    text: str


class Spelling:
    """One language's words. Immutable."""

    def __init__(self, ordinary: Sequence[str], risky: Iterable[str]) -> None:
        """Args:
        ordinary: words of the language, most frequent first, folded as the skeleton view folds them.
        risky: words of packs, folded likewise.
        """
        self._ordinary = frozenset(
            word
            for rank, word in enumerate(ordinary)
            if len(word) > 3 or (len(word) > 1 and rank < _SHORT_WORDS_WITHIN)
        ) | {"a", "i"}
        self._risky = frozenset(word for word in risky if word.isalpha())
        #: Words that need no look, as UTF-8.
        self.known = frozenset(word.encode() for word in self._ordinary | self._risky)
        self._letters = "".join(sorted(set("".join(self._risky)) | set("etaoinshrdlucmfwypvbgkjqxz")))[:64]
        self._near: Mapping[str, Sequence[str]] = _deletions(self._risky)
        #: Words of packs that may come in pieces, and every piece of them, as UTF-8.
        broken = [word for word in self._risky if _MIN_LETTERS <= len(word) <= _MAX_LETTERS]
        self._broken = frozenset(word.encode() for word in broken)
        self._pieces = frozenset(
            word[start:end].encode()
            for word in broken
            for start in range(len(word))
            for end in range(start + 1, min(start + 2 * _PIECE_LETTERS, len(word)) + 1)
        )
        #: First and last letters of the words of packs that two edits may lead to.
        self._ends = frozenset((word[0], word[-1]) for word in self._risky if len(word) >= _TWO_EDITS_FROM)
        #: How the words of packs begin.
        self._starts = frozenset(word[:_MIN_LETTERS] for word in self._risky if len(word) >= _MIN_LETTERS)
        self._backwards = {word[::-1]: word for word in self._risky if len(word) >= _MIN_LETTERS}

        #: Words that differ in nothing but i and l, under themselves with every l as i: those of packs first, then the
        #: frequent ones. Ordinary words with neither letter are not asked for.
        self._either: dict[str, tuple[str, ...]] = {}
        for word in dict.fromkeys((*sorted(self._risky), *(one for one in ordinary if one in self._ordinary))):
            if word in self._risky or "i" in word or "l" in word:
                key = word.replace("l", "i")
                self._either[key] = (*self._either.get(key, ()), word)

    def readings(self, word: str, pack_only: bool = False) -> list[str]:
        """The known words that ``word`` may be, each `EITHER` in it an i or an l: those of packs first."""
        return [
            known
            for known in self._either.get(word.replace(EITHER, "i").replace("l", "i"), ())
            if (not pack_only or known in self._risky)
            and all(letter in (other, EITHER) for letter, other in zip(word, known, strict=True))
        ]

    def repair(self, words: Sequence[bytes], unknown: Sequence[int], memory: dict[str, str | None]) -> list[Repair]:
        """What to read differently in a text, in order, without overlap.

        Args:
            words: the text's, UTF-8.
            unknown: where those stand that are not `known`.
            memory: what single words were repaired to, for the views of one text, which share most of their words.
        """
        repairs: list[Repair] = []
        taken = looked = 0
        for index in unknown:
            if index < taken:
                continue
            word = words[index].decode()
            if not word.isalpha():
                continue
            looked += 1
            if looked > _MAX_UNKNOWN:
                break
            repair = self._together(words, index, taken) if words[index] in self._pieces else None
            if repair is None:
                if word not in memory:
                    memory[word] = self._single(word)
                text = memory[word]
                repair = None if text is None else Repair(index, 1, text)
            if repair is not None:
                repairs.append(repair)
                taken = repair.first + repair.length
        if not repairs:
            return []
        letters = len(words) - sum(word.isdigit() for word in words)
        known = letters - sum(not words[index].isdigit() for index in unknown) + sum(one.length for one in repairs)
        return repairs if known >= _KNOWN_SHARE * letters else []

    def _single(self, word: str) -> str | None:
        if _MIN_LETTERS <= len(word) <= _MAX_LETTERS:
            found = self._backwards.get(word) or self._nearest(word)
            if found is not None:
                return found
        if _RUN_LETTERS[0] <= len(word) <= _RUN_LETTERS[1] and any(
            word[index : index + _MIN_LETTERS] in self._starts for index in range(len(word) - _MIN_LETTERS + 1)
        ):
            parts = self._apart(word)
            if parts is not None:
                return " ".join(parts)
        return None

    def _nearest(self, word: str) -> str | None:
        """The word that ``word`` was meant to be, or None. An ordinary word that is nearer than any of a pack wins."""
        best: str | None = None
        best_cost = 3.0
        reductions = [word, *_without_one(word)]
        # Two slips leave the first and the last letter as they were, or it is not worth the search.
        if len(word) >= _TWO_EDITS_FROM and (word[0], word[-1]) in self._ends:
            reductions += {twice for once in reductions[1:] for twice in _without_one(once)}
        for reduced in reductions:
            for candidate in self._near.get(reduced, ()):
                cost = _cost(word, candidate)
                if (cost, candidate) < (best_cost, best or ""):
                    best, best_cost = candidate, cost
        if best is None or best_cost > (2.0 if min(len(word), len(best)) >= _TWO_EDITS_FROM else 1.0):
            return None
        for candidate in _edits(word, self._letters):
            if candidate in self._ordinary and _cost(word, candidate) < best_cost:
                return candidate
        return best

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
                part = word[start:end]
                if part in self._risky or part in self._ordinary:
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
        return parts if any(part in self._risky and len(part) >= _MIN_LETTERS for part in parts) else None


def _without_one(word: str) -> Iterator[str]:
    for index in range(len(word)):
        yield word[:index] + word[index + 1 :]


def _deletions(words: Iterable[str]) -> dict[str, list[str]]:
    """Every word under itself and under itself with a letter taken out; long ones with two."""
    found: dict[str, set[str]] = {}
    for word in words:
        if not _MIN_LETTERS <= len(word) <= _MAX_LETTERS:
            continue
        keys = {word, *_without_one(word)}
        if len(word) >= _TWO_EDITS_FROM:
            keys |= {twice for once in tuple(keys) for twice in _without_one(once)}
        for key in keys:
            found.setdefault(key, set()).add(word)
    return {key: sorted(near) for key, near in found.items()}


def _edits(word: str, letters: str) -> Iterator[str]:
    """Everything that is one edit from ``word``."""
    for index in range(len(word) + 1):
        head, tail = word[:index], word[index:]
        if tail:
            yield head + tail[1:]
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
        for letter in letters:
            yield head + letter + tail
            if tail:
                yield head + letter + tail[1:]


#: What looks or sounds alike, or is a slip of one finger more than of the head: cheaper than any other replacement.
_ALIKE = frozenset(map(frozenset, ("il", "ij", "ou", "ae", "ei", "iy", "uv", "vw", "mn", "bd", "pq", "ck", "cs", "sz",
                                   "ce", "ao", "eo", "ai", "iu")))  # fmt: skip


def _cost(word: str, meant: str) -> float:
    """Damerau's distance (optimal string alignment) with cheap transpositions, doubled letters and lookalikes."""
    if word == meant:
        return 0.0
    before: list[float] = []
    row = [float(index) for index in range(len(meant) + 1)]
    for i, char in enumerate(word, 1):
        current = [float(i)]
        for j, other in enumerate(meant, 1):
            if char == other:
                best = row[j - 1]
            else:
                best = row[j - 1] + (0.8 if frozenset((char, other)) in _ALIKE else 1.0)
                extra = 0.7 if i > 1 and word[i - 2] == char else 0.95
                missing = 0.7 if j > 1 and meant[j - 2] == other else 0.95
                best = min(best, row[j] + extra, current[j - 1] + missing)
                if i > 1 and j > 1 and char == meant[j - 2] and word[i - 2] == other:
                    best = min(best, before[j - 2] + 0.7)
            current.append(best)
        before, row = row, current
    # A first letter is rarely wrong.
    return row[-1] + (0.0 if word[0] == meant[0] else 0.05)


@cache
def english() -> tuple[str, ...]:
    """The ordinary English words that ship with Seawall, most frequent first."""
    text = resources.files(__package__).joinpath("data", "words-en.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if not line.startswith("#"))
