"""Several items through the models at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from seawall.api.classification.v1 import classification_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification import lineup as lineups
from seawall.classification import pictures
from seawall.classification.head import Head
from seawall.classification.lineup import Lineup
from seawall.classification.model import Model
from seawall.classification.pictures import Picture, prepare
from seawall.classification.rollout import Rollout, Trial
from seawall.classification.scorer import Scorer, decoded_by
from seawall.classification.trials import Trials
from seawall.core.errors import Poison
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import DEFAULT_LIMITS, Frame
from seawall.runtime.decoding.decoder import InProcessDecoder
from seawall.runtime.settings import ContentSettings
from seawall.runtime.workers import Begun, Held
from tests.support import model_packs
from tests.support.model_packs import animated, encoded, plain, shifted, write_version

OK, UNSCANNABLE = signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_UNSCANNABLE


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inputs of every inference, in order."""
    sizes: list[int] = []
    run = Model.run

    def counted(self: Model, batch: Any) -> list[list[float]]:
        sizes.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(Model, "run", counted)
    return sizes


class Room:
    """A scorer over pictures in a folder."""

    def __init__(self, root: Path, line: Lineup, **options: Any) -> None:
        self.store = ContentStore(ContentSettings(allowed_prefixes=[(root / "content").as_uri() + "/"]))
        self.scorer = Scorer(line, self.store, decoded_by(InProcessDecoder(DEFAULT_LIMITS), 8), **options)

    def item(self, data: bytes, generation_id: str = "g") -> classification_pb2.ClassifyItem:
        return classification_pb2.ClassifyItem(content=self.store.put(data, ""), generation_id=generation_id)

    def decoded(self, data: bytes, generation_id: str = "g") -> signal_pb2.ItemResult | Held:
        """As far as an item comes by itself."""
        begun = self.scorer.begin(self.item(data, generation_id))
        if isinstance(begun, Begun):
            found: signal_pb2.ItemResult | Held = begun.finish()
            return found
        return begun

    def held(self, data: bytes, generation_id: str = "g") -> Held:
        held = self.decoded(data, generation_id)
        assert isinstance(held, Held)
        return held


def together(held: Sequence[Held]) -> list[signal_pb2.ItemResult]:
    """As a worker does it."""
    held[0].together([one.work for one in held])
    return [one.finish(0) for one in held]


def red(value: int) -> bytes:
    return encoded(plain((value, 0, 0)))


def load(*active: Path, **trials: tuple[Trial, ...]) -> Lineup:
    return lineups.load(Rollout(active=active, **trials))


def room_of(root: Path, model: onnx.ModelProto | None = None, **options: Any) -> Room:
    model_packs.write_pack(root / "red", model)
    return Room(root, load(root / "red"), **options)


def scores(results: Sequence[signal_pb2.ItemResult]) -> list[float]:
    assert {result.status for result in results} == {OK}
    return [result.labels[0].score for result in results]


def test_pictures_share_an_inference_and_each_has_its_own_score(tmp_path: Path, runs: list[int]) -> None:
    room = room_of(tmp_path)
    runs.clear()
    values = [200, 10, 150, 60]
    alone = [room.scorer.score(room.item(red(value))).labels[0].score for value in values]
    assert runs == [1, 1, 1, 1]
    # Sums in another order.
    assert scores(together([room.held(red(value)) for value in values])) == pytest.approx(alone, abs=1e-4)
    assert runs == [1, 1, 1, 1, 4]
    assert alone == pytest.approx([value / 255 for value in values], abs=0.01)


def test_frames_of_several_items_share_inferences(tmp_path: Path, runs: list[int]) -> None:
    room = room_of(tmp_path)
    runs.clear()
    colours = [(40 * n, 0, 0) for n in range(5)]
    results = together([room.held(red(20)), room.held(animated(colours)), room.held(red(30))])
    assert scores(results) == pytest.approx([20 / 255, 160 / 255, 30 / 255], abs=0.01)
    assert results[1].labels[0].frame == 4
    assert runs == [4, 3]


def test_one_that_the_model_fails_on_errs_alone(tmp_path: Path, runs: list[int]) -> None:
    """F18."""
    room = room_of(tmp_path, model_packs.nan_above(0.9))
    runs.clear()
    held = [room.held(red(value)) for value in (60, 250, 90)]
    held[0].together([one.work for one in held])
    with pytest.raises(Poison, match="BAD_MODEL_OUTPUT"):
        held[1].finish(0)
    assert scores([held[0].finish(0), held[2].finish(0)]) == pytest.approx([60 / 255, 90 / 255], abs=0.01)
    assert runs == [3, 1, 1, 1]


def test_whatever_goes_wrong_with_all_is_tried_with_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = room_of(tmp_path)
    run = Model.run

    def short_of_memory(self: Model, batch: Any) -> list[list[float]]:
        if len(batch) > 1:
            raise MemoryError
        return run(self, batch)

    monkeypatch.setattr(Model, "run", short_of_memory)
    assert scores(together([room.held(red(value)) for value in (51, 102)])) == pytest.approx([0.2, 0.4], abs=0.01)


def test_what_cannot_be_decoded_holds_nobody(tmp_path: Path, runs: list[int]) -> None:
    room = room_of(tmp_path)
    runs.clear()
    truncated = room.decoded(red(10)[:-20])
    assert isinstance(truncated, signal_pb2.ItemResult) and truncated.status == UNSCANNABLE
    assert scores(together([room.held(red(51)), room.held(red(102))])) == pytest.approx([0.2, 0.4], abs=0.01)
    assert runs == [2]


@pytest.mark.parametrize("kind", ["a fixed batch", "dynamic quantisation"])
def test_a_model_whose_inputs_may_not_share_a_run_gets_them_one_by_one(
    tmp_path: Path, runs: list[int], kind: str
) -> None:
    model = model_packs.red_model()
    if kind == "a fixed batch":
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    else:
        model.graph.output[0].name = "before"
        del model.graph.node[-1].output[:]
        model.graph.node[-1].output.append("before")
        outputs = ["eighth", "scale", "zero"]
        model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["before"], outputs))
        model.graph.node.append(helper.make_node("DequantizeLinear", outputs, ["scores"]))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ("n", 2)))
    room = room_of(tmp_path, model)
    runs.clear()
    assert scores(together([room.held(red(value)) for value in (51, 102, 153)])) == pytest.approx(
        [0.2, 0.4, 0.6], abs=0.01
    )
    assert runs == [1, 1, 1]


def test_pictures_for_different_models_are_each_scored_by_their_own(tmp_path: Path, runs: list[int]) -> None:
    for version, offset in (("1", 0.0), ("2", 1.0)):
        write_version(tmp_path / version, version, offset=offset)
    model_packs.write_pack(
        tmp_path / "other",
        name="other",
        labels=[{"name": "other", "index": 0, "threshold": 0.5}],
        examples=[{"file": "examples/plain.png", "scores": {"other": 0.2}, "tolerance": 0.01}],
    )
    first = load(tmp_path / "1", tmp_path / "other")
    room = Room(tmp_path, first)
    held = [room.held(red(100)), room.held(red(120))]
    # Swapped while two are held: they end with the models they began with.
    room.scorer.swap(lineups.load(Rollout(active=(tmp_path / "2", tmp_path / "other")), previous=first))
    held.append(room.held(red(140)))
    runs.clear()
    results = together(held)
    assert [result.labels[0].model for result in results] == ["red@1", "red@1", "red@2"]
    expected = [100 / 255, 120 / 255, shifted(140 / 255, 1)]
    assert scores(results) == pytest.approx(expected, abs=0.01)
    assert [result.labels[1].score for result in results] == pytest.approx(
        [1 - n / 255 for n in (100, 120, 140)], abs=0.01
    )
    # What they have in common looks at all of them.
    assert sorted(runs) == [1, 2, 3]


def test_the_same_picture_held_twice_is_scored_once(tmp_path: Path, runs: list[int]) -> None:
    room = room_of(tmp_path, cache_size=10)
    runs.clear()
    held = [room.held(red(51), "one"), room.held(red(102)), room.held(red(51), "another")]
    results = together(held)
    assert scores(results) == pytest.approx([0.2, 0.4, 0.2], abs=0.01)
    assert runs == [2]
    assert results[0] == results[2]


def test_the_same_picture_that_fails_twice_errs_twice(tmp_path: Path) -> None:
    room = room_of(tmp_path, model_packs.nan_above(0.9), cache_size=10)
    held = [room.held(red(250)), room.held(red(250)), room.held(red(51))]
    held[0].together([one.work for one in held])
    for one in held[:2]:
        with pytest.raises(Poison, match="BAD_MODEL_OUTPUT"):
            one.finish(0)
    assert scores([held[2].finish(0)]) == pytest.approx([0.2], abs=0.01)


def test_what_another_thread_has_scored_meanwhile_is_not_scored_again(tmp_path: Path, runs: list[int]) -> None:
    room = room_of(tmp_path, cache_size=10)
    held = [room.held(red(51)), room.held(red(102))]
    room.scorer.score(room.item(red(51)))
    runs.clear()
    assert scores(together(held)) == pytest.approx([0.2, 0.4], abs=0.01)
    assert runs == [1]
    assert isinstance(room.decoded(red(102)), signal_pb2.ItemResult)


def test_without_a_cache_nothing_is_given_twice(tmp_path: Path, runs: list[int]) -> None:
    room = room_of(tmp_path)
    runs.clear()
    assert scores(together([room.held(red(51)), room.held(red(51))])) == pytest.approx([0.2, 0.2], abs=0.01)
    assert runs == [2]


def test_models_on_trial_see_every_frame_of_the_item_alone(tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_version(tmp_path / version, version, offset=float(version) - 1)
    trials = Trials(1, 20.0)
    line = load(tmp_path / "1", shadow=(Trial(pack=tmp_path / "2", percent=100),))
    room = Room(tmp_path, line, trials=trials)
    results = together([room.held(animated([(0, 0, 0), (204, 0, 0)])), room.held(red(51))])
    said = [result.shadows[0].labels[0] for result in results]
    assert [one.score for one in said] == pytest.approx([shifted(0.8, 1), shifted(0.2, 1)], abs=0.01)
    assert [one.frame for one in said] == [1, 0]
    trials.close()


def test_a_prepared_frame_does_not_change_with_the_decoders_memory(tmp_path: Path) -> None:
    model_packs.write_pack(tmp_path / "red")
    plan = load(tmp_path / "red").plan("g")
    for side in (model_packs.SIDE, 48):
        memory = plain((51, 0, 0), side)
        picture = Picture(plan, "key", [prepare(Frame(0, "white", memory), plan)])
        memory[:] = 255
        pictures.score([picture])
        result = signal_pb2.ItemResult()
        picture.add_to(result.labels)
        assert result.labels[0].score == pytest.approx(0.2, abs=0.01)


def test_models_with_the_same_input_share_its_preparation(tmp_path: Path) -> None:
    write_version(tmp_path / "1", "1")
    model_packs.write_pack(
        tmp_path / "other",
        name="other",
        labels=[{"name": "other", "index": 0, "threshold": 0.5}],
        examples=[{"file": "examples/plain.png", "scores": {"other": 0.2}, "tolerance": 0.01}],
    )
    plan = load(tmp_path / "1", tmp_path / "other").plan("g")
    assert len(plan.deciding) == 2
    assert list(prepare(Frame(0, "white", plain((1, 2, 3))), plan).pixels) == [plan.deciding[0].preprocessor]


def test_scores_are_the_same_alone_and_among_others(tmp_path: Path) -> None:
    head = Head(model_packs.write_pack(tmp_path / "red"))
    chance = np.random.default_rng(1)
    some = [chance.integers(0, 256, (model_packs.SIDE, model_packs.SIDE, 3), np.uint8) for _ in range(6)]
    alone = [head.score(one)["red"] for one in some]
    assert [found["red"] for found in head.scores(some)] == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == len(alone)
