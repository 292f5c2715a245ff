"""``bank.yaml``: what a bank says of itself, checked line by line."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from seawall.core.errors import Fatal
from seawall.perceptual_hashing.hamming import MAX_RADIUS
from seawall.perceptual_hashing.hash_types import is_plug_in

CARD_FILE: Final = "bank.yaml"
_MAX_CARD_BYTES: Final = 256 * 1024
_FILE = re.compile(r"[A-Za-z0-9._-]{1,100}\.csv\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

#: "full": PDQ of the picture as it is, as python-threatexchange computes it. "512": of the picture made 512 x 512 first
#: when it is larger, as the reference command line does. They differ by up to 50 bits: a list is matched by the
#: pipeline that made it, or hardly at all.
Pipeline = Literal["full", "512"]


class BankCard(BaseModel):
    """The content of bank.yaml. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, strict=True)

    #: Names the bank in matches; also the name of its folder.
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    #: Who made the list: "NCMEC", "own".
    source: str = Field(min_length=1, max_length=200)
    #: The list's own version or date, quoted in YAML.
    version: str = Field(min_length=1, max_length=100)
    #: The list's own word for what it holds; it travels with every match.
    category: str = Field(min_length=1, max_length=100)
    pipeline: Pipeline
    #: Bits that may differ from a listed PDQ hash.
    radius: int = Field(default=MAX_RADIUS, ge=0)
    #: "negative": known-benign pictures that come near listed ones; they suppress loose matches.
    kind: Literal["positive", "negative"] = "positive"
    #: What the operator does about a match, in the operator's words; it travels with every match.
    action: str = Field(default="", max_length=100)
    #: After it the bank matches nothing; with its time zone, quoted in YAML: "2027-01-31T00:00:00Z".
    expires: str = ""
    #: Under which terms the list may be used.
    licence: str = Field(min_length=1, max_length=200)
    notes: str = Field(default="", max_length=10_000)
    #: Plug-ins whose hashes the bank lists beside the built-in ones; see `signal_types`.
    signal_types: list[str] = Field(default_factory=list, max_length=8)
    #: A listed video counts as found when at least so many percent of the item's frames, and of the listed video's,
    #: match; 0: one frame is enough.
    min_query_percent: int = Field(default=0, ge=0, le=100)
    min_listed_percent: int = Field(default=0, ge=0, le=100)
    #: SHA-256 of each file of entries.
    files: dict[str, str] = Field(min_length=1)

    @field_validator("radius")
    @classmethod
    def _exact(cls, radius: int) -> int:
        if radius > MAX_RADIUS:
            raise ValueError(
                f"must be at most {MAX_RADIUS}: further away the index would miss entries, and PDQ says little"
            )
        return radius

    @field_validator("expires")
    @classmethod
    def _instant(cls, expires: str) -> str:
        if expires:
            try:
                when = datetime.fromisoformat(expires)
            except ValueError:
                raise ValueError('must be a date and time with its zone: "2027-01-31T00:00:00Z"') from None
            if when.tzinfo is None:
                raise ValueError('must name its time zone: "2027-01-31T00:00:00Z"')
        return expires

    @field_validator("signal_types")
    @classmethod
    def _plug_ins(cls, names: list[str]) -> list[str]:
        for name in names:
            if not is_plug_in(name):
                raise ValueError("names plug-ins, [a-z][a-z0-9_]{0,31}; what is built in needs no name here")
        return names

    @property
    def expires_unix_nano(self) -> int:
        """Unix nanoseconds; 0: never."""
        return int(datetime.fromisoformat(self.expires).timestamp()) * 1_000_000_000 if self.expires else 0

    @field_validator("files")
    @classmethod
    def _named(cls, files: dict[str, Annotated[str, "sha256"]]) -> dict[str, str]:
        for name, digest in files.items():
            if not _FILE.match(name):
                raise ValueError("a file of entries lies in the bank's own folder and ends in .csv")
            if not _DIGEST.match(digest):
                raise ValueError(f"{name} must have its SHA-256 as 64 hex digits: sha256sum {name}")
        return files


def parse(data: bytes, where: str) -> BankCard:
    """The card in ``data``.

    Args:
        where: names the file in errors: "demo/bank.yaml".

    Raises:
        Fatal: ``BAD_BANK``, naming the line, the key and the mend.
    """
    if len(data) > _MAX_CARD_BYTES:
        raise Fatal("BAD_BANK", f"{where} is larger than {_MAX_CARD_BYTES} bytes: entries belong into a .csv file")
    try:
        text = data.decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        raise Fatal("BAD_BANK", f"{where} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise Fatal("BAD_BANK", f"{where}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    if not isinstance(root, yaml.MappingNode) or not isinstance(content, dict):
        raise Fatal("BAD_BANK", f"{where} line 1: a bank's card is a mapping of keys to values")
    lines: dict[str, int] = {}
    for key, _ in root.value:
        if key.value in lines:
            raise Fatal("BAD_BANK", f"{where} line {key.start_mark.line + 1}: {key.value} stands twice")
        lines[key.value] = key.start_mark.line + 1
    try:
        return BankCard.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = str(first["loc"][0]) if first["loc"] else "card"
        raise Fatal("BAD_BANK", f"{where} line {lines.get(key, 1)}: {key}: {_message(first)}") from None


def _message(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key: correct its spelling or remove it"
    if item["type"] == "missing":
        return "missing: add it"
    if item["type"] == "string_type":
        return "must be text: put it in quotes"
    return str(item["msg"]).removeprefix("Value error, ")
