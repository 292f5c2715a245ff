"""Evaluation sets: labelled texts, one JSON document a line.

    {"text": "...", "grade": "positive", "template": "3f0c...", "language": "en"}

``negative``, ``turns``, ``evasion``, ``wrapper`` and ``carrier`` are optional; see ``Sample``. A set is content: it is
never logged, and an error names its lines by number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from seawall.core.errors import Fatal

#: positive: must be blocked. hard_negative: innocent, in words that positives use. ordinary: innocent, about anything.
Grade = Literal["positive", "hard_negative", "ordinary"]
#: ``evasion`` and ``wrapper`` of a text that has none.
PLAIN = "none"
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


class Sample(BaseModel):
    """One text of a set."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    text: str = Field(max_length=1_000_000)
    #: The negative prompt.
    negative: str = Field(default="", max_length=1_000_000)
    #: Earlier turns of the conversation, oldest first.
    turns: tuple[Annotated[str, Field(max_length=1_000_000)], ...] = Field(default=(), max_length=100)
    grade: Grade
    #: Texts made from one template share it: they are no independent evidence, and stand in one split together.
    template: _Name
    #: BCP 47.
    language: str = Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
    #: How the text is disguised.
    evasion: _Name = PLAIN
    #: What kind of innocent text it is hidden in.
    wrapper: _Name = PLAIN
    #: The text it is hidden in. It stands in one split as a template does.
    carrier: _Name | None = None

    def line(self) -> bytes:
        """The sample as a line of a set's file; the same sample is always the same bytes."""
        return self.model_dump_json(exclude_defaults=True).encode() + b"\n"


def read(path: Path) -> list[Sample]:
    """The samples of a set's file.

    Raises:
        Fatal: ``BAD_EVALUATION_SET`` naming the line and the field, never the text.
    """
    samples = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    samples.append(_parsed(line, f"{path.name} line {number}"))
    except OSError as error:
        raise Fatal("BAD_EVALUATION_SET", f"{path.name} cannot be read ({error.strerror})") from None
    if not samples:
        raise Fatal("BAD_EVALUATION_SET", f"{path.name} holds no sample: give one JSON document a line")
    return samples


def _parsed(line: bytes, where: str) -> Sample:
    try:
        return Sample.model_validate_json(line)
    except ValidationError as error:
        # The cause would quote the text.
        fields = {".".join(map(str, item["loc"])) or "JSON" for item in error.errors(include_input=False)}
        raise Fatal("BAD_EVALUATION_SET", f"{where}: mend {', '.join(sorted(fields))}") from None


def write(path: Path, samples: Iterable[Sample]) -> None:
    """Write a set's file."""
    with path.open("wb") as out:
        out.writelines(sample.line() for sample in samples)


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 of the set's file, 64 hex digits."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(sample.line())
    return found.hexdigest()


def shared(splits: Mapping[str, Sequence[Sample]]) -> set[str]:
    """Templates, carriers and texts that stand in more than one of the splits: none may."""
    owners: dict[str, set[str]] = {}
    for name, samples in splits.items():
        for sample in samples:
            for mark in (f"template {sample.template}", f"carrier {sample.carrier}", f"text {_text_mark(sample)}"):
                if mark != "carrier None":
                    owners.setdefault(mark, set()).add(name)
    return {mark for mark, names in owners.items() if len(names) > 1}


def _text_mark(sample: Sample) -> str:
    return hashlib.sha256(f"{len(sample.text)} {sample.text}{sample.negative}".encode()).hexdigest()[:16]
