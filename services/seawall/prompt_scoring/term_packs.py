"""Term packs: versioned folders of patterns. This module reads and verifies them; term_set.py matches with them.

    de-clinical/
      pack.yaml               card: name, version, language, licence, boundary, and the SHA-256 of every other file
      minor_reference.yaml    concept, terms, not_in; one file a concept, or several
      cases.yaml              the pack's own test: texts, and the concepts that must be found in them   (optional)
      vocabulary.yaml         ordinary words that spelling repair must know, most frequent first        (optional)
      pack.sig                a signature over the pack's digest; see pack_signing.py                   (optional)

A term is an RE2 pattern over a view's words: lower-case, NFKC, one space between words, digits of every script as 0-9
(see normalise.py). ``not_in`` lists senses of a term's words that are something else ("kid leather", "a minor chord"):
a hit inside such a span does not count. It must name the sense and nothing around it, so that the span stays as short
as the words it excuses.

Packs are secret: a pattern, a case or a word never appears in an error, a log or a reply; file and line name it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seawall.core.errors import Fatal

CARD_FILE = "pack.yaml"
CASES_FILE = "cases.yaml"
VOCABULARY_FILE = "vocabulary.yaml"
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
CONCEPTS: tuple[Concept, ...] = get_args(Concept)

_Line = Annotated[str, Field(min_length=1, max_length=2000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PackCard(_Strict):
    """``pack.yaml``."""

    # Of this layout. A later one gets another number, so that an old service refuses what it would misread.
    format: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: str = Field(min_length=1, max_length=64)
    # BCP 47.
    language: str = Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
    # SPDX expression.
    licence: str = Field(min_length=1, max_length=128)
    description: str = Field(default="", max_length=4000)
    # "words": a term begins and ends at a word's edge. "none": anywhere, for scripts without spaces; only a number is
    # never cut ("2歳" is not found in "12歳").
    boundary: Literal["words", "none"] = "words"
    files: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+\.yaml$")], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


class _TermFile(_Strict):
    concept: Concept
    terms: tuple[_Line, ...] = Field(min_length=1)
    not_in: tuple[_Line, ...] = ()


class Case(_Strict):
    """A text, and what this pack alone must find in it, in any view."""

    text: str = Field(max_length=10_000)
    # Exactly these, of the concepts that are evidence; benign_context and the negated ones must be found if listed, and
    # may be found if not.
    finds: tuple[Concept, ...] = ()
    # Must not be found, where `finds` would let it pass.
    lacks: tuple[Concept, ...] = ()


class _CaseFile(_Strict):
    cases: tuple[Case, ...] = Field(min_length=1, max_length=20_000)


class _VocabularyFile(_Strict):
    words: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(min_length=1)


class Term(NamedTuple):
    """One pattern of a pack."""

    concept: Concept
    #: It names another sense: hits of its concept inside its span do not count.
    exempts: bool
    #: It stands at the edges of words.
    boundary: bool
    pattern: str
    #: Of the pack: BCP 47.
    language: str
    #: For people: "en-clinical/coercion.yaml line 7".
    where: str


@dataclass(frozen=True)
class TermPack:
    """A verified pack."""

    card: PackCard
    terms: tuple[Term, ...]
    #: Each case with the line it stands on.
    cases: tuple[tuple[int, Case], ...]
    #: Ordinary words, most frequent first.
    vocabulary: tuple[str, ...]
    #: SHA-256 over the lines "<sha256>  <file name>\\n" of the card and every listed file, sorted by name: 32 bytes.
    digest: bytes


class Hit(NamedTuple):
    """A term in a view: its concept and byte range in the view's words."""

    concept: Concept
    start: int
    end: int
    #: Of the pack: BCP 47.
    language: str = "en"


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
        Fatal: ``TERM_PACK_MISSING``, ``BAD_TERM_PACK`` (names file, line and field) or ``TERM_PACK_DIGEST_MISMATCH``.
    """
    name = folder.name
    card_bytes = _read(folder / CARD_FILE, name)
    card = _parse(PackCard, card_bytes, f"{name}/{CARD_FILE}")[0]
    unlisted = sorted({path.name for path in folder.glob("*.yaml")} - {CARD_FILE, *card.files})
    if unlisted:
        detail = f"{name}/{CARD_FILE}: files does not list {', '.join(unlisted)}: stamp the pack or remove it"
        raise Fatal("BAD_TERM_PACK", detail)
    digests = [(CARD_FILE, hashlib.sha256(card_bytes).hexdigest())]
    terms: list[Term] = []
    cases: list[tuple[int, Case]] = []
    vocabulary: tuple[str, ...] = ()
    for file, expected in sorted(card.files.items()):
        data = _read(folder / file, name)
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise Fatal(
                "TERM_PACK_DIGEST_MISMATCH",
                f"{name}/{file} is not the file that {CARD_FILE} lists: restore it, or stamp the pack anew",
            )
        digests.append((file, found))
        where = f"{name}/{file}"
        if file == CASES_FILE:
            listed, line = _parse(_CaseFile, data, where)
            cases = [(line("cases", index), case) for index, case in enumerate(listed.cases)]
        elif file == VOCABULARY_FILE:
            vocabulary = _parse(_VocabularyFile, data, where)[0].words
        else:
            terms += _terms(card, data, where)
    if not terms:
        raise Fatal("BAD_TERM_PACK", f"{name}: the pack has no terms: add a file of a concept, and stamp the pack")
    digest = hashlib.sha256("".join(f"{found}  {file}\n" for file, found in sorted(digests)).encode()).digest()
    if sha256 is not None and digest.hex() != sha256.lower():
        detail = (
            f"{name}: the pack's digest begins {digest.hex()[:16]}, not as pinned: restore the pack or pin this one"
        )
        raise Fatal("TERM_PACK_DIGEST_MISMATCH", detail)
    return TermPack(card, tuple(terms), tuple(cases), vocabulary, digest)


def stamp(folder: Path) -> TermPack:
    """Write the digests of the pack's files into its card, and load it. For authors of packs."""
    try:
        card = yaml.safe_load(_read(folder / CARD_FILE, folder.name))
    except yaml.YAMLError as error:
        raise _not_yaml(error, f"{folder.name}/{CARD_FILE}") from None
    if not isinstance(card, dict):
        raise Fatal("BAD_TERM_PACK", f"{folder.name}/{CARD_FILE} must be a mapping of fields")
    files = sorted(path for path in folder.glob("*.yaml") if path.name != CARD_FILE)
    card["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=4096)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    return load(folder)


def _terms(card: PackCard, data: bytes, where: str) -> Iterator[Term]:
    file, line = _parse(_TermFile, data, where)
    boundary = card.boundary == "words"
    for field, patterns in (("terms", file.terms), ("not_in", file.not_in)):
        for index, pattern in enumerate(patterns):
            yield Term(
                file.concept, field == "not_in", boundary, pattern, card.language, f"{where} line {line(field, index)}"
            )


# --- files ------------------------------------------------------------------------------------------------------------

_Model = TypeVar("_Model", bound=_Strict)
_LineOf = Callable[..., int]


def _read(path: Path, pack: str) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise Fatal("BAD_TERM_PACK", f"{pack}/{path.name} exceeds {_MAX_FILE_BYTES} bytes: split it")
        return path.read_bytes()
    except OSError as error:
        detail = f"{pack}/{path.name} cannot be read ({error.strerror}): check packs in the settings"
        raise Fatal("TERM_PACK_MISSING", detail) from None


def _parse(model: type[_Model], data: bytes, where: str) -> tuple[_Model, _LineOf]:
    """The file's content, and the line on which a part of it stands: ``line("terms", 3)``."""
    # `from None` throughout: the causes quote the line they are about, and lines hold patterns.
    root: yaml.Node | None = None
    try:
        loader = yaml.CSafeLoader(data.decode("utf-8"))
        try:
            root = loader.get_single_node()
            content: Any = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
        return model.model_validate(content), lambda *path: _line(root, path)
    except UnicodeDecodeError:
        raise Fatal("BAD_TERM_PACK", f"{where} is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise _not_yaml(error, where) from None
    except ValidationError as error:
        faults = [(_line(root, item["loc"]), item) for item in error.errors(include_input=False)]
        detail = "; ".join(
            f"line {line}: {'.'.join(map(str, item['loc'])) or 'file'} ({item['type']})" for line, item in faults[:5]
        )
        raise Fatal("BAD_TERM_PACK", f"{where}: mend {detail}") from None


def _not_yaml(error: Exception, where: str) -> Fatal:
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark else ""
    return Fatal("BAD_TERM_PACK", f"{where}{line} is not valid YAML: quote patterns that hold ': ' or ' #'")


def _line(node: yaml.Node | None, path: tuple[str | int, ...]) -> int:
    """The line of the part of a document that ``path`` leads to, or of the last part on the way; from 1."""
    line = 1
    for step in path:
        following: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
            following = next((value for key, value in pairs if key.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            following = node.value[step]
        if following is None:
            break
        node = following
        line = node.start_mark.line + 1
    return line
