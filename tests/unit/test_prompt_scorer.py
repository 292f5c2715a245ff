"""The scorer, its encoder and its stage, with a model made on the spot: a table of word vectors and their mean."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal, Poison
from seawall.prompt_scoring import scorer, term_packs, term_set
from seawall.prompt_scoring.anchors import Anchors
from seawall.prompt_scoring.encoder import Encoder, TooManyTokens
from seawall.prompt_scoring.scorer import PromptScorer
from seawall.prompt_scoring.settings import PackSettings, PromptScoringSettings
from seawall.prompt_scoring.stage import STAGE, examples
from seawall.runtime import model_pack
from seawall.runtime.sealing import Sealer

OK, ERROR, UNSCANNABLE, SKIPPED = (
    signal_pb2.ITEM_STATUS_OK,
    signal_pb2.ITEM_STATUS_ERROR,
    signal_pb2.ITEM_STATUS_UNSCANNABLE,
    signal_pb2.ITEM_STATUS_SKIPPED,
)
CLINICAL = "explicit image of a minor"
WORDS = ("[UNK]", "explicit", "image", "minor", "lake", "sunrise", "garden")
#: The first axis is what the test's anchors are about.
VECTORS = np.array(
    [[0, 0, 1], [1, 0, 0], [0.8, 0, 0.6], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0.6, 0.8]], dtype=np.float32
)


def tiny_model(inputs: tuple[str, ...] = ("input_ids",), vectors: NDArray[np.float32] = VECTORS) -> onnx.ModelProto:
    """One embedding a text: the mean of its words' vectors, length one."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(vectors, "table")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])


def write_pack(folder: Path, model: onnx.ModelProto | None = None, **changes: Any) -> model_pack.ModelPack:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "model.onnx").write_bytes((model or tiny_model()).SerializeToString())
    card = {
        "name": "tiny",
        "version": "1",
        "licence": "Apache-2.0",
        "intended_use": "Tests.",
        "task": "text-embedding",
        "minimum_opset": 13,
        "input": {"tokenizer": "tokenizer.json", "max_tokens": 64},
        "output": {"dimensions": 3, "pooling": "mean", "pooled_in_graph": True, "normalised": True},
        "examples": [{"texts": ["lake", "garden"], "cosine": 0.6, "tolerance": 0.01}],
        **changes,
    }
    return model_pack.write_card(folder, card, ["model.onnx", "tokenizer.json"])


def write_anchors(path: Path, **changes: Any) -> Path:
    content = {
        "version": "1",
        "language": "en",
        "slope": 20.0,
        "offset": 0.0,
        "floor": 0.5,
        "toward": ["explicit", "minor", "explicit minor"],
        "away": ["lake", "sunrise", "lake sunrise"],
        **changes,
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    write_pack(folder / "tiny")
    write_anchors(folder / "anchors.yaml")
    return folder


@pytest.fixture(scope="module")
def sealer(home: Path) -> Sealer:
    return Sealer.load_or_create(home / "keys.json")


def room(home: Path, sealer: Sealer, **changes: Any) -> PromptScorer:
    options = {"model": home / "tiny", "anchors": home / "anchors.yaml", **changes}
    return scorer.load(PromptScoringSettings(**options), sealer)


@pytest.fixture(scope="module")
def prompts(home: Path, sealer: Sealer) -> PromptScorer:
    return room(home, sealer)


def scores(result: signal_pb2.ItemResult) -> dict[str, float]:
    assert result.status == OK
    return {label.label: label.score for label in result.labels}


# --- labels -----------------------------------------------------------------------------------------------------------


def test_an_ok_item_has_every_label_once_between_0_and_1(prompts: PromptScorer) -> None:
    for text in ("a lake at sunrise", CLINICAL, "Статуя в саду"):
        result = prompts.score_text(text)
        assert tuple(label.label for label in result.labels) == prompts.labels
        assert all(0.0 <= label.score <= 1.0 for label in result.labels)
        assert not result.reason


def test_terms_and_encoder_agree_on_a_clinical_positive(prompts: PromptScorer) -> None:
    found = scores(prompts.score_text(CLINICAL))
    assert found["minor_reference"] == found["sexual_context"] == found["minor_sexual"] == 1.0
    assert found["minor_sexual_semantic"] > 0.5
    assert found["evasion"] == 0.0


def test_an_ordinary_prompt_scores_nothing(prompts: PromptScorer) -> None:
    found = scores(prompts.score_text("a lake at sunrise"))
    assert {label for label, score in found.items() if score > 0.01} == set()


def test_the_block_grade_needs_two_concepts_whatever_the_encoder_says(prompts: PromptScorer) -> None:
    found = scores(prompts.score_text("minor minor minor"))
    assert found["minor_sexual_semantic"] == 0.0
    assert found["minor_sexual_paraphrase"] > 0.9


def test_padding_dilutes_the_whole_prompt_but_not_the_window(prompts: PromptScorer) -> None:
    found = scores(prompts.score_text(f"{'lake ' * 40}{'image ' * 4}{CLINICAL}{' image' * 4}{' lake' * 40}"))
    assert found["minor_sexual_paraphrase"] < 0.1
    assert found["minor_sexual_semantic"] > 0.5 > found["minor_sexual_paraphrase"]


def test_a_text_in_another_script_says_that_the_model_does_not_read_it(prompts: PromptScorer) -> None:
    assert scores(prompts.score_text("Статуя в саду"))["outside_model_languages"] == 1.0
    assert scores(prompts.score_text("a café"))["outside_model_languages"] == 0.2
    assert scores(prompts.score_text("1 2 3 …"))["outside_model_languages"] == 0.0


def test_the_same_prompt_gets_the_same_score_whatever_is_scored_beside_it(prompts: PromptScorer) -> None:
    texts = [CLINICAL, "a lake at sunrise", f"lake {CLINICAL} garden", "minor"] * 20
    expected = {text: prompts.score_text(text).SerializeToString(deterministic=True) for text in texts}
    wrong: list[str] = []

    def work() -> None:
        wrong.extend(t for t in texts if prompts.score_text(t).SerializeToString(deterministic=True) != expected[t])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "negative", "status", "reason"),
    [
        ("", "", SKIPPED, "EMPTY"),
        (" \n\t", "", SKIPPED, "EMPTY"),
        ("\u200b\u2060\ufeff", "", UNSCANNABLE, "NO_VISIBLE_TEXT"),
        ("\x00\x01", "", UNSCANNABLE, "NO_VISIBLE_TEXT"),
        ("lake \ud800", "", UNSCANNABLE, "NOT_UTF8"),
        ("lake", "\udfff", UNSCANNABLE, "NOT_UTF8"),
        ("lake " * 210_000, "", UNSCANNABLE, "TOO_LONG"),
        ("lake", "blurry " * 10_000, UNSCANNABLE, "TOO_LONG"),
        ("a " * 16_000, "", UNSCANNABLE, "TOO_LONG"),
        ("\ufdfa" * 10_000, "", UNSCANNABLE, "EXPANDS"),
        ("lake", "\ufdfa" * 10_000, UNSCANNABLE, "EXPANDS"),
        ("", "blurry", OK, ""),
        ("e" + "\u0301" * 10_000, "", OK, ""),
        ("lake\x00sunrise\x07", "", OK, ""),
        ("\u202eekal\u202c \u2067x\u2069", "", OK, ""),
        ("👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈", "", OK, ""),
        ("?!", "", OK, ""),
    ],
)
def test_bad_input_gets_a_status_with_a_reason(
    prompts: PromptScorer, prompt: str, negative: str, status: int, reason: str
) -> None:
    result = prompts.score_text(prompt, negative)
    assert (result.status, result.reason) == (status, reason)
    assert bool(result.labels) == (status == OK)


@settings(max_examples=150, deadline=None)
@given(prompt=st.text(max_size=400), negative=st.text(max_size=60))
def test_any_text_gets_a_status(prompts: PromptScorer, prompt: str, negative: str) -> None:
    result = prompts.score_text(prompt, negative)
    assert result.status in (OK, UNSCANNABLE, SKIPPED)
    assert (result.status == OK) == (not result.reason)
    assert all(math.isfinite(label.score) for label in result.labels)


def test_a_search_that_gave_up_is_an_error(prompts: PromptScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: object, view: object) -> None:
        raise term_set.MatchFailed

    monkeypatch.setattr(term_set.TermSet, "hits", exhausted)
    result = prompts.score_text("a lake")
    assert (result.status, result.reason) == (ERROR, "MATCH_FAILED")


# --- sealed items -----------------------------------------------------------------------------------------------------


def item(sealer: Sealer, prompt: str, negative: str | None = None) -> prompt_scoring_pb2.PromptItem:
    made = prompt_scoring_pb2.PromptItem(id=7, generation_id="gen-1", prompt=sealer.seal(prompt, "gen-1", "prompt"))
    if negative is not None:
        made.negative_prompt.CopyFrom(sealer.seal(negative, "gen-1", "negative_prompt"))
    return made


def test_a_sealed_item_scores_as_its_text(prompts: PromptScorer, sealer: Sealer) -> None:
    assert prompts.score(item(sealer, CLINICAL, "blurry")) == prompts.score_text(CLINICAL, "blurry")


def test_an_item_that_does_not_open_is_refused_and_never_clean(prompts: PromptScorer, sealer: Sealer) -> None:
    moved = item(sealer, "a lake")
    moved.generation_id = "gen-2"
    swapped = item(sealer, "a lake")
    swapped.negative_prompt.CopyFrom(swapped.prompt)
    unsealed = prompt_scoring_pb2.PromptItem(generation_id="gen-1", prompt=generation_pb2.SealedText())
    for broken in (moved, swapped, unsealed):
        with pytest.raises(Poison, match="UNSEAL_FAILED"):
            prompts.score(broken)


def test_an_oversized_ciphertext_is_not_even_opened(prompts: PromptScorer) -> None:
    sealed = generation_pb2.SealedText(key_id="1", ciphertext=b"x" * 40_000)
    result = prompts.score(prompt_scoring_pb2.PromptItem(generation_id="gen-1", prompt=sealed))
    assert (result.status, result.reason) == (UNSCANNABLE, "TOO_LONG")


def test_the_longest_allowed_prompt_is_not_refused_for_its_seal(home: Path, sealer: Sealer) -> None:
    small = room(home, sealer, max_prompt_bytes=100)
    assert small.score(item(sealer, "lake " * 10, "lake " * 10)).status == OK
    assert small.score(item(sealer, "lake " * 10, "lake " * 10 + "s")).reason == "TOO_LONG"


# --- artefacts, packs, cache ------------------------------------------------------------------------------------------


def test_artefacts_name_everything_by_digest(home: Path, prompts: PromptScorer) -> None:
    found = {(artefact.name, artefact.kind): artefact for artefact in prompts.artefacts()}
    model = found["tiny", signal_pb2.ARTEFACT_KIND_MODEL]
    assert model.sha256 == model_pack.load(home / "tiny").digest
    term_pack = signal_pb2.ARTEFACT_KIND_TERM_PACK
    for folder in term_packs.bundled():
        assert found[folder.name, term_pack].sha256 == term_packs.load(folder).digest
    assert ("anchors", term_pack) in found
    assert all(len(artefact.sha256) == 32 and artefact.version for artefact in prompts.artefacts())


def test_an_operators_pack_adds_to_the_bundled_ones(home: Path, sealer: Sealer, tmp_path: Path) -> None:
    pack = tmp_path / "extra"
    pack.mkdir()
    (pack / "coercion.yaml").write_text("concept: coercion\nterms: [zugzwang]\n", encoding="utf-8")
    (pack / "pack.yaml").write_text(
        "name: extra\nversion: '1'\nlanguage: de\nlicence: Apache-2.0\nfiles: {}\n", encoding="utf-8"
    )
    digest = term_packs.stamp(pack).digest.hex()
    extended = room(home, sealer, packs=[PackSettings(path=pack, sha256=digest)])
    assert scores(extended.score_text("a zugzwang"))["coercion"] == 1.0
    assert "extra" in {artefact.name for artefact in extended.artefacts()}
    with pytest.raises(Fatal, match="TERM_PACK_DIGEST_MISMATCH"):
        room(home, sealer, packs=[PackSettings(path=pack, sha256="0" * 64)])
    with pytest.raises(Fatal, match="NO_TERM_PACKS"):
        room(home, sealer, bundled_packs=False)


def test_the_cache_is_off_unless_asked_for_and_bounded(
    home: Path, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    embed = Encoder.embed

    def counted(self: Encoder, text: str, max_windows: int = 1) -> NDArray[np.float32]:
        encoded.append(text)
        return embed(self, text, max_windows)

    monkeypatch.setattr(Encoder, "embed", counted)
    plain, cached = room(home, sealer), room(home, sealer, cache_entries=2)
    for _ in range(2):
        plain.score_text("a lake")
    assert encoded == ["a lake"] * 2
    encoded.clear()
    assert cached.score_text("a lake") == cached.score_text("a lake") == plain.score_text("a lake")
    assert encoded == ["a lake"] * 2
    encoded.clear()
    for text in ("one", "two", "a lake"):
        cached.score_text(text)
    assert encoded == ["one", "two", "a lake"]
    assert cached.score_text("one", "two") != cached.score_text("onetwo") or encoded[-1] == "onetwo"


# --- encoder ----------------------------------------------------------------------------------------------------------


def test_long_text_is_encoded_in_windows(home: Path) -> None:
    encoder = Encoder(model_pack.load(home / "tiny"), window_tokens=16)
    vectors = encoder.embed("lake " * 16 + "minor " * 16 + "lake", max_windows=3)
    np.testing.assert_allclose(vectors, [[0, 1, 0], [1, 0, 0], [0, 1, 0]], atol=1e-6)
    with pytest.raises(TooManyTokens):
        encoder.embed("lake " * 33, max_windows=2)
    np.testing.assert_allclose(encoder.embed_start("minor " * 16 + "lake " * 99), [[1, 0, 0]], atol=1e-6)


def test_a_model_may_ask_for_a_mask_and_pool_outside(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["tokens_out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "masked",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("tokens_out", TensorProto.FLOAT, ["b", "t", 3])],
        [numpy_helper.from_array(VECTORS, "table"), numpy_helper.from_array(np.array([2], np.int64), "last")],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    output = {"dimensions": 3, "pooling": "max", "pooled_in_graph": False, "normalised": False}
    encoder = Encoder(write_pack(tmp_path / "masked", model, output=output, examples=[]))
    np.testing.assert_allclose(encoder.embed("lake minor"), [[0.5**0.5, 0.5**0.5, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        (tiny_model(("input_ids", "pixels")), {}, "inputs pixels"),
        (tiny_model(vectors=VECTORS[:, ::-1].copy()), {"examples": [{"texts": ["minor", "lake"], "cosine": 0.9,
                                                                     "tolerance": 0.01}]}, "example 1"),
        (tiny_model(vectors=VECTORS[:2]), {}, "cannot be run"),
        (None, {"output": {"dimensions": 4, "pooling": "mean", "pooled_in_graph": True, "normalised": True}}, "output"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_prove_itself_is_not_used(
    tmp_path: Path, model: onnx.ModelProto | None, changes: dict[str, Any], named: str
) -> None:
    pack = write_pack(tmp_path / "tiny", model, **changes)
    with pytest.raises(Fatal, match="BAD_MODEL") as caught:
        Encoder(pack)
    assert named in caught.value.detail


def test_anchors_that_cannot_be_used_are_named(home: Path, tmp_path: Path) -> None:
    encoder = Encoder(model_pack.load(home / "tiny"))
    with pytest.raises(Fatal, match="BAD_ANCHORS"):
        Anchors(encoder, tmp_path / "absent.yaml")
    for field, value in (("slope", -1.0), ("toward", ["one"]), ("offset", "secretword")):
        with pytest.raises(Fatal, match=f"BAD_ANCHORS: .*{field}") as caught:
            Anchors(encoder, write_anchors(tmp_path / "anchors.yaml", **{field: value}))
        assert "secretword" not in str(caught.value)


# --- stage ------------------------------------------------------------------------------------------------------------


def test_the_stage_sends_what_is_there_and_only_that(sealer: Sealer) -> None:
    generation = generation_pb2.Generation(generation_id="gen-1", modality=generation_pb2.MODALITY_IMAGE)
    assert STAGE.items(generation) == ()
    generation.negative_prompt.CopyFrom(sealer.seal("blurry", "gen-1", "negative_prompt"))
    (sent,) = STAGE.items(generation)
    assert (sent.item_id, sent.nexus) == ("prompt", generation_pb2.NEXUS_ATTEMPT)
    assert sent.message == prompt_scoring_pb2.PromptItem(
        generation_id="gen-1", negative_prompt=generation.negative_prompt
    )
    generation.modality = generation_pb2.MODALITY_DATASET
    assert STAGE.items(generation)[0].nexus == generation_pb2.NEXUS_TRAINING_DATA


def test_the_stages_examples_are_what_the_service_answers(prompts: PromptScorer, sealer: Sealer) -> None:
    for example in examples(sealer):
        statuses: dict[str, int] = {}
        for sent in STAGE.items(example.generation):
            try:
                statuses[sent.item_id] = prompts.score(sent.message).status  # type: ignore[arg-type]
            except Poison:
                statuses[sent.item_id] = ERROR
        assert statuses == example.statuses, example.name
