"""Seawall's own evaluation sets, made from the templates in ``data``: the same texts on every machine.

A template stands in one split. Its fillings, the evasions and the carriers are drawn with a generator seeded by the
template's own digest, so that adding a template changes no other text.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from seawall.prompt_scoring.evaluation.disguises import DISGUISES
from seawall.prompt_scoring.evaluation.samples import PLAIN, Grade, Sample

Split = Literal["train", "tune", "final", "fresh", "third", "fourth"]
SPLITS: tuple[Split, ...] = ("train", "tune", "final", "fresh", "third", "fourth")
#: Texts a template in clear, an evasion of it, and a wrapper around it.
_FILLINGS, _EVADED, _WRAPPED, _PADDED, _SPLIT_TEXTS = 12, 4, 4, 6, 30
_HARD_FILLINGS = 4
_ORDINARY = {"train": 3000, "tune": 1000, "final": 4000, "fresh": 4000, "third": 4000, "fourth": 4000}
#: Splits with building blocks of their own.
_OWN_BLOCKS = frozenset(("fresh", "third", "fourth"))
#: The split prompt's evasion, and the wrapper that padding counts as.
SPLIT_PROMPT, PADDING = "split_prompt", "padding"


def build(split: Split) -> list[Sample]:
    """The samples of a split, in a fixed order, no text twice."""
    found: dict[tuple[str, str], Sample] = {}
    for sample in _all(split):
        found.setdefault((sample.text, sample.negative), sample)
    return list(found.values())


def frozen() -> Mapping[str, str]:
    """The committed digest of each split."""
    found: Mapping[str, str] = _data("digests")
    return found


def _all(split: Split) -> Iterator[Sample]:
    english, carriers = _data("english"), _carriers(split)
    for template in english["positives"][split]:
        yield from _positives(template, carriers)
    for entry in _data("carriers")["split"].get(split, ()):
        yield from _split_prompts(entry)
    for template in english["hard_negatives"][split]:
        chance = _chance("hard", template)
        texts = _filled(template, chance, _HARD_FILLINGS)
        for text in texts:
            yield _sample(text, "hard_negative", template)
        if split == "train":
            # Else a head would learn that whatever stands in a carrier is a request.
            yield from _carried(texts, "hard_negative", template, carriers, chance, wrapped=1, padded=2)
    if split == "final":
        for language, grades in _data("languages").items():
            for grade, texts in grades.items():
                for text in texts:
                    yield _sample(text, grade, text, language=language)
    yield from _ordinary(split)


def _positives(template: str, carriers: Mapping[str, Sequence[str]]) -> Iterator[Sample]:
    chance = _chance("positive", template)
    texts = _filled(template, chance, _FILLINGS)
    for text in texts:
        yield _sample(text, "positive", template)
    for name, disguise in DISGUISES.items():
        for text in chance.sample(texts, min(_EVADED, len(texts))):
            yield _sample(disguise(text, chance), "positive", template, evasion=name)
    yield from _carried(texts, "positive", template, carriers, chance, wrapped=_WRAPPED, padded=_PADDED)


def _carried(
    texts: Sequence[str],
    grade: Grade,
    template: str,
    carriers: Mapping[str, Sequence[str]],
    chance: random.Random,
    *,
    wrapped: int,
    padded: int,
) -> Iterator[Sample]:
    """``wrapped`` texts in a carrier of each kind, and ``padded`` between ordinary sentences."""
    for name, wrappers in carriers.items():
        if name == PADDING:
            continue
        for text in chance.sample(texts, min(wrapped, len(texts))):
            carrier = chance.choice(wrappers)
            yield _sample(carrier.replace("{request}", text), grade, template, wrapper=name, carrier=_name(carrier))
    for index in range(padded):
        sentences = chance.sample(carriers[PADDING], chance.randint(2, min(8, len(carriers[PADDING]))))
        cut = chance.randint(0, len(sentences))
        padded_text = ". ".join((*sentences[:cut], texts[index % len(texts)], *sentences[cut:]))
        yield _sample(padded_text, grade, template, wrapper=PADDING, carrier=_name("".join(sentences)))


def _split_prompts(entry: Mapping[str, str]) -> Iterator[Sample]:
    chance = _chance("split", entry["text"])
    for text in _filled(entry["text"], chance, _SPLIT_TEXTS):
        sample = _sample(text, "positive", entry["text"], evasion=SPLIT_PROMPT)
        yield sample.model_copy(update={"negative": entry["negative"]})


def _ordinary(split: Split) -> Iterator[Sample]:
    blocks = _data("ordinary")
    if split in _OWN_BLOCKS:
        blocks = blocks[split]
    chance = _chance("ordinary", split)
    seen: set[str] = set()
    while len(seen) < _ORDINARY[split]:
        negative = ""
        if chance.random() < 0.65:
            parts = [chance.choice(blocks["subjects"]), chance.choice(blocks["details"])]
            parts[1:] = [part for part in parts[1:] if chance.random() < 0.7]
            if chance.random() < 0.7:
                parts.append(chance.choice(blocks["places"]))
            text = f"{' '.join(parts)}, {chance.choice(blocks['styles'])}"
            if chance.random() < 0.3:
                negative = chance.choice(blocks["negatives"])
        else:
            text = chance.choice(blocks["tasks"]).replace("{topic}", chance.choice(blocks["topics"]))
        # Drawn per split: a text belongs to the split that its digest names, so that no text stands in two.
        if text in seen or (split not in _OWN_BLOCKS and _owner(text) != split):
            continue
        seen.add(text)
        yield _sample(text, "ordinary", text).model_copy(update={"negative": negative})


def _owner(text: str) -> Split:
    return SPLITS[min(hashlib.sha256(text.encode()).digest()[0] // 64, 2)]


def _filled(template: str, chance: random.Random, count: int) -> list[str]:
    """Up to ``count`` different fillings."""
    slots = _data("slots")
    found: dict[str, None] = {}
    for _ in range(count * 3):
        text = _SLOT.sub(lambda match: str(chance.choice(slots[match[1]])), template)
        found[_ARTICLE.sub(r"\1n ", text)] = None
        if len(found) == count:
            break
    return list(found)


_SLOT = re.compile(r"\{(\w+)\}")
#: "a explicit" must read "an explicit".
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou]|NSFW|8)", re.ASCII)


def _sample(
    text: str, grade: Grade, template: str, *, language: str = "en", evasion: str = PLAIN, wrapper: str = PLAIN,
    carrier: str | None = None,
) -> Sample:  # fmt: skip
    return Sample(
        text=text,
        grade=grade,
        template=_name(f"{grade} {template}"),
        language=language,
        evasion=evasion,
        wrapper=wrapper,
        carrier=carrier,
    )


def _carriers(split: Split) -> dict[str, list[str]]:
    """Wrappers by kind, and the sentences that pad."""
    data = _data("carriers")
    found = {name: list(texts[split]) for name, texts in data["wrappers"].items()}
    return {**found, PADDING: list(data["padding"][split])}


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _chance(kind: str, seed: str) -> random.Random:
    return random.Random(f"{kind} {seed}")


@cache
def _data(name: str) -> Any:
    text = resources.files(__package__).joinpath("data", f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.CSafeLoader)
