"""Which concepts a prompt and its negative prompt hold, how near each other, and what the encoder should read.

Pure: terms and distances, no model. The grade found here is *detect*: enough to have a person look, not to block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seawall.prompt_scoring.normalise import View, views
from seawall.prompt_scoring.term_packs import Concept, Hit
from seawall.prompt_scoring.term_set import TermSet, by_concept
from seawall.prompt_scoring.windows import Window, distinct, nearest_pairs, window

#: Words between the two concepts → detect grade. Beyond the last, and across views, DISTANT.
_BY_DISTANCE = ((12, 1.0), (40, 0.8), (400, 0.6))
_DISTANT = 0.5
#: One concept in the prompt, its counterpart taken away in the negative prompt.
_SPLIT = 0.8
#: Concepts further apart than this many words are read as two stretches put together.
_JOINT_WITHIN = 12

_MINOR: Concept = "minor_reference"
_NEGATED: frozenset[Concept] = frozenset(("negated_clothing", "negated_adulthood"))
_SEXUAL: tuple[Concept, Concept] = ("sexual_context", "undressing_request")


@dataclass
class Detection:
    """What terms alone say of a prompt."""

    #: Concepts met in the prompt, in any view.
    concepts: set[Concept] = field(default_factory=set)
    #: Detect grade of minor_reference together with sexual_context or undressing_request: 0, or 0.5 to 1.
    minor_sexual: float = 0.0
    #: One of those concepts shows only once an evasion is undone.
    evasion: bool = False
    #: Stretches around the nearest pairs, for the encoder.
    windows: list[Window] = field(default_factory=list)


def detect(prompt: str, negative_prompt: str, terms: TermSet, *, around: int, max_pairs: int) -> Detection:
    """Read the prompt in every view, and the negative prompt for what it takes away.

    A risky word in a negative prompt ("child, nsfw") protects, so it is no evidence; clothing or adulthood there is.

    Args:
        around: words of a window on either side of the two concepts.
        max_pairs: windows per view.

    Raises:
        normalise.Expands: the text grows too much. term_set.MatchFailed: the pattern engine gave up.
    """
    found = Detection()
    seen: set[str] = set()
    plain: set[Concept] = set()
    languages: set[str] = set()
    # The first view is the least changed one.
    for index, view in enumerate(views(prompt)):
        groups = by_concept(terms.hits(view))
        concepts = groups.keys() - _NEGATED
        found.concepts |= concepts
        if index == 0:
            plain |= concepts
        minors = groups.get(_MINOR, [])
        sexual = sorted((hit for concept in _SEXUAL for hit in groups.get(concept, [])), key=lambda hit: hit.start)
        languages |= {hit.language for hit in (*minors, *sexual)}
        if minors and sexual:
            _near(found, seen, view, minors, sexual, around, max_pairs)
    if _MINOR in found.concepts and not found.concepts.isdisjoint(_SEXUAL):
        found.minor_sexual = max(found.minor_sexual, _DISTANT)
    found.evasion = not (found.concepts & {_MINOR, *_SEXUAL}) <= plain
    if negative_prompt:
        language = languages.pop() if len(languages) == 1 else "und"
        _taken_away(found, prompt, negative_prompt, terms, language)
    return found


def _near(
    found: Detection, seen: set[str], view: View, minors: list[Hit], sexual: list[Hit], around: int, max_pairs: int
) -> None:
    for pair in nearest_pairs(view.words, distinct(minors), distinct(sexual), max_pairs):
        grade = next((grade for within, grade in _BY_DISTANCE if pair.distance <= within), _DISTANT)
        found.minor_sexual = max(found.minor_sexual, grade)
        read = window(view.words, pair, around, _JOINT_WITHIN)
        if read.text not in seen:
            seen.add(read.text)
            found.windows.append(read)


def _taken_away(found: Detection, prompt: str, negative_prompt: str, terms: TermSet, language: str) -> None:
    negated = {hit.concept for view in views(negative_prompt) for hit in terms.hits(view)} & _NEGATED
    start = prompt[:_QUOTED]
    if _MINOR in found.concepts and "negated_clothing" in negated:
        found.concepts.add("negated_clothing")
        found.windows.append(_combined(f"{start}, without clothes", language, "undressing_request"))
    if not found.concepts.isdisjoint(_SEXUAL) and "negated_adulthood" in negated:
        found.concepts.add("negated_adulthood")
        found.windows.append(_combined(f"{start}, not an adult", language, "sexual_context"))
    if found.concepts & _NEGATED:
        found.minor_sexual = max(found.minor_sexual, _SPLIT)


def _combined(text: str, language: str, concept: Concept) -> Window:
    return Window(text, text, language, 0, concept, minor_last=False, apart=False)


#: Characters of the prompt that are read together with what the negative prompt takes away.
_QUOTED = 400
