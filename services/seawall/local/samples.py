"""The sample stream: what the demo sends, drawn from ``data/samples.yaml`` with its seed, and what must be decided.

The same file gives the same samples every time. Media are made when they are asked for, so the stream costs no memory.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from string import Formatter
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal
from seawall.local import photographs
from seawall.local.malformed import CASES, Case, Spoil
from seawall.local.platform import Platform, Submission, Upload

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Prompts(_Part):
    """Prompts as they are, or templates of whose combinations ``count`` are drawn."""

    list: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    slots: Mapping[str, tuple[str, ...]] = {}
    count: int | None = Field(default=None, ge=1)


class Media(_Part):
    """Pictures: every photograph of the source with every value of the axes, of which ``count`` are drawn."""

    source: Literal["photographs", "stand_ins"]
    count: int = Field(ge=1)
    nexus: tuple[Literal["UPLOADED_INPUT", "MODEL_OUTPUT", "TRAINING_DATA"], ...] = ("MODEL_OUTPUT",)
    encoding: tuple[Literal["untouched", "jpeg", "jpeg_low", "png", "webp"], ...]
    # Pixels of the longer side; 0: as it is.
    size: tuple[int, ...] = (0,)
    crop: tuple[Literal["whole", "left", "top"], ...] = ("whole",)
    edit: tuple[Literal["none", "brighter", "darker", "smaller", "larger", "mirrored", "turned", "framed"], ...] = (
        "none",
    )


class Category(_Part):
    """Samples of one kind, which all get the same outcome in the end."""

    name: Name
    about: str
    outcome: Literal["HOLD", "ALLOW", "REVIEW", "BLOCK", "BLOCK_AND_REPORT"]
    # The rule that must decide; unset: any.
    rule: str | None = None
    modality: Literal["TEXT", "IMAGE", "VIDEO", "DATASET"] = "IMAGE"
    copies: int = Field(default=1, ge=1, le=10)
    prompts: Prompts | None = None
    negative_prompt: str | None = None
    # What was written before in the same conversation, oldest first.
    turns: tuple[str, ...] = ()
    media: Media | None = None
    # Cases of seawall.local.malformed.
    malformed: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _has_something(self) -> Category:
        if self.malformed and (self.prompts or self.media):
            raise ValueError("malformed cases bring their own prompts and media: make it a category of its own")
        if not (self.malformed or self.prompts or self.media):
            raise ValueError("a category needs prompts, media or malformed")
        if unknown := [name for name in self.malformed if name not in CASES]:
            raise ValueError(f"no such malformed case: {', '.join(unknown)}")
        return self


class Catalogue(_Part):
    """The whole file."""

    version: Literal[1]
    seed: int
    photographs: tuple[Name, ...]
    stand_ins: tuple[Name, ...]
    categories: tuple[Category, ...]


@dataclass(frozen=True, repr=False)
class Sample:
    """One generation to send, and the outcome it must get. Its repr shows no content."""

    #: Unique in the stream: "hard-negative.7".
    name: str
    category: str
    outcome: decision_pb2.Outcome.ValueType
    #: The rule that must decide, None where any may.
    rule: str | None
    #: How often the very same record is sent.
    copies: int
    make: Callable[[], Submission]
    spoil: Spoil | None = None

    async def record(self, platform: Platform, generation_id: str) -> tuple[bytes, bytes | None]:
        """The record's key and value; its media are in the content store when this returns."""
        # Encoding takes milliseconds: off the event loop, which must go on reading decisions.
        submission = await asyncio.to_thread(self.make)
        generation = await platform.build(submission, generation_id)
        value = self.spoil(generation) if self.spoil else generation.SerializeToString()
        return generation_id.encode(), value


def load_catalogue() -> Catalogue:
    """``data/samples.yaml``, checked. Raises Fatal("BAD_SAMPLES") that names the field."""
    text = resources.files("seawall.local").joinpath("data/samples.yaml").read_text(encoding="utf-8")
    try:
        return Catalogue.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Fatal("BAD_SAMPLES", f"data/samples.yaml: {where}: {first['msg']}") from None


def stream(catalogue: Catalogue | None = None) -> list[Sample]:
    """Every sample, the categories mixed."""
    catalogue = catalogue or load_catalogue()
    samples = [sample for category in catalogue.categories for sample in _samples(catalogue, category)]
    random.Random(catalogue.seed).shuffle(samples)
    return samples


def prompts(catalogue: Catalogue) -> list[str]:
    """Every prompt text that the stream may send, for a search that must not find them anywhere."""
    texts = set()
    for sample in stream(catalogue):
        submission = sample.make()
        texts |= {text for text in (submission.prompt, submission.negative_prompt, *submission.turns) if text}
    return sorted(texts)


def _samples(catalogue: Catalogue, category: Category) -> Iterator[Sample]:
    cases = [CASES[name] for name in category.malformed] or _well_formed(catalogue, category)
    for number, case in enumerate(cases):
        yield Sample(
            name=f"{category.name}.{number}",
            category=category.name,
            outcome=decision_pb2.Outcome.Value(f"OUTCOME_{category.outcome}"),
            rule=category.rule,
            copies=category.copies,
            make=case.make,
            spoil=case.spoil,
        )


def _well_formed(catalogue: Catalogue, category: Category) -> list[Case]:
    # A generator of its own, so that a change in one category leaves the others as they were.
    draw = random.Random(f"{catalogue.seed}/{category.name}")
    texts = _texts(category.prompts, draw) if category.prompts else []
    pictures = _pictures(catalogue, category.media, draw) if category.media else []
    modality = generation_pb2.Modality.Value(f"MODALITY_{category.modality}")
    actor = f"demo-actor-{category.name}"
    nexus: list[generation_pb2.Nexus.ValueType] = []
    if category.media:
        nexus = [generation_pb2.Nexus.Value(f"NEXUS_{name}") for name in category.media.nexus]

    def case(text: str | None, picture: Picture | None) -> Case:
        def make() -> Submission:
            uploads = [Upload(*picture.file(), one) for one in nexus] if picture else []
            return Submission(
                text, category.negative_prompt, uploads, modality, "demo-tenant", actor, turns=category.turns
            )

        return Case(make)

    if not pictures:
        return [case(text, None) for text in texts]
    return [case(texts[number % len(texts)] if texts else None, picture) for number, picture in enumerate(pictures)]


def _texts(wanted: Prompts, draw: random.Random) -> list[str]:
    texts = list(wanted.list)
    for template in wanted.templates:
        slots = [slot for _, slot, _, _ in Formatter().parse(template) if slot]
        for values in itertools.product(*(wanted.slots[slot] for slot in slots)):
            texts.append(template.format(**dict(zip(slots, values, strict=True))))
    return draw.sample(texts, wanted.count) if wanted.count is not None else texts


@dataclass(frozen=True)
class Picture:
    """How one file is made from a photograph."""

    photograph: str
    encoding: str
    size: int
    crop: str
    edit: str

    def file(self) -> tuple[bytes, str]:
        """Its bytes and media type."""
        if self.encoding == "untouched":
            return photographs.original(self.photograph), photographs.original_media_type(self.photograph)
        image = photographs.crop(photographs.picture(self.photograph), self.crop)
        if self.size:
            image = photographs.fit(image, self.size)
        return photographs.encode(photographs.EDITS[self.edit](image), self.encoding)


def _pictures(catalogue: Catalogue, wanted: Media, draw: random.Random) -> list[Picture]:
    names = catalogue.photographs if wanted.source == "photographs" else catalogue.stand_ins
    every = [
        Picture(*values) for values in itertools.product(names, wanted.encoding, wanted.size, wanted.crop, wanted.edit)
    ]
    return draw.sample(every, wanted.count)
