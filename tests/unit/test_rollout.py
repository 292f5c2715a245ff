from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from seawall.api.classification.v1 import classification_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification import lineup as lineups
from seawall.classification import rollout as rollouts
from seawall.classification.head import Head
from seawall.classification.lineup import Lineup
from seawall.classification.pictures import PreparedFrame
from seawall.classification.reload import Reloader
from seawall.classification.rollout import Rollout, Trial, falls_in
from seawall.classification.scorer import Scorer, decoded_by
from seawall.classification.trials import INTERNAL, SHED, TIMEOUT, Trials
from seawall.core.errors import Fatal
from seawall.core.policy import build_evidence
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import DEFAULT_LIMITS, InProcessDecoder
from seawall.runtime.settings import ContentSettings
from tests.support import model_packs
from tests.support.model_packs import animated, encoded, plain, shifted, write_version

WAIT = 20.0
IDS = [f"generation-{number}" for number in range(4_000)]


# ---- the file --------------------------------------------------------------------------------------------------------


def write_rollout(path: Path, **document: Any) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text("active: [packs/a, /opt/b]\nshadow:\n  - {pack: packs/c}\ncanary:\n  - {pack: c, percent: 2.5}\n")
    found = rollouts.read(path)
    assert found.active == (tmp_path / "packs/a", Path("/opt/b"))
    assert found.shadow == (Trial(pack=tmp_path / "packs/c", percent=100),)
    assert found.canary == (Trial(pack=tmp_path / "c", percent=2.5),)
    assert found.packs == (tmp_path / "packs/a", Path("/opt/b"), tmp_path / "c", tmp_path / "packs/c")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("active: []\n", "line 1: active"),
        ("shadow: []\n", "active: missing: add it"),
        ("active: [a]\nshadows: []\n", "line 2: shadows: unknown key"),
        ("active: [a]\ncanary:\n  - pack: b\n    percent: 101\n", "line 4: canary.0.percent"),
        ("active: [a]\ncanary:\n  - pack: b\n    percent: .nan\n", "line 4: canary.0.percent"),
        ("active: [a]\nactive: [b]\n", "line 2: a key stands twice"),
        ("- a\n", "line 1: must be a mapping"),
        ("active: [a\n", "rollout.yaml line"),
        ("#" * 70_000, "larger than"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(text)
    with pytest.raises(Fatal, match="BAD_ROLLOUT") as caught:
        rollouts.read(path)
    assert says in caught.value.detail


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="cannot be read"):
        rollouts.read(tmp_path / "absent.yaml")


# ---- shares ----------------------------------------------------------------------------------------------------------


def test_a_share_is_of_the_ids_digest_and_so_the_same_everywhere() -> None:
    # Pinned: another function would move generations between versions in the middle of a rollout.
    chosen = [name for name in IDS[:60] if falls_in(10, "explicit@2", name)]
    assert chosen == ["generation-2", "generation-9", "generation-21"]


def test_a_share_is_as_large_as_it_says_and_grows_without_losing_anyone() -> None:
    shares = [{name for name in IDS if falls_in(percent, "m@2", name)} for percent in (0, 5, 25, 100)]
    assert [len(share) for share in shares] == pytest.approx([0, 200, 1_000, 4_000], abs=60)
    assert shares[0] <= shares[1] <= shares[2] <= shares[3]
    assert not shares[0] and len(shares[3]) == len(IDS)


def test_two_models_shares_are_independent() -> None:
    both = sum(falls_in(50, "m@2", name) and falls_in(50, "n@2", name) for name in IDS)
    assert both == pytest.approx(1_000, abs=100)


# ---- lineups ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    """Versions 1, 2 and 3 of one classifier, and another one with another label."""
    for version in ("1", "2", "3"):
        write_version(tmp_path / f"red-{version}", version, offset=int(version) - 1.0)
    blue = model_packs.red_card()["input"] | {"colour": "BGR"}
    examples = [{"file": "examples/plain.png", "scores": {"blue": 30 / 255}, "tolerance": 0.01}]
    labels = [{"name": "blue", "index": 1, "threshold": 0.5}]
    model_packs.write_pack(tmp_path / "blue", name="blue", input=blue, labels=labels, examples=examples)
    return tmp_path


def lineup(packs: Path, active: Sequence[str], **trials: Sequence[tuple[str, float]]) -> Lineup:
    rollout = Rollout(
        active=tuple(packs / name for name in active),
        **{kind: tuple(Trial(pack=packs / name, percent=share) for name, share in of) for kind, of in trials.items()},
    )
    return lineups.load(rollout)


def names(heads: Sequence[Head]) -> list[str]:
    return [head.model_name for head in heads]


def test_without_trials_every_generation_meets_the_active_packs(packs: Path) -> None:
    line = lineup(packs, ["red-1", "blue"])
    plans = {line.plan(name) for name in IDS[:50]}
    (plan,) = plans
    assert names(plan.deciding) == ["red@1", "blue@1"]
    assert not plan.shadows


def test_a_canary_takes_the_place_of_the_pack_with_its_labels_for_its_share(packs: Path) -> None:
    line = lineup(packs, ["red-1", "blue"], canary=[("red-2", 30)])
    for name in IDS[:300]:
        wanted = "red@2" if falls_in(30, "red@2", name) else "red@1"
        assert names(line.plan(name).deciding) == [wanted, "blue@1"]
        assert line.plan(name) == line.plan(name)
    assert len({line.plan(name).digest for name in IDS[:300]}) == 2
    assert [artefact.version for artefact in line.artefacts] == ["1", "1", "2"]


def test_a_shadow_runs_beside_for_its_share_and_not_where_it_decides(packs: Path) -> None:
    line = lineup(packs, ["red-1"], canary=[("red-2", 50)], shadow=[("red-2", 100), ("red-1", 100), ("red-3", 10)])
    for name in IDS[:300]:
        plan = line.plan(name)
        (decides,) = names(plan.deciding)
        other = "red@2" if decides == "red@1" else "red@1"
        assert names(plan.shadows) == [other, *(["red@3"] if falls_in(10, "red@3", name) else [])]


def test_a_lineup_that_cannot_be_told_apart_is_refused(packs: Path) -> None:
    with pytest.raises(Fatal, match=r"DUPLICATE_LABEL.*red"):
        lineup(packs, ["red-1", "red-2"])
    with pytest.raises(Fatal, match=r"CANARY_REPLACES_NOTHING.*red@2"):
        lineup(packs, ["blue"], canary=[("red-2", 5)])
    with pytest.raises(Fatal, match="CANARY_REPLACES_NOTHING"):
        lineup(packs, ["red-1"], canary=[("red-1", 5)])
    with pytest.raises(Fatal, match="TWO_CANARIES"):
        lineup(packs, ["red-1"], canary=[("red-2", 5), ("red-3", 5)])
    write_version(packs / "red-other", "1", offset=0.5)
    with pytest.raises(Fatal, match=r"AMBIGUOUS_MODEL.*red@1"):
        lineup(packs, ["red-1"], shadow=[("red-other", 5)])


def test_a_pack_on_trial_must_prove_itself_too(packs: Path) -> None:
    write_version(packs / "red-2", "2", offset=1.0, examples=model_packs.red_card()["examples"])
    with pytest.raises(Fatal, match="MODEL_NOT_REPRODUCED"):
        lineup(packs, ["red-1"], shadow=[("red-2", 100)])


def test_unchanged_packs_are_taken_over_and_not_loaded_again(packs: Path) -> None:
    before = lineup(packs, ["red-1", "blue"])
    rollout = Rollout(active=(packs / "red-2", packs / "blue"))
    after = lineups.load(rollout, previous=before)
    assert after.heads[packs / "blue"] is before.heads[packs / "blue"]
    assert names(after.plan("g").deciding) == ["red@2", "blue@1"]


# ---- scores on trial -------------------------------------------------------------------------------------------------


class Room:
    """A scorer over pictures in a folder."""

    def __init__(self, root: Path, line: Lineup, trials: Trials, **options: Any) -> None:
        settings = ContentSettings(allowed_prefixes=[(root / "content").as_uri() + "/"])
        self.store = ContentStore(settings)
        self.scorer = Scorer(
            line, self.store, decoded_by(InProcessDecoder(DEFAULT_LIMITS), 8), trials=trials, **options
        )

    def score(self, colour: tuple[int, int, int], generation_id: str = "g") -> signal_pb2.ItemResult:
        content = self.store.put(encoded(plain(colour)), "image/png")
        return self.scorer.score(classification_pb2.ClassifyItem(content=content, generation_id=generation_id))


def test_shadow_scores_are_recorded_and_no_rule_sees_them(packs: Path) -> None:
    room = Room(packs, lineup(packs, ["red-1"], shadow=[("red-3", 100)]), Trials(2, WAIT))
    result = room.score((128, 0, 0))
    (label,) = result.labels
    assert (label.label, label.model) == ("red", "red@1")
    assert label.score == pytest.approx(128 / 255, abs=0.01)
    (shadow,) = result.shadows
    assert (shadow.model, shadow.reason) == ("red@3", "")
    assert shadow.labels[0].score == pytest.approx(shifted(128 / 255, 2), abs=0.01)

    result.item_id = "output/0"
    signal = signal_pb2.Signal(stage="classification", items=[result])
    evidence = build_evidence([signal], (), ["classification.red"])
    assert evidence.score["classification.red"] == label.score
    assert dict(evidence.items[0].score) == {"red": label.score}


def test_a_canary_decides_for_its_share_alone(packs: Path) -> None:
    room = Room(packs, lineup(packs, ["red-1"], canary=[("red-3", 40)]), Trials(2, WAIT), cache_size=100)
    for name in IDS[:40]:
        (label,) = room.score((128, 0, 0), name).labels
        canary = falls_in(40, "red@3", name)
        assert label.model == ("red@3" if canary else "red@1")
        assert label.score == pytest.approx(shifted(128 / 255, 2 if canary else 0), abs=0.01)


def test_a_model_on_trial_that_fails_says_so_and_the_item_is_scored(packs: Path) -> None:
    model_packs.write_pack(packs / "fails", model_packs.nan_above(0.9), version="9")
    room = Room(packs, lineup(packs, ["red-1"], shadow=[("fails", 100), ("red-3", 100)]), Trials(2, WAIT))
    result = room.score((250, 0, 0))
    assert result.status == signal_pb2.ITEM_STATUS_OK
    assert [(shadow.model, shadow.reason) for shadow in result.shadows] == [
        ("red@9", "BAD_MODEL_OUTPUT"),
        ("red@3", ""),
    ]
    assert not result.shadows[0].labels


class Hangs:
    """A head that holds its thread until it is let go."""

    model_name = "hangs@1"

    def __init__(self) -> None:
        self.go = threading.Event()

    preprocessor = None

    def scores(self, pixels: object) -> list[dict[str, float]]:
        assert self.go.wait(WAIT)
        raise ZeroDivisionError


def test_a_model_on_trial_that_hangs_holds_an_item_for_a_bounded_time_and_then_nobody() -> None:
    hangs: Any = Hangs()
    frames: Any = [PreparedFrame(0, {hangs.preprocessor: np.zeros((2, 2, 3), np.uint8)})]
    trials = Trials(1, patience=0.01)
    assert [shadow.reason for shadow in trials([hangs], frames)] == [TIMEOUT]
    assert [shadow.reason for shadow in trials([hangs], frames)] == [SHED]
    hangs.go.set()
    patient = Trials(1, patience=WAIT)
    assert [shadow.reason for shadow in patient([hangs], frames)] == [INTERNAL]
    assert [shadow.reason for shadow in patient([hangs], frames)] == [INTERNAL]
    trials.close()
    patient.close()


def test_a_result_is_kept_by_content_and_models_and_the_content_is_checked_all_the_same(packs: Path) -> None:
    room = Room(packs, lineup(packs, ["red-1"]), Trials(1, WAIT), cache_size=10)
    decoded = []
    decode = room.scorer._decode

    def counting(data: bytes, **how: Any) -> Any:
        decoded.append(1)
        return decode(data, **how)

    room.scorer._decode = counting
    first, second = room.score((128, 0, 0)), room.score((128, 0, 0), "another generation")
    assert first == second and len(decoded) == 1
    room.scorer.swap(lineup(packs, ["red-3"]))
    assert room.score((128, 0, 0)).labels[0].model == "red@3"
    assert len(decoded) == 2
    content = room.store.put(encoded(plain((128, 0, 0))), "image/png")
    Path(content.uri.removeprefix("file://")).write_bytes(b"another picture")
    with pytest.raises(Exception, match="DIGEST_MISMATCH"):
        room.scorer.score(classification_pb2.ClassifyItem(content=content))


def test_the_frame_that_decided_is_named(packs: Path) -> None:
    frames = [(0, 0, 40 * (n % 5)) for n in range(30)]
    frames[17] = (250, 0, 0)
    room = Room(packs, lineup(packs, ["red-1", "blue"], shadow=[("red-2", 100)]), Trials(1, WAIT))
    content = room.store.put(animated(frames), "image/gif")
    result = room.scorer.score(classification_pb2.ClassifyItem(content=content))
    found = {label.label: label.frame for label in (*result.labels, *result.shadows[0].labels)}
    assert found["red"] == 17
    # Blue is at its highest in every fifth frame; the first that was sampled is named.
    assert found["blue"] % 5 == 4


# ---- hot swap --------------------------------------------------------------------------------------------------------


class Watched:
    """A reloader over a rollout file, looked at by hand."""

    def __init__(self, folder: Path, **document: Any) -> None:
        self.file = write_rollout(folder / "rollout.yaml", **document)
        rollout = rollouts.read(self.file)
        self.serving = lineups.load(rollout)
        self.reloader = Reloader(
            lambda: rollouts.read(self.file),
            lambda changed, serving: lineups.load(changed, previous=serving),
            self._swap,
            (rollout, self.serving),
            self.file,
        )

    def _swap(self, line: Lineup) -> None:
        self.serving = line

    def look(self) -> bool:
        """Twice, as a change is acted on when it has stood still."""
        assert not self.reloader.look()
        return self.reloader.look()

    @property
    def names(self) -> list[str]:
        return names(self.serving.plan("g").deciding)


def put(pack: Path, place: Path) -> None:
    """Put a pack into a place as an installation does: a rename."""
    shutil.move(place, place.with_name(f"{place.name}.old"))
    shutil.copytree(pack, place.with_name(".new"))
    place.with_name(".new").rename(place)


def test_a_changed_pack_and_a_changed_rollout_are_taken_up(packs: Path) -> None:
    shutil.copytree(packs / "red-1", packs / "live")
    watched = Watched(packs, active=["live"])
    assert not watched.look() and watched.names == ["red@1"]
    put(packs / "red-2", packs / "live")
    assert watched.look() and watched.names == ["red@2"]
    write_rollout(watched.file, active=["live", "blue"])
    assert watched.look() and watched.names == ["red@2", "blue@1"]
    assert not watched.look()


@pytest.mark.parametrize("damage", ["corrupt", "torn", "gone", "not reproduced", "bad rollout", "another task"])
def test_what_cannot_be_loaded_leaves_the_old_one_serving_until_it_is_mended(packs: Path, damage: str) -> None:
    """F22: what served goes on serving."""
    shutil.copytree(packs / "red-1", packs / "live")
    watched = Watched(packs, active=["live"])
    model = packs / "live" / "model.onnx"
    if damage == "corrupt":
        model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    elif damage == "torn":
        model.write_bytes(model.read_bytes()[:100])
    elif damage == "gone":
        shutil.rmtree(packs / "live")
    elif damage == "not reproduced":
        write_version(packs / "live", "2", offset=1.0, examples=model_packs.red_card()["examples"])
    elif damage == "another task":
        card = packs / "live" / "card.yaml"
        card.write_text(card.read_text().replace("image-classification", "text-embedding"))
    else:
        watched.file.write_text("active: [live]\ncanary: [nothing]\n")
    assert not watched.look() and watched.names == ["red@1"]
    # Not tried again until it changes.
    assert not watched.look()
    write_rollout(watched.file, active=["red-2"])
    assert watched.look() and watched.names == ["red@2"]


def test_a_folder_that_is_still_being_copied_is_left_alone(packs: Path) -> None:
    shutil.copytree(packs / "red-1", packs / "live")
    watched = Watched(packs, active=["live"])
    for name in ("card.yaml", "model.onnx", "examples/plain.png"):
        shutil.copyfile(packs / "red-2" / name, packs / "live" / name)
        assert not watched.reloader.look()
    assert watched.reloader.look()
    assert watched.names == ["red@2"]


def test_an_item_ends_with_the_models_it_began_with(packs: Path) -> None:
    began, go = threading.Event(), threading.Event()
    room = Room(packs, lineup(packs, ["red-1"]), Trials(1, WAIT))
    decode = room.scorer._decode

    def slow(data: bytes, **how: Any) -> Any:
        began.set()
        assert go.wait(WAIT)
        return decode(data, **how)

    room.scorer._decode = slow
    results: list[signal_pb2.ItemResult] = []
    thread = threading.Thread(target=lambda: results.append(room.score((128, 0, 0))))
    thread.start()
    assert began.wait(WAIT)
    room.scorer.swap(lineup(packs, ["red-3"]))
    go.set()
    thread.join(WAIT)
    assert results[0].labels[0].model == "red@1"
    assert room.score((128, 0, 0)).labels[0].model == "red@3"
