"""The scorer, its encoder and its stage, with a model made on the spot: a table of word vectors and their mean."""

from __future__ import annotations

import json
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
from structlog.testing import capture_logs
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal, Poison
from seawall.prompt_scoring import pack_signing, scorer, term_packs, term_set
from seawall.prompt_scoring.anchors import Anchors
from seawall.prompt_scoring.block_head import SYNTAX_FEATURES, BlockHead
from seawall.prompt_scoring.encoder import Encoder, TooManyTokens
from seawall.prompt_scoring.reload import Reloader
from seawall.prompt_scoring.scorer import PromptScorer
from seawall.prompt_scoring.settings import PackSettings, PromptScoringSettings
from seawall.prompt_scoring.stage import STAGE, examples
from seawall.prompt_scoring.windows import Window
from seawall.runtime import model_pack
from seawall.runtime.sealing import Sealer
from tests.support.stages import sent

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


def write_head(path: Path, pack: model_pack.ModelPack, **changes: Any) -> Path:
    """Sure of a window along the first axis, which is what the tiny model's risky words are about."""
    content = {
        "version": "1",
        "licence": "Apache-2.0",
        "intended_use": "Tests.",
        "languages": ["en"],
        "encoder_model_sha256": pack.card.files["model.onnx"],
        "train_set_sha256": "0" * 64,
        "train_templates": {"positive": 1, "hard_negative": 1},
        "features": 2,
        "calibration": {"slope": 1.0, "offset": 0.0},
        "bias": -6.0,
        "weights": [8.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, *([0.0] * SYNTAX_FEATURES)],
        **changes,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    write_head(folder / "head.json", write_pack(folder / "tiny"))
    write_anchors(folder / "anchors.yaml")
    return folder


@pytest.fixture(scope="module")
def sealer(home: Path) -> Sealer:
    return Sealer.load_or_create(home / "keys.json")


def room_settings(home: Path, **changes: Any) -> PromptScoringSettings:
    options: dict[str, Any] = {"model": home / "tiny", "anchors": home / "anchors.yaml", "head": home / "head.json"}
    options.update(changes)
    return PromptScoringSettings(**options)


def room(home: Path, sealer: Sealer, **changes: Any) -> PromptScorer:
    return scorer.load(room_settings(home, **changes), sealer)


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
    def exhausted(self: object, view: object, text: str) -> None:
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
    pack = operators_pack(tmp_path / "extra", "zugzwang")
    digest = term_packs.load(pack).digest.hex()
    extended = room(home, sealer, packs=[PackSettings(path=pack, sha256=digest)])
    assert scores(extended.score_text("a zugzwang"))["coercion"] == 1.0
    assert "extra" in {artefact.name for artefact in extended.artefacts()}
    with pytest.raises(Fatal, match="TERM_PACK_DIGEST_MISMATCH"):
        room(home, sealer, packs=[PackSettings(path=pack, sha256="0" * 64)])
    with pytest.raises(Fatal, match="NO_TERM_PACKS"):
        room(home, sealer, bundled_packs=False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that were really scored."""
    prompts: list[str] = []
    measure = PromptScorer._measure

    def counted(self: PromptScorer, serving: scorer.Artefacts, prompt: str, *rest: Any) -> signal_pb2.ItemResult:
        prompts.append(prompt)
        return measure(self, serving, prompt, *rest)

    monkeypatch.setattr(PromptScorer, "_measure", counted)
    return prompts


def test_a_prompt_that_comes_again_is_scored_once_within_bounds(
    home: Path, sealer: Sealer, measured: list[str]
) -> None:
    plain, cached = room(home, sealer, cache_entries=0), room(home, sealer, cache_entries=2)
    for _ in range(2):
        plain.score_text("a lake")
    assert measured == ["a lake"] * 2
    measured.clear()
    assert cached.score_text("a lake") == cached.score_text("a lake") == plain.score_text("a lake")
    assert measured == ["a lake"] * 2
    measured.clear()
    for text in ("one", "two", "a lake"):
        cached.score_text(text)
    assert measured == ["one", "two", "a lake"]


def test_texts_that_differ_only_in_where_they_stand_are_different_prompts(
    home: Path, sealer: Sealer, measured: list[str]
) -> None:
    cached = room(home, sealer)
    cached.score_text("lake", "garden")
    cached.score_text("lakegarden")
    cached.score_text("lake", "", ["garden"])
    cached.score_text("lake", "", ["", "garden"])
    assert len(measured) == 4


def test_the_same_prompt_many_times_at_once_is_scored_once(
    home: Path, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = room(home, sealer)
    began, finish = threading.Event(), threading.Event()
    calls: list[str] = []
    measure = PromptScorer._measure

    def slow(self: PromptScorer, *rest: Any) -> signal_pb2.ItemResult:
        calls.append("")
        began.set()
        assert finish.wait(10)
        return measure(self, *rest)

    monkeypatch.setattr(PromptScorer, "_measure", slow)
    results: list[signal_pb2.ItemResult] = []
    threads = [threading.Thread(target=lambda: results.append(cached.score_text(CLINICAL))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert began.wait(10)
    finish.set()
    for thread in threads:
        thread.join(10)
    assert len(calls) == 1 and len(results) == 4
    assert all(result == results[0] for result in results)


def test_an_error_is_not_remembered(home: Path, sealer: Sealer, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = room(home, sealer)

    def exhausted(self: object, view: object, text: str) -> None:
        raise term_set.MatchFailed

    with monkeypatch.context() as patch:
        patch.setattr(term_set.TermSet, "hits", exhausted)
        assert cached.score_text("a lake").status == ERROR
    assert cached.score_text("a lake").status == OK


def test_other_packs_answer_anew(home: Path, sealer: Sealer, measured: list[str], tmp_path: Path) -> None:
    cached = room(home, sealer)
    assert scores(cached.score_text("a zugzwang"))["coercion"] == 0.0
    pack = operators_pack(tmp_path / "extra", "zugzwang")
    pinned = [PackSettings(path=pack, sha256=term_packs.load(pack).digest.hex())]
    cached.swap(scorer.load_artefacts(room_settings(home, packs=pinned)))
    assert scores(cached.score_text("a zugzwang"))["coercion"] == 1.0
    assert "extra" in {artefact.name for artefact in cached.artefacts()}
    assert len(measured) == 2


# --- hot swap ---------------------------------------------------------------------------------------------------------


def operators_pack(folder: Path, word: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "coercion.yaml").write_text(f"concept: coercion\nterms: [{word}]\n", encoding="utf-8")
    card = f"name: {folder.name}\nversion: '1'\nlanguage: de\nlicence: Apache-2.0\nfiles: {{}}\n"
    (folder / "pack.yaml").write_text(card, encoding="utf-8")
    term_packs.stamp(folder)
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "private.json", tmp_path / "public.json"
    pack_signing.make_keys(private, public)
    return private, public


@pytest.fixture
def watched(
    home: Path, sealer: Sealer, tmp_path: Path, keys: tuple[Path, Path]
) -> tuple[PromptScorer, Reloader[scorer.Artefacts]]:
    """A scorer with a signed pack, and what keeps it up to date."""
    pack = operators_pack(tmp_path / "extra", "zugzwang")
    pack_signing.sign(pack, term_packs.load(pack), keys[0])
    settings = room_settings(home, packs=[PackSettings(path=pack)], pack_keys=keys[1])
    serving = scorer.load(settings, sealer)
    return serving, Reloader(scorer.paths(settings), lambda: scorer.load_artefacts(settings), serving.swap)


def test_a_pack_that_changed_is_taken_up_once_it_stands_still(
    watched: tuple[PromptScorer, Reloader[scorer.Artefacts]], tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    serving, reloader = watched
    before = serving.artefacts()
    assert not reloader.look()
    pack = operators_pack(tmp_path / "extra", "stalemate")
    assert not reloader.look()
    pack_signing.sign(pack, term_packs.load(pack), keys[0])
    assert not reloader.look()
    assert scores(serving.score_text("a zugzwang"))["coercion"] == 1.0
    assert reloader.look()
    assert scores(serving.score_text("a stalemate"))["coercion"] == 1.0
    assert scores(serving.score_text("a zugzwang"))["coercion"] == 0.0
    assert serving.artefacts() != before
    assert not reloader.look()


@pytest.mark.parametrize("fault", ["unsigned", "altered", "pattern", "absent", "unexpected"])
def test_what_does_not_load_is_refused_and_the_old_one_goes_on(
    watched: tuple[PromptScorer, Reloader[scorer.Artefacts]],
    tmp_path: Path,
    keys: tuple[Path, Path],
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serving, reloader = watched
    pack = tmp_path / "extra"
    if fault == "absent":
        (pack / "coercion.yaml").unlink()
    elif fault == "altered":
        (pack / "coercion.yaml").write_text("concept: coercion\nterms: [secretword]\n", encoding="utf-8")
    else:
        operators_pack(pack, "'secretword('" if fault == "pattern" else "secretword")
        if fault != "unsigned":
            pack_signing.sign(pack, term_packs.load(pack), keys[0])
    if fault == "unexpected":

        def broken(*_: object) -> None:
            raise RuntimeError("secretword")

        monkeypatch.setattr(term_set.TermSet, "__init__", broken)
    with capture_logs() as told:
        assert not reloader.look()
        assert not reloader.look()
        assert not reloader.look(), "tried again though nothing changed"
    assert scores(serving.score_text("a zugzwang"))["coercion"] == 1.0
    assert [(line["log_level"], "refused" in line["event"]) for line in told] == [("error", True)]
    assert "secretword" not in str(told)


def test_no_request_is_dropped_while_packs_are_swapped(
    watched: tuple[PromptScorer, Reloader[scorer.Artefacts]], tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """Three threads score without a pause; every answer is complete, and is the old packs' or the new ones'."""
    serving, reloader = watched
    stop = threading.Event()
    answers: list[list[float]] = [[], [], []]
    failures: list[BaseException] = []

    def work(mine: list[float]) -> None:
        try:
            while not stop.is_set():
                mine.append(scores(serving.score_text(f"zugzwang or stalemate {len(mine)}"))["coercion"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in answers]
    for thread in threads:
        thread.start()
    swaps = 0
    for word in ("stalemate", "zugzwang", "stalemate"):
        pack = operators_pack(tmp_path / "extra", word)
        pack_signing.sign(pack, term_packs.load(pack), keys[0])
        swaps += reloader.look() + reloader.look()
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert swaps == 3
    # Either pack finds its word in every prompt: an answer of none, or of half a set, would be 0.
    assert all(mine and set(mine) == {1.0} for mine in answers)
    assert scores(serving.score_text("a stalemate"))["coercion"] == 1.0
    assert scores(serving.score_text("a zugzwang"))["coercion"] == 0.0


def test_an_operators_pack_must_be_pinned_or_signed(home: Path, sealer: Sealer, tmp_path: Path) -> None:
    pack = operators_pack(tmp_path / "extra", "zugzwang")
    with pytest.raises(Fatal, match="TERM_PACK_UNVERIFIED"):
        room(home, sealer, packs=[PackSettings(path=pack)])
    for name in ("mine", "theirs"):
        pack_signing.make_keys(tmp_path / f"{name}.json", tmp_path / f"{name}.pub.json")
    keys = tmp_path / "mine.pub.json"
    with pytest.raises(Fatal, match="TERM_PACK_BAD_SIGNATURE"):
        room(home, sealer, packs=[PackSettings(path=pack)], pack_keys=keys)
    pack_signing.sign(pack, term_packs.load(pack), tmp_path / "theirs.json")
    with pytest.raises(Fatal, match="TERM_PACK_BAD_SIGNATURE"):
        room(home, sealer, packs=[PackSettings(path=pack)], pack_keys=keys)
    pack_signing.sign(pack, term_packs.load(pack), tmp_path / "mine.json")
    assert room(home, sealer, packs=[PackSettings(path=pack)], pack_keys=keys).score_text("a lake").status == OK
    with pytest.raises(Fatal, match="BAD_PACK_KEYS"):
        room(home, sealer, packs=[PackSettings(path=pack)], pack_keys=pack / "pack.yaml")
    with pytest.raises(Fatal, match="KEYS_EXIST"):
        pack_signing.make_keys(tmp_path / "mine.json", tmp_path / "other.json")


# --- turns and places -------------------------------------------------------------------------------------------------


def test_earlier_turns_are_opened_and_read_with_the_prompt(prompts: PromptScorer, sealer: Sealer) -> None:
    made = prompt_scoring_pb2.PromptItem(id=1, generation_id="gen-1", prompt=sealer.seal("now nude", "gen-1", "prompt"))
    for number, turn in enumerate(("a picture of a garden", "a 12 year old child")):
        made.turns.append(sealer.seal(turn, "gen-1", f"turns/{number}"))
    result = prompts.score(made)
    assert scores(result)["minor_sexual"] == 0.7
    assert {(span.label, span.field) for span in result.spans} == {
        ("minor_reference", "turns/1"),
        ("sexual_context", "prompt"),
    }
    moved = prompt_scoring_pb2.PromptItem(generation_id="gen-1", prompt=made.prompt, turns=reversed(made.turns))
    with pytest.raises(Poison, match="UNSEAL_FAILED"):
        prompts.score(moved)


def test_only_the_last_turns_are_read(home: Path, sealer: Sealer) -> None:
    two = room(home, sealer, turns=2)
    made = prompt_scoring_pb2.PromptItem(id=1, generation_id="gen-1", prompt=sealer.seal("now nude", "gen-1", "prompt"))
    for number, turn in enumerate(("a 12 year old child", "a lake", "a garden")):
        made.turns.append(sealer.seal(turn, "gen-1", f"turns/{number}"))
    assert scores(two.score(made))["minor_sexual"] == 0.0
    del made.turns[2]
    assert scores(two.score(made))["minor_sexual"] == 0.7


def test_spans_lead_to_the_evidence_in_the_text_as_it_came(prompts: PromptScorer) -> None:
    text = "draw: ｅｘｐｌｉｃｉｔ image of a mi\u200bnor, please"
    spans = {span.label: text[span.start : span.end] for span in prompts.score_text(text).spans}
    assert spans == {"sexual_context": "ｅｘｐｌｉｃｉｔ image", "minor_reference": "mi\u200bnor"}
    assert not prompts.score_text("a lake at sunrise").spans


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


def test_a_head_that_does_not_belong_is_refused(home: Path, tmp_path: Path) -> None:
    pack = model_pack.load(home / "tiny")
    encoder = Encoder(pack)
    path = tmp_path / "head.json"
    with pytest.raises(Fatal, match="BAD_BLOCK_HEAD"):
        BlockHead(encoder, pack, tmp_path / "absent.json")
    with pytest.raises(Fatal, match="WRONG_BLOCK_HEAD"):
        BlockHead(encoder, pack)
    for field, value in (("bias", "secretword"), ("weights", [1.0]), ("languages", []), ("features", 1)):
        with pytest.raises(Fatal, match=f"BAD_BLOCK_HEAD: .*{field}") as caught:
            BlockHead(encoder, pack, write_head(path, pack, **{field: value}))
        assert "secretword" not in str(caught.value)


def test_a_bare_request_is_as_sure_as_the_head_says_whatever_its_words_are(home: Path, tmp_path: Path) -> None:
    pack = model_pack.load(home / "tiny")
    window = Window("a b", "a b", "en", 0, "sexual_context", minor_last=True, apart=False, frame="a b")
    counted = BlockHead(Encoder(pack), pack, write_head(tmp_path / "head.json", pack, bias=-60.0, bare=0.9))
    assert counted.score(window) < 0.01
    assert counted.score(window._replace(bare=True)) == 0.9
    sure = BlockHead(Encoder(pack), pack, write_head(tmp_path / "head.json", pack, bias=60.0, bare=0.9))
    assert sure.score(window._replace(bare=True)) > 0.99
    plain = BlockHead(Encoder(pack), pack, write_head(tmp_path / "head.json", pack, bias=-60.0))
    assert plain.score(window._replace(bare=True)) < 0.01


# --- stage ------------------------------------------------------------------------------------------------------------


def test_the_stage_sends_what_is_there_and_only_that(sealer: Sealer) -> None:
    generation = generation_pb2.Generation(generation_id="gen-1", modality=generation_pb2.MODALITY_IMAGE)
    assert STAGE.items(generation) == ()
    generation.negative_prompt.CopyFrom(sealer.seal("blurry", "gen-1", "negative_prompt"))
    assert STAGE.items(generation) == (("prompt", generation_pb2.NEXUS_ATTEMPT),)
    assert sent(STAGE, generation, 3) == [
        prompt_scoring_pb2.PromptItem(id=3, generation_id="gen-1", negative_prompt=generation.negative_prompt)
    ]
    generation.modality = generation_pb2.MODALITY_DATASET
    assert STAGE.items(generation)[0].nexus == generation_pb2.NEXUS_TRAINING_DATA


def test_the_stages_examples_are_what_the_service_answers(prompts: PromptScorer, sealer: Sealer) -> None:
    for example in examples(sealer):
        statuses: dict[str, int] = {}
        messages = sent(STAGE, example.generation)
        for item, message in zip(STAGE.items(example.generation), messages, strict=True):
            try:
                statuses[item.item_id] = prompts.score(message).status
            except Poison:
                statuses[item.item_id] = ERROR
        assert statuses == example.statuses, example.name
