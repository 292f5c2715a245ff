"""Term packs: versioned folders of patterns, compiled to RE2 sets that match every pattern in one pass.

    en-clinical/
      pack.yaml               card: name, version, language, licence, boundary, and the SHA-256 of every other file
      minor_reference.yaml    concept, terms, not_in

A term is an RE2 pattern over a view's words (lower-case, one space between words; see normalise.py). ``not_in`` lists
senses of a term's words that are something else ("kid leather", "a minor chord"): a hit inside such a span does not
count. It must name the sense and nothing around it, so that the span stays as short as the words it excuses.

Matching time is linear in the text. Packs are secret: a pattern never appears in an error, a log or a reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import re2
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seawall.core.errors import Fatal
from seawall.prompt_scoring.normalise import View

CARD_FILE = "pack.yaml"
_MAX_FILE_BYTES = 4 * 1024 * 1024

Concept = Literal[
    "minor_reference",
    "sexual_context",
    "undressing_request",
    "real_person_photo",
    "coercion",
    "benign_context",
    # Read in negative prompts only: taking clothing or adulthood away is a sign, not a protection.
    "negated_clothing",
    "negated_adulthood",
]

_Line = Annotated[str, Field(min_length=1, max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PackCard(_Strict):
    """``pack.yaml``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(min_length=1, max_length=64)
    # BCP 47.
    language: str = Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
    # SPDX expression.
    licence: str = Field(min_length=1, max_length=128)
    description: str = Field(default="", max_length=4000)
    # "words": a term begins and ends at a word's edge. "none": anywhere, for scripts without spaces.
    boundary: Literal["words", "none"] = "words"
    files: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+\.yaml$")], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


class _TermFile(_Strict):
    concept: Concept
    terms: tuple[_Line, ...] = Field(min_length=1)
    not_in: tuple[_Line, ...] = ()


@dataclass(frozen=True)
class TermPack:
    """A verified pack."""

    card: PackCard
    term_files: tuple[_TermFile, ...]
    #: SHA-256 over the lines "<sha256>  <file name>\\n" of the card and every listed file, sorted by name: 32 bytes.
    digest: bytes


class Hit(NamedTuple):
    """A term in a view: its concept and byte range in the view's words."""

    concept: Concept
    start: int
    end: int


def bundled() -> list[Path]:
    """The folders of the packs that ship with Seawall."""
    root = Path(str(resources.files(__package__).joinpath("packs")))
    return sorted(path.parent for path in root.glob(f"*/{CARD_FILE}"))


def load(folder: Path, sha256: str | None = None) -> TermPack:
    """Read and verify a pack.

    Args:
        folder: the pack.
        sha256: the pack's digest, 64 hex digits, if the operator pinned it.

    Raises:
        Fatal: ``TERM_PACK_MISSING``, ``BAD_TERM_PACK`` (names the file and the field) or ``TERM_PACK_DIGEST_MISMATCH``.
    """
    name = folder.name
    card_bytes = _read(folder / CARD_FILE, name)
    card = _parse(PackCard, card_bytes, f"{name}/{CARD_FILE}")
    unlisted = sorted({path.name for path in folder.glob("*.yaml")} - {CARD_FILE, *card.files})
    if unlisted:
        detail = f"{name}/{CARD_FILE}: files does not list {', '.join(unlisted)}: stamp the pack or remove it"
        raise Fatal("BAD_TERM_PACK", detail)
    lines = [(CARD_FILE, hashlib.sha256(card_bytes).hexdigest())]
    term_files = []
    for file, expected in sorted(card.files.items()):
        data = _read(folder / file, name)
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise Fatal(
                "TERM_PACK_DIGEST_MISMATCH",
                f"{name}/{file} is not the file that {CARD_FILE} lists: restore it, or stamp the pack anew",
            )
        lines.append((file, found))
        term_files.append(_parse(_TermFile, data, f"{name}/{file}"))
    digest = hashlib.sha256("".join(f"{found}  {file}\n" for file, found in sorted(lines)).encode()).digest()
    if sha256 is not None and digest.hex() != sha256.lower():
        detail = (
            f"{name}: the pack's digest begins {digest.hex()[:16]}, not as pinned: restore the pack or pin this one"
        )
        raise Fatal("TERM_PACK_DIGEST_MISMATCH", detail)
    return TermPack(card, tuple(term_files), digest)


def stamp(folder: Path) -> TermPack:
    """Write the digests of the pack's files into its card, and load it. For authors of packs."""
    card = yaml.safe_load(_read(folder / CARD_FILE, folder.name))
    if not isinstance(card, dict):
        raise Fatal("BAD_TERM_PACK", f"{folder.name}/{CARD_FILE} must be a mapping of fields")
    files = sorted(path for path in folder.glob("*.yaml") if path.name != CARD_FILE)
    card["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=4096)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    return load(folder)


_Model = TypeVar("_Model", bound=_Strict)


def _read(path: Path, pack: str) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise Fatal("BAD_TERM_PACK", f"{pack}/{path.name} exceeds {_MAX_FILE_BYTES} bytes: split it")
        return path.read_bytes()
    except OSError as error:
        detail = f"{pack}/{path.name} cannot be read ({error.strerror}): check packs in the settings"
        raise Fatal("TERM_PACK_MISSING", detail) from None


def _parse(model: type[_Model], data: bytes, where: str) -> _Model:
    # `from None` throughout: the causes quote the line they are about, and lines hold patterns.
    try:
        content: Any = yaml.safe_load(data.decode("utf-8"))
        return model.model_validate(content)
    except UnicodeDecodeError:
        raise Fatal("BAD_TERM_PACK", f"{where} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise Fatal(
            "BAD_TERM_PACK", f"{where}{line} is not valid YAML: quote patterns that hold ': ' or ' #'"
        ) from None
    except ValidationError as error:
        fields = {".".join(map(str, item["loc"])) or "file": item["type"] for item in error.errors(include_input=False)}
        detail = "; ".join(f"{field} ({kind})" for field, kind in sorted(fields.items())[:5])
        raise Fatal("BAD_TERM_PACK", f"{where}: mend {detail}") from None


# --- matching ---------------------------------------------------------------------------------------------------------


class MatchFailed(RuntimeError):
    """RE2 ran out of its memory budget: nothing is known of the text."""


class _Term(NamedTuple):
    concept: Concept
    exempts: bool
    boundary: bool
    pattern: str
    where: str


class TermSet:
    """Several packs compiled together. Safe for threads."""

    def __init__(self, packs: Sequence[TermPack], max_mem_bytes: int = 256 * 1024 * 1024) -> None:
        """Args:
            packs: what to compile; the order does not matter.
            max_mem_bytes: RE2's budget for one compiled set. When matching exceeds it, ``MatchFailed`` is raised.

        Raises:
            Fatal: ``BAD_TERM_PACK`` naming the pack, file and line number of a pattern that does not compile.
        """
        if not packs:
            raise Fatal("NO_TERM_PACKS", "packs: none is configured, so nothing could be found: keep the bundled packs")
        self._terms = list(_terms(packs))
        self._spans: dict[int, Any] = {}
        self._options = re2.Options()
        # RE2 would print the pattern.
        self._options.log_errors = False
        self._options.max_mem = max_mem_bytes
        self._set = self._compile(glued=False)
        self._glued_set = self._compile(glued=True)

    def hits(self, view: View) -> list[Hit]:
        """Every term in the view, in order of position, those in a ``not_in`` span left out.

        Raises:
            MatchFailed: the memory budget is spent; the text must not be taken for clean.
        """
        found = self._match(self._set, view.words)
        hits = self._located(found, view.words, glued=False) if found else []
        for start, end in view.glued:
            part = view.words[start:end]
            glued = self._match(self._glued_set, part)
            hits += [Hit(hit.concept, hit.start + start, hit.end + start) for hit in self._located(glued, part, True)]
        hits.sort(key=lambda hit: (hit.start, hit.end))
        return hits

    def _compile(self, glued: bool) -> Any:
        compiled = re2.Set.SearchSet(self._options)
        for term in self._terms:
            # re2.error quotes the pattern.
            try:
                compiled.Add(_wrapped(term, glued))
            except re2.error:
                raise Fatal("BAD_TERM_PACK", f"{term.where} is not a pattern RE2 can compile: mend it") from None
        # Matches everything, so that its absence shows a search that gave up.
        compiled.Add("")
        try:
            compiled.Compile()
        except re2.error:
            raise Fatal(
                "BAD_TERM_PACK", "the packs together exceed the memory budget: raise re2_max_mem_bytes"
            ) from None
        return compiled

    def _match(self, compiled: Any, text: bytes) -> list[int]:
        found = compiled.Match(text) or []
        if len(self._terms) not in found:
            raise MatchFailed
        return [index for index in found if index != len(self._terms)]

    def _located(self, indices: Iterable[int], text: bytes, glued: bool) -> list[Hit]:
        hits: list[Hit] = []
        exempt: dict[Concept, list[tuple[int, int]]] = {}
        for index in indices:
            term = self._terms[index]
            spans = self._find(index, text, glued)
            if term.exempts:
                exempt.setdefault(term.concept, []).extend(spans)
            else:
                hits += [Hit(term.concept, *span) for span in spans]
        if exempt:
            hits = [hit for hit in hits if not _inside(hit, exempt.get(hit.concept, ()))]
        return hits

    def _find(self, index: int, text: bytes, glued: bool) -> list[tuple[int, int]]:
        term = self._terms[index]
        key = index * 2 + glued
        compiled = self._spans.get(key)
        if compiled is None:
            # Only terms that are met: a pattern's own program is larger than its share of the set.
            compiled = self._spans[key] = re2.compile(_wrapped(term, glued), self._options)
        spans = []
        at = 0
        while at <= len(text) and (match := compiled.search(text, at)) is not None:
            spans.append(match.span(1))
            # From the term's own end: the boundary after it may be the boundary before the next.
            at = max(match.end(1), at + 1)
        return spans


_EDGE = r"[^0-9A-Za-z\x80-\x{10FFFF}]"


def _wrapped(term: _Term, glued: bool) -> str:
    """The term as RE2 gets it: between edges of words, or, where the spaces between words are lost, anywhere."""
    if glued:
        return f"({term.pattern.replace(' ?', ' ').replace(' ', ' ?')})"
    return rf"(?:^|{_EDGE})({term.pattern})(?:$|{_EDGE})" if term.boundary else f"({term.pattern})"


def _terms(packs: Sequence[TermPack]) -> Iterable[_Term]:
    for pack in packs:
        for file in pack.term_files:
            boundary = pack.card.boundary == "words"
            for exempts, patterns in ((False, file.terms), (True, file.not_in)):
                for number, pattern in enumerate(patterns, 1):
                    where = f"{pack.card.name}: {file.concept}: {'not_in' if exempts else 'terms'} {number}"
                    yield _Term(file.concept, exempts, boundary, pattern, where)


def _inside(hit: Hit, spans: Iterable[tuple[int, int]]) -> bool:
    return any(start <= hit.start and hit.end <= end for start, end in spans)


def by_concept(hits: Iterable[Hit]) -> Mapping[Concept, list[Hit]]:
    """The hits grouped, each group in order of position."""
    groups: dict[Concept, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(hit.concept, []).append(hit)
    return groups
