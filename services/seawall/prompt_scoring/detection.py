"""Which concepts a prompt, its negative prompt and earlier turns hold, how near each other, and what to read closely.

Pure: terms and distances, no model. The grade found here is *detect*: enough to have a person look, not to block.

A negative prompt is parsed apart. A risky word in it ("child, nsfw") protects, so it is no evidence; clothing or
adulthood there is a sign. Where it goes on with the prompt's sentence ("explicit image of" | "a minor") the two are
read as one text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from seawall.prompt_scoring.normalise import View, views
from seawall.prompt_scoring.term_packs import Concept, Hit
from seawall.prompt_scoring.term_set import TermSet, by_concept
from seawall.prompt_scoring.windows import ANYWHERE, Pair, Reach, Window, distinct, nearest_pairs, reach, window

#: Words between the two concepts → detect grade. Beyond the last, and across views, DISTANT.
_BY_DISTANCE = ((12, 1.0), (40, 0.8), (400, 0.6))
_DISTANT = 0.5
#: One concept in the prompt, its counterpart taken away in the negative prompt, or split between the two.
_SPLIT = 0.8
#: One concept in the prompt, the other in an earlier turn of the conversation.
_TURNS = 0.7
#: Concepts further apart than this many words are read as two stretches put together.
_JOINT_WITHIN = 12
#: Commas that make a list; with fewer, what follows may be what the text is: "images of children, a study".
_LIST_FROM = 2
#: Words between the concepts of a sentence that is split over prompt and negative prompt.
_SPLIT_WITHIN = 12
#: Places of a detection that are told.
_MAX_PLACES = 8
#: Characters of the prompt that are read together with what the negative prompt takes away.
_QUOTED = 400

_MINOR: Concept = "minor_reference"
_NEGATED: frozenset[Concept] = frozenset(("negated_clothing", "negated_adulthood"))
_SEXUAL: tuple[Concept, Concept] = ("sexual_context", "undressing_request")
_PAIR: frozenset[Concept] = frozenset((_MINOR, *_SEXUAL))


class Place(NamedTuple):
    """Where a concept of a detection stands: half-open, in characters (code points) of the text as it came."""

    concept: Concept
    #: "prompt", "negative_prompt", or "turns/0" for the oldest turn.
    field: str
    start: int
    end: int


@dataclass
class Detection:
    """What terms alone say of a prompt."""

    #: Concepts met in the prompt, in any view.
    concepts: set[Concept] = field(default_factory=set)
    #: Detect grade of minor_reference together with sexual_context or undressing_request: 0, or 0.5 to 1.
    minor_sexual: float = 0.0
    #: One of those concepts shows only once an evasion is undone.
    evasion: bool = False
    #: One of the two concepts stands in an earlier turn.
    across_turns: bool = False
    #: Stretches around the nearest pairs, for the encoder.
    windows: list[Window] = field(default_factory=list)
    #: Where the pairs' concepts stand.
    places: list[Place] = field(default_factory=list)


def detect(
    prompt: str,
    negative_prompt: str,
    terms: TermSet,
    *,
    around: int,
    max_pairs: int,
    turns: Sequence[str] = (),
) -> Detection:
    """Read the prompt in every view, together with its negative prompt and with earlier turns.

    Args:
        turns: earlier turns of the conversation, oldest first.
        around: words of a window on either side of the two concepts.
        max_pairs: windows per view.

    Raises:
        normalise.Expands: a text grows too much. term_set.MatchFailed: the pattern engine gave up.
    """
    found = Detection()
    reading = _read(prompt, terms)
    if reading or negative_prompt or turns:
        _Detector(found, terms, around, max_pairs).detect(prompt, reading, negative_prompt, turns)
    return found


class _Seen(NamedTuple):
    """A view in which terms were found."""

    view: View
    groups: dict[Concept, list[Hit]]
    #: It undoes nothing: what stands in it stands in the text.
    plain: bool

    def minors(self) -> list[Hit]:
        return distinct(self.groups.get(_MINOR, []))

    def sexual(self) -> list[Hit]:
        return distinct([hit for concept in _SEXUAL for hit in self.groups.get(concept, [])])


def _read(text: str, terms: TermSet) -> list[_Seen]:
    """The views of a text in which terms are found, the least changed first."""
    seen: list[_Seen] = []
    found = views(text, terms.spelling)
    # Nearly every prompt ends here.
    if len(found) > 1 and terms.none_in(found):
        return seen
    for index, view in enumerate(found):
        hits = terms.hits(view, text)
        if hits:
            seen.append(_Seen(view, dict(by_concept(hits)), index == 0))
    return seen


class _Detector:
    def __init__(self, found: Detection, terms: TermSet, around: int, max_pairs: int) -> None:
        self._found = found
        self._terms = terms
        self._around = around
        self._max_pairs = max_pairs
        self._windows: set[str] = set()

    def detect(self, prompt: str, reading: Sequence[_Seen], negative_prompt: str, turns: Sequence[str]) -> None:
        found = self._found
        plain: set[Concept] = set()
        for seen in reading:
            concepts = seen.groups.keys() - _NEGATED
            found.concepts |= concepts
            if seen.plain:
                plain |= concepts
            if (minors := seen.minors()) and (sexual := seen.sexual()):
                self._near(prompt, seen.view, minors, sexual)
        if _MINOR in found.concepts and not found.concepts.isdisjoint(_SEXUAL):
            self._grade(_DISTANT)
        found.evasion = not (found.concepts & _PAIR) <= plain
        if negative_prompt:
            languages = {hit.language for seen in reading for hit in (*seen.minors(), *seen.sexual())}
            self._taken_away(prompt, negative_prompt, languages.pop() if len(languages) == 1 else "und")
            self._split(prompt, negative_prompt)
        if turns and not found.concepts.isdisjoint(_PAIR):
            self._turns(reading, turns)

    def _grade(self, grade: float) -> None:
        self._found.minor_sexual = max(self._found.minor_sexual, grade)

    def _near(self, prompt: str, view: View, minors: list[Hit], sexual: list[Hit]) -> None:
        for pair in nearest_pairs(view.words, minors, sexual, self._max_pairs):
            self._grade(next((grade for within, grade in _BY_DISTANCE if pair.distance <= within), _DISTANT))
            places = [Place(hit.concept, "prompt", *view.origin(hit.start, hit.end)) for hit in (pair.one, pair.other)]
            start, end = min(place.start for place in places), max(place.end for place in places)
            self._quote(view.words, pair, reach(prompt, start, end), minors)
            if prompt.count(",") >= _LIST_FROM:
                # Among tags a request is one item, and those around it say nothing of it.
                self._quote(view.words, pair, reach(prompt, start, end, item=True), minors)
            for place in places:
                self._place(place)

    def _quote(self, words: bytes, pair: Pair, within: Reach = ANYWHERE, minors: Sequence[Hit] = ()) -> None:
        read = window(words, pair, self._around, _JOINT_WITHIN, within, minors)
        if read.text not in self._windows:
            self._windows.add(read.text)
            self._found.windows.append(read)

    def _place(self, place: Place) -> None:
        places = self._found.places
        if len(places) < _MAX_PLACES and place not in places:
            places.append(place)

    def _taken_away(self, prompt: str, negative_prompt: str, language: str) -> None:
        """Clothing taken away from a minor, adulthood from a sexual prompt."""
        found = self._found
        start = prompt[:_QUOTED]
        for seen in _read(negative_prompt, self._terms):
            for concept, counterpart, words, stands_for in _TAKEN_AWAY:
                if concept in seen.groups and not found.concepts.isdisjoint(counterpart):
                    hit = seen.groups[concept][0]
                    self._place(Place(concept, "negative_prompt", *seen.view.origin(hit.start, hit.end)))
                    if concept not in found.concepts:
                        found.concepts.add(concept)
                        text = f"{start}, {words}"
                        found.windows.append(
                            Window(text, text, language, 0, stands_for, False, False, frame=text, taken_away=True)
                        )
                    self._grade(_SPLIT)

    def _split(self, prompt: str, negative_prompt: str) -> None:
        """One sentence over both: the prompt breaks off, or the negative prompt goes on, in the middle of a phrase."""
        segment = _SEGMENT.match(negative_prompt)
        going_on = segment[0] if segment else ""
        if not (_BREAKS_OFF.search(prompt) or _GOES_ON.search(going_on)):
            return
        head = prompt.rstrip()
        seam = len(head) + 1
        for seen in _read(f"{head} {going_on.strip()}", self._terms):
            minors, sexual = seen.minors(), seen.sexual()
            if not (minors and sexual):
                continue
            for pair in nearest_pairs(seen.view.words, minors, sexual, self._max_pairs):
                spans = [seen.view.origin(hit.start, hit.end) for hit in (pair.one, pair.other)]
                over = any(start < seam < end for start, end in spans) or len({start < seam for start, _ in spans}) == 2
                if over and pair.distance <= _SPLIT_WITHIN:
                    self._grade(_SPLIT)
                    self._found.concepts |= {pair.one.concept, pair.other.concept}
                    self._quote(seen.view.words, pair)

    def _turns(self, reading: Sequence[_Seen], turns: Sequence[str]) -> None:
        """One of the two concepts in the prompt, the other in an earlier turn."""
        for number, turn in enumerate(turns):
            for earlier in _read(turn, self._terms):
                for seen in reading:
                    self._across(earlier, seen, f"turns/{number}")

    def _across(self, earlier: _Seen, seen: _Seen, name: str) -> None:
        """Read the two views as one text, the earlier turn first."""
        words = earlier.view.words + seen.view.words[1:]
        shift = len(earlier.view.words) - 1
        for minors, sexual in (
            (earlier.minors(), [_moved(hit, shift) for hit in seen.sexual()]),
            ([_moved(hit, shift) for hit in seen.minors()], earlier.sexual()),
        ):
            if not (minors and sexual):
                continue
            self._grade(_TURNS)
            self._found.across_turns = True
            for pair in nearest_pairs(words, minors, sexual, 1):
                self._quote(words, pair)
                for hit in (pair.one, pair.other):
                    late = hit.start >= shift
                    view = seen.view if late else earlier.view
                    start, end = (hit.start - shift, hit.end - shift) if late else (hit.start, hit.end)
                    self._place(Place(hit.concept, "prompt" if late else name, *view.origin(start, end)))


def _moved(hit: Hit, by: int) -> Hit:
    return hit._replace(start=hit.start + by, end=hit.end + by)


#: What a negative prompt takes away, from which concepts, how an encoder should read it, and what it stands for.
_TAKEN_AWAY: tuple[tuple[Concept, tuple[Concept, ...], str, Concept], ...] = (
    ("negated_clothing", (_MINOR,), "without clothes", "undressing_request"),
    ("negated_adulthood", _SEXUAL, "not an adult", "sexual_context"),
)
#: The first item of a list: a sentence that goes on ends there.
_SEGMENT = re.compile(r"[^,;\n|]{1,400}")
_PHRASE = (
    r"(?:of|an?|the|with|in|on|for|is|are|who|and|by|from|to|my|her|his|de|des|du|un|une|una|la|el|der|die|das|ein|eine|"
    r"von|mit|di)"
)
_BREAKS_OFF = re.compile(rf"(?i)(?:^|\s)(?:{_PHRASE}|[0-9]{{1,2}})\s*$")
_GOES_ON = re.compile(rf"(?i)(?:^|\s)(?:{_PHRASE})\s|^\s*(?:years?|yrs?)\b")
