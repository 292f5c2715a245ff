"""What must be seen in the signals before a rule can hold at all.

Nearly every alternative of nearly every condition asks for a score above a value, or for a match. While no score has
reached its value and there is no match, those rules are false, and none has failed; nothing needs to be evaluated to
know it. Rules of which that cannot be said are evaluated for every generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seawall.core.policy.reachability import Alternative, Alternatives, needs


class Watch(NamedTuple):
    """Of a policy's rules together."""

    #: Label → the lowest score that can matter, above 0.
    scores: Mapping[str, float]
    #: Whether a match that counts, or one that does not, can matter by itself.
    matches: bool
    held_matches: bool
    #: Indices of the rules that can hold without any of these.
    unwatched: Sequence[int]


def watch(rules: Sequence[Alternatives | None]) -> Watch:
    """What to watch for, given the alternatives of every rule; None: they are not known."""
    scores: dict[str, float] = {}
    lists: set[str] = set()
    unwatched = []
    for number, alternatives in enumerate(rules):
        signs = None if alternatives is None else [_sign(alternative, scores) for alternative in alternatives]
        if signs is None or None in signs:
            unwatched.append(number)
            continue
        for sign in signs:
            match sign:
                case (str(label), float(value)):
                    scores[label] = min(value, scores.get(label, value))
                case str(name):
                    lists.add(name)
    return Watch(scores, "matches" in lists, "held_matches" in lists, unwatched)


def _sign(alternative: Alternative, known: Mapping[str, float]) -> tuple[str, float] | str | None:
    """One thing that must be seen for the alternative to hold: a list of matches, or the score that is reached least
    often: one as high as possible, and better one that is watched already."""
    for wanted, tree in alternative.opaque:
        if wanted and (name := needs(tree)) is not None:
            return name
    lows = [(label, low) for label, (low, _) in alternative.scores.items() if low > 0]
    if not lows:
        return None
    return max(lows, key=lambda one: (known.get(one[0], 2.0) <= one[1], one[1], one[0]))
