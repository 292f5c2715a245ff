"""Views of a prompt: the same text as different readers would see it. Pure.

Every view is lower-case words as UTF-8 with one space between them and one at each end, so that a term pack needs to
know nothing about case, punctuation or separators, and a distance in words is a count of spaces. Views only ever add
evidence: a term is a term in whichever view it stands. A view can say which range of the original text a range of its
words came from.

    original    the text itself but for case and separators (where it is plain ASCII, "words" says the same)
    words       invisible characters removed, NFKC, casefold, digits of every script to 0-9
    skeleton    lookalike letters folded to ASCII (Unicode TR39 and a supplement), accents removed; twice, where some
                stand for i and for l
    unspaced    no separators between letters of scripts that put none between words
    joined      spaced-out letters joined
    closed      punctuation inside words removed
    leet        digits and signs inside words read as letters; twice, where "1" may be i and l
    squeezed    letters repeated three times or more cut to one, and to two
    repaired    spelling mended, broken words put together and joined words taken apart
    decoded     the views of the text with percent escapes, character references, backslash escapes and base64 read
    tags        the views of the text with invisible tag characters shown
    reversed    the views of the text with right-to-left overrides obeyed

All but the first three exist only where the text shows signs of them. Plain ASCII of known words costs two table
look-ups and a comparison with a set.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

from seawall.prompt_scoring import encodings, evasions
from seawall.prompt_scoring.alignment import (
    Composed,
    Edit,
    Edited,
    EditedLater,
    Folded,
    Span,
    Step,
    Worded,
    apply,
    origin,
)
from seawall.prompt_scoring.characters import (
    INVISIBLE,
    MARKED,
    ORIGINAL,
    PLAIN,
    SKELETON,
    Trait,
    beyond_ascii,
    runs_of_marks,
    traits,
)
from seawall.prompt_scoring.evasions import Sign
from seawall.prompt_scoring.spelling import Spelling, repaired
from seawall.prompt_scoring.token_readings import Reading, Reread, TokenReader

#: A view is never longer than this many times the text's UTF-8 bytes: one code point may fold to eighteen.
MAX_EXPANSION = 4
#: An escape inside an escape is read; more are not.
_MAX_ROUNDS = 2
#: Views of one text. There are a dozen of each round at most; this is a bound, not an aim.
_MAX_VIEWS = 48


class View(NamedTuple):
    """One reading of a prompt."""

    name: str
    #: Lower-case words, UTF-8, one space between and at both ends.
    words: bytes
    #: Byte ranges where words may run together, without a space: letters that were spaced out.
    glued: tuple[Span, ...] = ()
    #: How it was made, first step first.
    steps: tuple[Step, ...] = ()

    def origin(self, start: int, end: int) -> Span:
        """The range of the original text, in characters, that the bytes ``start:end`` of `words` were made from."""
        return origin(self.steps, start, end)


class Expands(ValueError):
    """The text grows beyond MAX_EXPANSION when normalised: made to exhaust memory, not to be read."""


def views(text: str, spelling: Sequence[Spelling] = ()) -> list[View]:
    """The views of ``text``, each with words that no view before it has.

    Args:
        text: must be encodable as UTF-8 (no lone surrogates).
        spelling: the languages whose spelling is repaired. The first one's known words need no look at all.

    Time and memory are linear in the text's length.

    Raises:
        Expands: the normalised text is more than MAX_EXPANSION times as long.
    """
    if text.isascii():
        # The way that nearly every prompt takes, and no further than here.
        raw = text.encode()
        tokens = raw.translate(_WORD_BYTES, _CONTROL_BYTES).split()
        if spelling and spelling[0].known.issuperset(tokens) and b".a" not in raw.translate(_SHAPE):
            return [View("words", b" ".join((b"", *tokens, b"")), (), (Worded(text),))]
    reader = _Reader(spelling, MAX_EXPANSION * len(text.encode()) + 1024)
    reader.read(text, (), "", 0)
    return list(reader.views.values())


def visible_text(text: str) -> str:
    """``text`` without invisible and control characters: what a sentence encoder should read."""
    if text.isascii():
        return text if _ASCII_CONTROL.search(text) is None else text.translate(_NO_CONTROLS)
    return INVISIBLE.sub("", text)


_CONTROL_BYTES = bytes(c for c in range(128) if (c < 32 and c not in b"\t\n\v\f\r") or c == 127)
_NO_CONTROLS = {c: None for c in _CONTROL_BYTES}
_ASCII_CONTROL = re.compile(f"[{re.escape(_CONTROL_BYTES.decode())}]")
#: ASCII letters to lower case, ASCII separators to a space; the bytes of other characters as they are.
_WORD_BYTES = bytes(c if c >= 128 or chr(c).isalnum() else 32 for c in bytes(range(256)).lower())
#: Letters and figures to "a", separators but white space and controls to ".": ".a" may be punctuation inside a word.
_SHAPE = bytes(97 if chr(c).isalnum() else 32 if chr(c).isspace() else 46 for c in range(256))


def _words(text: str) -> list[bytes]:
    return text.encode().translate(_WORD_BYTES).split()


Steps = tuple[Step, ...]
_ESCAPES: tuple[tuple[int, Callable[[str], list[Edit]]], ...] = (
    (Sign.PERCENT, encodings.percent),
    (Sign.ENTITY, encodings.references),
    (Sign.ESCAPE, encodings.backslashes),
    (Sign.BASE64, encodings.base64_words),
)
_HIDING = sum(sign for sign, _ in _ESCAPES)


@lru_cache(2)
def _token_reader(spelling: tuple[Spelling, ...]) -> TokenReader:
    """What it remembers of tokens serves every prompt, until another set of packs has taken the place of these."""
    return TokenReader(spelling)


class _Reader:
    """Makes the views of one text."""

    def __init__(self, spelling: Sequence[Spelling], limit: int) -> None:
        self.views: dict[bytes, View] = {}
        self._spelling = spelling
        self._limit = limit
        self._tokens = _token_reader(tuple(spelling))

    def read(self, text: str, steps: Steps, name: str, round_: int) -> None:
        """Add every view of ``text``, which ``steps`` made; ``name`` instead of their own if it was hidden."""
        if text.isascii():
            visible, made, shows = text, steps, 0
            raw = text.encode()
            if len(raw.translate(None, _CONTROL_BYTES)) != len(raw):
                controls = [Edit(*match.span(), "") for match in _ASCII_CONTROL.finditer(text)]
                visible, made = self._edited(text, steps, controls)
            base = visible.lower()
            words = self._add(name or "words", base, made)
        else:
            beyond = beyond_ascii(text)
            shows = traits(beyond)
            base, made, words = self._unicode(text, steps, name, beyond, shows)
        shown = evasions.signs(base.encode())
        # What was hidden is read in place of what hid it, with everything around it: its views are this text's too.
        if round_ == _MAX_ROUNDS or not self._hidden(text, steps, shown, shows, round_ + 1):
            self._evaded(base, made, words, name, shown)

    def _unicode(
        self, text: str, steps: Steps, name: str, beyond: Set[str], shows: int
    ) -> tuple[str, Steps, list[bytes]]:
        """Add the first three views. Returns the skeleton with its separators, and its words."""
        if not steps:
            self._add("original", ORIGINAL.translate(text, beyond), (Folded(text, ORIGINAL),))
        skeleton = self._bounded(SKELETON.translate(text, beyond))
        skeleton_steps: Steps = (*steps, Folded(text, SKELETON))
        if shows & Trait.EITHER:
            self._add(name or "skeleton", skeleton, skeleton_steps)
            marked = text.translate(MARKED)
            skeleton, skeleton_steps = self._edited(
                marked, (*steps, Folded(text, MARKED)), evasions.resolve(marked, self._tokens.known_reading)
            )
        if steps and skeleton.isascii():
            # Of what was hidden in Latin letters the skeleton shows all that terms ask for.
            return skeleton, skeleton_steps, self._add(name or "skeleton", skeleton, skeleton_steps)
        plain = self._bounded(PLAIN.translate(text, beyond))
        plain_steps = (*steps, Folded(text, PLAIN))
        if shows & Trait.MARK:
            cut = [Edit(match.start() + 4, match.end(), "") for match in runs_of_marks(plain)]
            plain, plain_steps = self._edited(plain, plain_steps, cut)
        if not unicodedata.is_normalized("NFC", plain):
            composed = unicodedata.normalize("NFC", plain)
            plain, plain_steps = composed, (*plain_steps, Composed(plain))
        if shows & Trait.SPACELESS:
            plain, plain_steps = self._edited(plain, plain_steps, evasions.spaceless_edges(plain))
            skeleton, skeleton_steps = self._edited(skeleton, skeleton_steps, evasions.spaceless_edges(skeleton))
            gaps = evasions.spaceless_gaps(plain)
            if gaps:
                self._add(name or "unspaced", *self._edited(plain, plain_steps, gaps))
        self._add(name or "words", plain, plain_steps)
        return skeleton, skeleton_steps, self._add(name or "skeleton", skeleton, skeleton_steps)

    def _hidden(self, text: str, steps: Steps, shown: int, shows: int, round_: int) -> bool:
        """Read what is hidden in escapes, with all its views. Whether there was anything."""
        readers = [reader for sign, reader in _ESCAPES if shown & sign] if shown & _HIDING else []
        hidden = bool(readers) and self._after(readers, text, steps, "decoded", round_)
        if shows & Trait.TAG:
            hidden |= self._after((encodings.tags,), text, steps, "tags", round_)
        if shows & Trait.OVERRIDE:
            hidden |= self._after((encodings.overrides,), text, steps, "reversed", round_)
        return hidden

    def _after(
        self, readers: Sequence[Callable[[str], list[Edit]]], text: str, steps: Steps, name: str, round_: int
    ) -> bool:
        changed, made = text, steps
        for reader in readers:
            changed, made = self._edited(changed, made, reader(changed))
        if changed == text:
            return False
        self.read(self._bounded(changed), made, name, round_)
        return True

    def _evaded(self, base: str, steps: Steps, words: list[bytes], name: str, shown: int) -> None:
        """Add the views that undo what was done to single words, one on top of the other. ``words`` are the base's."""
        ways = [_Way("", base, steps)]
        if shown & Sign.SPACED:
            joined, ranges, signs = evasions.join(base)
            if ranges:
                ways = [_Way("joined", joined, (*steps, EditedLater(base, evasions.join_edits)), ranges)]
                if signs and shown & Sign.LEET:
                    # "k!d" looks like letters spaced out with signs.
                    ways.append(_Way("", base, steps))
        text, made = ways[0][1:3]
        if shown & Sign.CLOSED and (edits := evasions.close(text)):
            ways.append(_Way("closed", *self._edited(text, made, edits)))
        changed = ways[0].name != "" or len(ways) > 1
        leet, repeats = changed or bool(shown & Sign.LEET), changed or bool(shown & Sign.REPEATED)
        for number, way in enumerate(ways):
            tokens = way.text.split()
            runs = _of_tokens(way.text, way.runs) if way.runs else []
            doubtful, likely = self._tokens.read(tokens, leet, repeats)
            if runs and likely[0].changes:
                # An age that is spaced out is read here, before its figures are read as letters.
                self._reread(Reading("", tokens, ()), way, name, runs)
            if doubtful is not None and not number:
                self._reread(doubtful, way, name, runs)
            for reading in likely:
                # A way that changes nothing is a view already.
                read = self._reread(reading, way, name, runs) if reading.changes or way.name else words
                for spelling in self._spelling:
                    self._repair(read, reading, way, name, spelling)

    def _reread(self, reading: Reading, way: _Way, name: str, runs: Sequence[Span]) -> list[bytes]:
        """Add a reading of a way's tokens. Returns its words."""
        words, glued = _laid(reading.tokens, runs)
        step = Reread(way.text, reading.changes)
        self._keep(name or reading.name or way.name, words, glued, (*way.steps, step))
        return words

    def _repair(self, words: list[bytes], reading: Reading, way: _Way, name: str, spelling: Spelling) -> None:
        known = spelling.known
        unknown = [index for index, word in enumerate(words) if word not in known]
        repairs = spelling.repair(words, unknown) if unknown else ()
        if repairs:
            step = Reread(way.text, reading.changes, repairs)
            self._keep(name or "repaired", repaired(words, repairs), (), (*way.steps, step))

    def _edited(self, text: str, steps: Steps, edits: list[Edit]) -> tuple[str, Steps]:
        return (apply(text, edits), (*steps, Edited(edits))) if edits else (text, steps)

    def _bounded(self, text: str) -> str:
        if len(text) * 4 > self._limit and len(text.encode()) > self._limit:
            raise Expands
        return text

    def _add(self, name: str, text: str, steps: Steps) -> list[bytes]:
        """Add a text as it is. Returns its words."""
        words = _words(text)
        self._keep(name, words, (), (*steps, Worded(text)))
        return words

    def _keep(self, name: str, words: Sequence[bytes], glued: tuple[Span, ...], steps: Steps) -> None:
        if len(self.views) >= _MAX_VIEWS:
            return
        joined = b" ".join((b"", *words, b""))
        before = self.views.get(joined)
        if before is None or (glued and not before.glued):
            self.views[joined] = View(name, joined, glued, steps)


class _Way(NamedTuple):
    """One way to take a text's separators."""

    name: str
    text: str
    steps: Steps
    #: Where letters were spaced out: ranges of characters.
    runs: Sequence[Span] = ()


def _of_tokens(text: str, runs: Sequence[Span]) -> list[Span]:
    """Ranges of characters as ranges of tokens: whole ones, since a sign beside a run may be a letter of it."""
    found: list[Span] = []
    last = at = 0
    for start, end in runs:
        # A run begins in a token, which is the last to begin up to there.
        last += _begun(text, at, start + 1)
        first = last - 1
        last += _begun(text, start + 1, end)
        at = end
        if found and first < found[-1][1]:
            first = found.pop()[0]
        found.append((first, last))
    return found


def _begun(text: str, start: int, end: int) -> int:
    """How many tokens begin in ``text[start:end]``."""
    part = text[start:end]
    inside = start > 0 and part != "" and not (text[start - 1].isspace() or part[0].isspace())
    return len(part.split()) - inside


def _laid(tokens: Sequence[str], runs: Sequence[Span]) -> tuple[list[bytes], tuple[Span, ...]]:
    """The words of ``tokens``, and its ranges as byte ranges of them when one space stands between and before."""
    if not runs:
        return _words(" ".join(tokens)), ()
    words: list[bytes] = []
    glued: list[Span] = []
    size = 1
    at = 0
    for start, end in runs:
        before, inside = _words(" ".join(tokens[at:start])), _words(" ".join(tokens[start:end]))
        if before:
            size += len(b" ".join(before)) + 1
        length = len(b" ".join(inside))
        glued.append((size, size + length))
        size += length + 1
        words += before
        words += inside
        at = end
    words += _words(" ".join(tokens[at:]))
    return words, tuple(glued)
