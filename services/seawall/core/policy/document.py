"""The files of a policy bundle: read strictly, includes followed, every refusal with its file, line and mend.

    policy.yaml     name, version, owner, note; stages, budgets, thresholds, rules; may include further files
    *.yaml          what it includes: thresholds and rules
    tests.yaml      cases with the outcome and rule that each must have

A lone file is a bundle without tests. The digest is over every file that was read, by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from seawall.core import strict_yaml
from seawall.core.errors import Fatal
from seawall.core.policy.actor_entry import ActorsEntry

REASON: Final = "BAD_POLICY"
POLICY_FILE: Final = "policy.yaml"
TESTS_FILE: Final = "tests.yaml"
#: Of one file, and of all files of a bundle together, bytes.
MAX_FILE_BYTES: Final = 256 * 1024
MAX_BUNDLE_BYTES: Final = 1024 * 1024
_MAX_FILES = 50
_MAX_RULES = 500
_MAX_THRESHOLDS = 500

Text = Annotated[str, Field(min_length=1, max_length=2_000)]
Stage = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Stages = Annotated[tuple[Stage, ...], Field(max_length=32)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False, strict=True)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ThresholdEntry(_Strict):
    """A named value, and the label whose score it is for."""

    label: Annotated[str, Field(pattern=r"^[a-z0-9_]+\.[a-z0-9_]+$")]
    value: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]


class RuleEntry(_Strict):
    """A rule as it is written."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/-]{0,63}$")]
    when: Annotated[str, Field(min_length=1, max_length=8_000)]
    outcome: Literal["ALLOW", "REVIEW", "BLOCK", "BLOCK_AND_REPORT"]
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
    severity: Literal["low", "medium", "high", "critical"] | None = None
    nexus: tuple[Literal["attempt", "uploaded_input", "model_output", "training_data"], ...] = ()
    follow_up: Literal["none", "confirm", "decide_report"] = "none"
    mode: Literal["enforce", "shadow", "disabled"] = "enforce"
    note: Annotated[str, Field(max_length=2_000)] = ""


class Fragment(_Strict):
    """What an included file may hold."""

    include: Annotated[tuple[Text, ...], Field(max_length=_MAX_FILES)] = ()
    thresholds: Annotated[dict[Name, ThresholdEntry], Field(max_length=_MAX_THRESHOLDS)] = Field(default_factory=dict)
    rules: Annotated[tuple[RuleEntry, ...], Field(max_length=_MAX_RULES)] = ()


class CarriedStages(_Strict):
    """Stages that must report, by what a generation carries."""

    prompt: Stages = ()
    media: Stages = ()


class StagesEntry(_Strict):
    """The stages of every modality, and of those that have their own."""

    prompt: Stages
    media: Stages
    text: CarriedStages | None = None
    image: CarriedStages | None = None
    video: CarriedStages | None = None
    dataset: CarriedStages | None = None


class BudgetsEntry(_Strict):
    """Seconds that a generation may wait for its signals, by modality."""

    text: Seconds
    image: Seconds
    video: Seconds
    dataset: Seconds


class PolicyEntry(Fragment):
    """policy.yaml."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    version: Annotated[str, Field(min_length=1, max_length=64)]
    owner: Annotated[str, Field(max_length=200)] = ""
    note: Annotated[str, Field(max_length=2_000)] = ""
    stages: StagesEntry
    budgets: BudgetsEntry
    max_attempts: Annotated[int, Field(ge=1, le=10, strict=True)] = 3
    actors: ActorsEntry | None = None


class Place(NamedTuple):
    """Where something is written."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"

    def refuse(self, problem: str) -> Fatal:
        """The error to raise about what stands here."""
        return Fatal(REASON, f"{self}: {problem}")


class PlacedRule(NamedTuple):
    """A rule and where it stands; ``when`` is its condition's own place."""

    entry: RuleEntry
    place: Place
    when: Place


class PlacedThreshold(NamedTuple):
    """A threshold and where it stands."""

    name: str
    entry: ThresholdEntry
    place: Place


class Source(NamedTuple):
    """A bundle's files, merged: rules in order, included ones before those of the file that includes them."""

    entry: PolicyEntry
    rules: tuple[PlacedRule, ...]
    thresholds: tuple[PlacedThreshold, ...]
    #: Where the condition of each actor rule stands.
    actor_rules: tuple[Place, ...]
    #: Name below the bundle's folder → bytes; tests included.
    files: Mapping[str, bytes]
    digest: str


def read(path: Path) -> Source:
    """Read a bundle's folder, or a lone policy file.

    Raises:
        Fatal: BAD_POLICY, naming the file, the line and the mend.
    """
    folder = path if path.is_dir() else None
    files = _Files((folder or path.parent).resolve())
    name = POLICY_FILE if folder else path.name
    first = files.document(name, Place(name, 1))
    entry = first.validate(PolicyEntry, "policy")
    if folder:
        for key in ("owner", "note"):
            if not getattr(entry, key).strip():
                raise first.refuse((key,), f"{key}: say {'who answers for it' if key == 'owner' else 'what changed'}")
        if (folder / TESTS_FILE).exists():
            files.read(TESTS_FILE, Place(TESTS_FILE, 1))
    rules: list[PlacedRule] = []
    thresholds: dict[str, PlacedThreshold] = {}
    for file, document, fragment in _fragments(files, name, first, entry, ()):
        _add_thresholds(thresholds, file, document, fragment)
        _add_rules(rules, file, document, fragment)
    if not rules:
        raise first.refuse(("rules",), "rules: there is none: add one")
    if len(rules) > _MAX_RULES:
        raise first.refuse(("rules",), f"{len(rules)} rules with all includes, at most {_MAX_RULES}: split the policy")
    content = dict(files.content)
    return Source(
        entry,
        tuple(rules),
        tuple(thresholds.values()),
        _actor_rules(name, first, entry, {rule.entry.id: rule.place for rule in rules}),
        content,
        digest(content, lone=folder is None),
    )


def digest(files: Mapping[str, bytes], *, lone: bool) -> str:
    """SHA-256 of a lone file's bytes, or of a folder's names, sizes and bytes in order of name; lower-case hex."""
    if lone and len(files) == 1:
        return hashlib.sha256(next(iter(files.values()))).hexdigest()
    over = hashlib.sha256(b"seawall policy bundle 1\n")
    for name in sorted(files):
        over.update(f"{name}\x1f{len(files[name])}\n".encode())
        over.update(files[name])
    return over.hexdigest()


class _Files:
    """Reads files below one folder, each once, all together at most MAX_BUNDLE_BYTES."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.content: dict[str, bytes] = {}

    def document(self, name: str, asked: Place) -> strict_yaml.Document:
        return strict_yaml.parse(self.read(name, asked), name, REASON)

    def read(self, name: str, asked: Place) -> bytes:
        path = self._folder / name
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            where = path if asked.file == name else f"{asked}: {name}"
            raise Fatal(REASON, f"{where}: cannot be read ({error.strerror}): check the path and its mode") from error
        if len(data) > MAX_FILE_BYTES:
            raise Fatal(REASON, f"{name}: more than {MAX_FILE_BYTES} bytes, at most that: split the policy")
        self.content[name] = data
        if sum(map(len, self.content.values())) > MAX_BUNDLE_BYTES or len(self.content) > _MAX_FILES:
            raise Fatal(REASON, f"{name}: the bundle has more than {_MAX_FILES} files or {MAX_BUNDLE_BYTES} bytes")
        return data

    def resolve(self, beside: str, wanted: str, asked: Place) -> str:
        """The name of an included file below the folder."""
        path = (self._folder / beside).parent / wanted
        try:
            name = Path(*_normal(path.relative_to(self._folder).parts)).as_posix()
            inside = path.resolve().is_relative_to(self._folder) and not Path(wanted).is_absolute()
        except (ValueError, OSError):
            inside, name = False, ""
        if not inside or not name.endswith(".yaml"):
            raise asked.refuse(f"include {wanted!r}: must be a .yaml file inside the bundle's folder")
        return name


def _normal(parts: tuple[str, ...]) -> list[str]:
    normal: list[str] = []
    for part in parts:
        if part == "..":
            if not normal:
                raise ValueError("outside the folder")
            normal.pop()
        elif part != ".":
            normal.append(part)
    return normal


def _fragments(
    files: _Files, name: str, document: strict_yaml.Document, fragment: Fragment, above: tuple[str, ...]
) -> Iterator[tuple[str, strict_yaml.Document, Fragment]]:
    """The file's includes, depth first, then the file itself."""
    above = (*above, name)
    for number, wanted in enumerate(fragment.include):
        asked = Place(name, document.line(("include", number)))
        found = files.resolve(name, wanted, asked)
        if found in above:
            chain = " → ".join((*above[above.index(found) :], found))
            raise asked.refuse(f"include {wanted!r}: goes round in a circle ({chain}): take one of them out")
        if found in files.content:
            raise asked.refuse(f"include {wanted!r}: this file is part of the bundle already: include it once")
        included = files.document(found, asked)
        yield from _fragments(files, found, included, included.validate(Fragment, "included file"), above)
    yield name, document, fragment


def _add_thresholds(
    into: dict[str, PlacedThreshold], file: str, document: strict_yaml.Document, fragment: Fragment
) -> None:
    for name, entry in fragment.thresholds.items():
        place = Place(file, document.line(("thresholds", name)))
        if (before := into.get(name)) is not None:
            how = "is there already" if before.entry == entry else f"contradicts {before.entry.value:g}"
            raise place.refuse(f"threshold {name!r} {how}, at {before.place}: keep one of the two")
        into[name] = PlacedThreshold(name, entry, place)


def _add_rules(into: list[PlacedRule], file: str, document: strict_yaml.Document, fragment: Fragment) -> None:
    known = {rule.entry.id: rule.place for rule in into}
    for number, entry in enumerate(fragment.rules):
        place = Place(file, document.line(("rules", number, "id")))
        if entry.id.startswith("engine/"):
            raise place.refuse(f"rule {entry.id!r}: ids that begin with engine/ are the engine's own: rename it")
        if (before := known.get(entry.id)) is not None:
            raise place.refuse(f"rule {entry.id!r}: the id is taken at {before}: ids are unique, rename one")
        known[entry.id] = place
        into.append(PlacedRule(entry, place, Place(file, document.line(("rules", number, "when")))))


def _actor_rules(
    file: str, document: strict_yaml.Document, entry: PolicyEntry, known: dict[str, Place]
) -> tuple[Place, ...]:
    places = []
    for number, rule in enumerate(entry.actors.rules if entry.actors else ()):
        place = Place(file, document.line(("actors", "rules", number, "id")))
        if (before := known.get(rule.id)) is not None:
            raise place.refuse(f"actor rule {rule.id!r}: the id is taken at {before}: ids are unique, rename one")
        known[rule.id] = place
        places.append(Place(file, document.line(("actors", "rules", number, "when"))))
    return tuple(places)
