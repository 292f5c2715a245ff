"""The sample stream: what it holds, and that it is the same every time."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from functools import cache

import pytest
from google.protobuf.message import DecodeError
from PIL import Image
from pydantic import ValidationError

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Poison
from seawall.core.validate import parse_generation
from seawall.local import malformed, photographs, samples
from seawall.local.platform import Submission
from seawall.prompt_scoring import term_packs
from seawall.prompt_scoring.normalise import views
from seawall.prompt_scoring.term_set import TermSet

# The whole vocabulary of what must be stopped: nothing is added to it unless somebody reads this.
VOCABULARY = """
a an of the in this for on with and as image picture explicit sexual sexually pornographic minor child underage person
12-year-old girl boy photo undress remove clothes make nude news report online safety medical textbook training example
moderators research paper protection
"""


@cache
def stream() -> list[samples.Sample]:
    return samples.stream()


@cache
def submissions() -> dict[str, Submission]:
    return {sample.name: sample.make() for sample in stream()}


def test_the_stream_is_large_and_has_every_kind() -> None:
    assert len(stream()) >= 300
    assert len({sample.name for sample in stream()}) == len(stream())
    outcomes = Counter(sample.outcome for sample in stream())
    assert set(outcomes) == set(decision_pb2.Outcome.values()) - {decision_pb2.OUTCOME_UNSPECIFIED}
    nexus = {upload.nexus for submission in submissions().values() for upload in submission.uploads}
    assert nexus == {
        generation_pb2.NEXUS_UPLOADED_INPUT,
        generation_pb2.NEXUS_MODEL_OUTPUT,
        generation_pb2.NEXUS_TRAINING_DATA,
    }
    assert any(sample.copies > 1 for sample in stream())


def test_photographs_come_in_several_formats_and_sizes() -> None:
    kinds: Counter[tuple[str | None, int]] = Counter()
    for sample in stream():
        if sample.category != "ordinary-photograph":
            continue
        (upload,) = submissions()[sample.name].uploads
        with Image.open(io.BytesIO(upload.data)) as image:
            kinds[image.format, max(image.size)] += 1
            assert Image.MIME[image.format or ""] == upload.media_type
    assert {kind for kind, _ in kinds} == {"JPEG", "PNG", "WEBP"}
    assert {size for _, size in kinds} == {256, 512, 768, 1024}


def test_the_stream_is_the_same_every_time() -> None:
    assert [sample.name for sample in samples.stream()] == [sample.name for sample in stream()]
    for again in samples.stream()[:40]:
        first, second = submissions()[again.name], again.make()
        assert first.prompt == second.prompt
        assert [upload.data for upload in first.uploads] == [upload.data for upload in second.uploads]


def test_stand_ins_and_ordinary_photographs_do_not_overlap() -> None:
    catalogue = samples.load_catalogue()
    assert not set(catalogue.photographs) & set(catalogue.stand_ins)
    originals = {name: hashlib.sha256(photographs.original(name)).digest() for name in catalogue.photographs}
    assert len(set(originals.values())) == len(originals)


def test_positives_stay_clinical() -> None:
    words = set(re.findall(r"[\w-]+", VOCABULARY))
    spelling = TermSet([term_packs.load(folder) for folder in term_packs.bundled()]).spelling
    for sample in stream():
        if "positive" in sample.category or sample.category == "undress-request":
            prompt = submissions()[sample.name].prompt or ""
            # What is disguised is clinical once the disguise is undone.
            readings = [view.words.decode() for view in views(prompt, spelling)] if "evaded" in sample.category else []
            assert any(set(re.findall(r"[\w-]+", text.lower())) <= words for text in (prompt, *readings)), sample.name


def test_what_is_sent_shows_no_content_when_printed() -> None:
    for sample in stream():
        prompt = submissions()[sample.name].prompt
        assert not prompt or prompt not in f"{sample!r} {submissions()[sample.name]!r}"


def record(case: malformed.Case) -> bytes | None:
    submission = case.make()
    generation = generation_pb2.Generation(generation_id="g-1", attempt=1, modality=submission.modality)
    generation.prompt.key_id, generation.prompt.ciphertext = "7", b"sealed text"
    for number, upload in enumerate(submission.uploads):
        item = generation.media.add(item_id=f"output/{number}", nexus=upload.nexus)
        item.content.uri = "file:///home/content/ab/abc"
        item.content.sha256 = hashlib.sha256(upload.data).digest()
    return case.spoil(generation) if case.spoil else generation.SerializeToString()


@pytest.mark.parametrize("name", sorted(malformed.CASES))
def test_every_malformed_case_is_in_the_stream_and_is_what_it_says(name: str) -> None:
    categories = {category.name: category for category in samples.load_catalogue().categories}
    (category,) = [one.name for one in categories.values() if name in one.malformed]
    value = record(malformed.CASES[name])
    if category in ("malformed-field", "undecodable"):
        with pytest.raises(Poison) as refused:
            parse_generation(value)
        assert (refused.value.reason == "UNDECODABLE") == (category == "undecodable")
    else:
        parse_generation(value)


def test_bombs_claim_what_no_decoder_should_allocate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for name in ("jpeg_bomb", "png_bomb", "gif_bomb"):
        (upload,) = malformed.CASES[name].make().uploads
        assert len(upload.data) < 100_000
        with Image.open(io.BytesIO(upload.data)) as image:
            assert image.size == (malformed.BOMB_SIDE, malformed.BOMB_SIDE), name


def test_undecodable_cases_are_not_generations() -> None:
    for name in ("random_record", "json_text", "truncated_record"):
        with pytest.raises(DecodeError):
            generation_pb2.Generation.FromString(record(malformed.CASES[name]) or b"")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome": "PERHAPS"}, "outcome"),
        ({"unknown": 1}, "unknown"),
        ({"malformed": ["no-such-case"]}, "no such malformed case: no-such-case"),
        ({"prompts": None}, "a category needs prompts, media or malformed"),
        ({"malformed": ["json_text"]}, "make it a category of its own"),
    ],
)
def test_a_faulty_catalogue_is_refused_by_field(change: dict[str, object], message: str) -> None:
    good = {"name": "x", "about": "x", "outcome": "ALLOW", "prompts": {"list": ["x"]}}
    if message.startswith("no such"):
        good.pop("prompts")
    with pytest.raises(ValidationError, match=message):
        samples.Category.model_validate({**good, **change})


def test_a_missing_photograph_names_its_mend() -> None:
    with pytest.raises(Fatal, match=r"pip install 'seawall\[local\]'"):
        photographs.original("no-such-photograph")
