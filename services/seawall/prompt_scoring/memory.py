"""Remembers what became of single tokens: traffic has the same odd ones again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

#: Tokens that one memory holds, and how long one may be: a few megabytes at most, whatever is sent.
_TOKENS, _LETTERS = 16_384, 64

_Token = TypeVar("_Token", str, bytes)
_Found = TypeVar("_Found")


class Memory(dict[_Token, _Found]):
    """What ``look`` says of a token, found out when it is first asked for. Safe for threads.

    A dict, because asking it for what it holds calls no function of ours, and a prompt asks two hundred times. One
    that is full begins anew.
    """

    def __init__(self, look: Callable[[_Token], _Found]) -> None:
        """Args:
        look: must be pure, and return what nobody changes.
        """
        super().__init__()
        self._look: Callable[[_Token], _Found] = look

    def __missing__(self, token: _Token) -> _Found:
        found: _Found = self._look(token)
        if len(token) <= _LETTERS:
            if len(self) >= _TOKENS:
                self.clear()
            self[token] = found
        return found
