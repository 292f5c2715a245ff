"""How the tokens of a text may be read: digits and signs as letters, repeats cut. Each odd token is looked at once.

A prompt has a dozen views, and they share nearly all of their tokens; so do prompts. So a token, which is what stands
between white space, is read by itself and remembered for a while; a view is a list of tokens looked up. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from seawall.prompt_scoring.alignment import Edit, Edited, Span, Step, Worded, apply, origin
from seawall.prompt_scoring.evasions import SIGNS, squeeze, unleet
from seawall.prompt_scoring.memory import Memory
from seawall.prompt_scoring.spelling import Repair, Spelling, common_start

#: What becomes of tokens, by token.
Changes = Mapping[str, str]

_TOKEN = re.compile(r"\S+")
_WORD = re.compile(r"[^\x00-/:-@\[-`{-\x7f]+")
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


class Reading(NamedTuple):
    """The tokens of a text with some of them read differently."""

    #: "leet" or "squeezed": what was done last; "" where nothing was.
    name: str
    tokens: Sequence[str]
    #: One for each kind of change, in order.
    changes: tuple[Changes, ...]


class _Look(NamedTuple):
    """What an odd token may be; empty where it is nothing else."""

    #: With digits and signs read as letters: `Unleeted`.
    once: str
    again: str
    sure: bool
    #: With repeats cut: the token itself, and `once`.
    cut: Sequence[str]
    once_cut: Sequence[str]


class TokenReader:
    """Reads the tokens of texts. Remembers the odd ones that it met last. Safe for threads."""

    def __init__(self, spelling: Sequence[Spelling]) -> None:
        self._spelling = spelling
        self._ordinary: frozenset[str] = spelling[0].words if spelling else frozenset()
        self._looks = Memory(self._look)

    def read(self, tokens: Sequence[str], leet: bool, repeats: bool) -> tuple[Reading | None, list[Reading]]:
        """The readings of a text: the less likely one of signs that stand for two letters, and the likely ones.

        Args:
            leet: digits and signs are read as letters.
            repeats: letters that stand three times are cut: to one or two, whichever makes a word, and if both or
                neither do there are two readings.
        """
        # By far the most tokens are words, and are passed over in one look at a set.
        looks = [(token, look) for token in set(tokens) - self._ordinary if (look := self._looks[token]) is not None]
        doubtful, likely, lettered = None, Reading("", tokens, ()), False
        # Figures are figures, unless other words are disguised by them.
        if leet and any(look.sure for _, look in looks):
            lettered = True
            likely = _read("leet", tokens, (), {token: look.once for token, look in looks if look.once})
            if any(look.once != look.again for _, look in looks):
                doubtful = _read("leet", tokens, (), {token: look.again for token, look in looks if look.again})
        if repeats:
            cut = [(look.once, look.once_cut) if lettered and look.once else (token, look.cut) for token, look in looks]
            short = {token: readings[0] for token, readings in cut if readings}
            if short:
                long = {token: readings[-1] for token, readings in cut if readings}
                return doubtful, [
                    _read("squeezed", likely.tokens, likely.changes, changes)
                    for changes in ((short,) if short == long else (short, long))
                ]
        return doubtful, [likely]

    def known_reading(self, word: str, pack_only: bool) -> Sequence[str]:
        """`evasions.Read`."""
        return next(filter(None, (spelling.readings(word, pack_only) for spelling in self._spelling)), ())

    def _look(self, token: str) -> _Look | None:
        letters = None if SIGNS.isdisjoint(token) else unleet(token, self.known_reading)
        cut = self._cut(token)
        if letters is None:
            return _Look("", "", False, cut, ()) if cut else None
        return _Look(*letters, cut, self._cut(letters.once))

    def _cut(self, token: str) -> Sequence[str]:
        """A pack's word if it can be one, else an ordinary word, else what has one letter and what has two."""
        cut = squeeze(token)
        if not cut or self._any(token, lambda spelling: spelling.words):
            return []
        for words in (lambda spelling: spelling.risky, lambda spelling: spelling.words):
            known = [text for text in cut if self._any(text, words)]
            if known:
                return known[:2]
        return cut[:2]

    def _any(self, token: str, words: Callable[[Spelling], frozenset[str]]) -> bool:
        word = token.strip(_PUNCTUATION)
        return any(word in words(spelling) for spelling in self._spelling)


def _read(name: str, tokens: Sequence[str], before: tuple[Changes, ...], changes: Changes) -> Reading:
    return Reading(name, list(map(changes.get, tokens, tokens)), (*before, changes))


class Reread:
    """A text with its tokens changed and its words repaired, as the words of a view. The output is counted in bytes."""

    def __init__(self, source: str, changes: Sequence[Changes], repairs: Sequence[Repair] = ()) -> None:
        self._source = source
        self._changes = changes
        self._repairs = repairs

    def back(self, start: int, end: int) -> Span:
        steps: list[Step] = []
        text = self._source
        for changes in self._changes:
            text = _changed(text, _of_tokens(text, changes), steps)
        if self._repairs:
            spans = [match.span() for match in _WORD.finditer(text)]
            repairs = [
                Edit(spans[one.first][0], spans[one.first + one.length - 1][1], one.text) for one in self._repairs
            ]
            text = _changed(text, repairs, steps)
        return origin((*steps, Worded(text)), start, end)


def _of_tokens(text: str, changes: Changes) -> list[Edit]:
    """The changes as edits of what differs, so that a place beside it is found to the letter."""
    edits = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if (new := changes.get(token)) is not None:
            head = common_start(token, new)
            tail = common_start(token[: head - 1 if head else None : -1], new[: head - 1 if head else None : -1])
            edits.append(Edit(match.start() + head, match.end() - tail, new[head : len(new) - tail]))
    return edits


def _changed(text: str, edits: Sequence[Edit], steps: list[Step]) -> str:
    steps.append(Edited(edits))
    return apply(text, edits)
