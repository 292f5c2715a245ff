"""What must be seen in the signals before a rule can hold at all.

Nearly every alternative of nearly every condition asks for a score above a value, or for a match. While no score has
reached its value and there is no match, those rules are false, and none has failed; nothing needs to be evaluated to
know it. Rules of which that cannot be said are evaluated for every generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from seawall.core.policy.evidence import Glance
from seawall.core.policy.reachability import Alternative, Alternatives, needs


class Sign(NamedTuple):
    """A score that has reached a value above 0; or a list of matches that is not empty."""

    #: "<stage>.<label>", "matches" or "held_matches".
    name: str
    value: float

    def seen(self, seen: Glance) -> bool:
        """Whether it is there."""
        if self.value:
            return seen.scores.get(self.name, 0.0) >= self.value
        return bool(seen.matches if self.name == "matches" else seen.held_matches)


class Watch:
    """What to watch for, of a policy's rules together.

    Args:
        rules: the alternatives of every rule; None: they are not known.
    """

    def __init__(self, rules: Iterable[Alternatives | None]) -> None:
        #: Label → the lowest score that can matter.
        self.scores: dict[str, float] = {}
        #: By rule: it holds only where one of these is seen; None: that cannot be said.
        self.signs: Sequence[Sequence[Sign] | None] = [self._signs(alternatives) for alternatives in rules]
        lists = {sign.name for signs in self.signs for sign in signs or () if not sign.value}
        self._matches, self._held_matches = "matches" in lists, "held_matches" in lists

    def alarmed(self, seen: Glance) -> bool:
        """Whether anything is there that is watched for."""
        return bool(seen.alarmed or (self._matches and seen.matches) or (self._held_matches and seen.held_matches))

    def _signs(self, alternatives: Alternatives | None) -> Sequence[Sign] | None:
        if alternatives is None:
            return None
        signs: list[Sign] = []
        for alternative in alternatives:
            sign = _sign(alternative, self.scores)
            if sign is None:
                return None
            signs.append(sign)
        for name, value in signs:
            if value:
                self.scores[name] = min(value, self.scores.get(name, value))
        return signs


def _sign(alternative: Alternative, watched: Mapping[str, float]) -> Sign | None:
    """One thing that must be seen for the alternative to hold: a list of matches, or the score that is reached least
    often: one as high as possible, and better one that is watched already."""
    for wanted, tree in alternative.opaque:
        if wanted and (name := needs(tree)) is not None:
            return Sign(name, 0.0)
    lows = [Sign(label, low) for label, (low, _) in alternative.scores.items() if low > 0]
    return max(lows, key=lambda sign: (watched.get(sign.name, 2.0) <= sign.value, sign.value, sign.name), default=None)
