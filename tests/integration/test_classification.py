from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from seawall.api.classification.v1 import classification_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification import scorer, stage
from seawall.classification.rollout import falls_in
from seawall.classification.settings import ClassificationSettings
from seawall.core.errors import Poison
from seawall.runtime import model_pack
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import DecodingSettings
from seawall.runtime.settings import ContentSettings
from tests.support import model_packs, videos
from tests.support.model_packs import animated, encoded, plain, write_version
from tests.support.stages import sent

OK, UNSCANNABLE, ERROR = (
    signal_pb2.ITEM_STATUS_OK,
    signal_pb2.ITEM_STATUS_UNSCANNABLE,
    signal_pb2.ITEM_STATUS_ERROR,
)
RED = (204, 30, 30)


class Room:
    """The scorer over a content folder and the pack whose score is the picture's mean red."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.content = root / "content"
        self.content.mkdir()
        self.pack = model_packs.write_pack(root / "red")
        prefix = self.content.as_uri() + "/"
        self.settings = ClassificationSettings(
            reload_seconds=0,
            # The processes of the service are tested below, and those of the decoder where it lives.
            decoding=DecodingSettings(isolated=False),
            classifiers=[root / "red"],
            content=ContentSettings(allowed_prefixes=[prefix]),
            **options,
        )
        self.scorer = scorer.load(self.settings)

    def item(self, data: bytes, media_type: str = "image/png") -> classification_pb2.ClassifyItem:
        digest = hashlib.sha256(data)
        path = self.content / digest.hexdigest()
        path.write_bytes(data)
        ref = generation_pb2.ContentRef(
            uri=path.as_uri(), sha256=digest.digest(), media_type=media_type, size_bytes=len(data)
        )
        return classification_pb2.ClassifyItem(content=ref)

    def score(self, data: bytes, media_type: str = "image/png") -> signal_pb2.ItemResult:
        return self.scorer.score(self.item(data, media_type))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def cmyk() -> bytes:
    return encoded(Image.fromarray(plain(RED)).convert("CMYK"), "JPEG", quality=95)


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.full((40, 40), 204 << 8, np.uint16)))


def paletted() -> bytes:
    return encoded(Image.fromarray(plain(RED)).convert("P", palette=Image.Palette.ADAPTIVE))


@pytest.mark.parametrize(
    ("data", "media_type", "expected"),
    [
        (encoded(plain(RED)), "image/png", 0.8),
        (encoded(plain(RED), "JPEG", quality=95), "image/jpeg", 0.8),
        (encoded(plain(RED), "WEBP", lossless=True), "image/webp", 0.8),
        (encoded(plain(RED, 1)), "image/png", 0.8),
        (encoded(plain(RED, 2000), "JPEG", quality=95), "image/jpeg", 0.8),
        (encoded(np.asarray(plain(RED)[:1])), "image/png", 0.8),
        (cmyk(), "image/jpeg", 0.8),
        (sixteen_bit(), "image/png", 0.8),
        (paletted(), "image/png", 0.8),
        (encoded(Image.fromarray(plain(RED)).convert("L").convert("1")), "image/png", None),
        (animated([RED]), "image/gif", 0.8),
    ],
    ids=["png", "jpeg", "webp", "one pixel", "large", "line", "cmyk", "16 bit", "paletted", "1 bit", "one-frame gif"],
)
def test_every_kind_of_picture_is_scored_by_its_pixels(
    room: Room, data: bytes, media_type: str, expected: float | None
) -> None:
    result = room.score(data, media_type)
    assert (result.status, result.reason) == (OK, "")
    assert [label.label for label in result.labels] == ["red"]
    assert not result.item_id and not result.nexus
    if expected is not None:
        assert result.labels[0].score == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_one_frame_of_an_animation_decides(room: Room, kind: str) -> None:
    frames = [(0, 0, 40 * (n % 5)) for n in range(30)]
    calm = room.score(animated(frames, kind), f"image/{kind.lower()}")
    frames[17] = (250, 0, 0)
    odd = room.score(animated(frames, kind), f"image/{kind.lower()}")
    assert (calm.status, odd.status) == (OK, OK)
    assert calm.labels[0].score < 0.05
    assert odd.labels[0].score > 0.9


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mp4"), ("libvpx-vp9", "webm")])
def test_one_frame_of_a_video_decides_and_is_named(room: Room, codec: str, container: str) -> None:
    calm = [np.full((120, 160, 3), (0, 0, 8 * (n % 5)), np.uint8) for n in range(48)]
    odd = [*calm[:29], np.full((120, 160, 3), (250, 0, 0), np.uint8), *calm[30:]]
    results = [room.score(videos.video(frames, codec, container), f"video/{container}") for frames in (calm, odd)]
    assert [result.status for result in results] == [OK, OK]
    assert results[0].labels[0].score < 0.05
    assert results[1].labels[0].score > 0.9
    assert results[1].labels[0].frame == 29
    (cut,) = [room.score(videos.video(odd, codec, container)[:-500], f"video/{container}")]
    assert (cut.status, cut.reason, list(cut.labels)) == (UNSCANNABLE, "TRUNCATED", [])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "UNKNOWN_TYPE"),
        (b"\x00" * 500, "UNKNOWN_TYPE"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "UNKNOWN_TYPE"),
        (encoded(plain(RED))[:-20], "TRUNCATED"),
        (encoded(plain(RED), "JPEG")[:400], "TRUNCATED"),
        (animated([RED, (0, 0, 0)])[:-30], "TRUNCATED"),
    ],
    ids=["zero bytes", "zeros", "svg", "truncated png", "truncated jpeg", "truncated gif"],
)
def test_what_cannot_be_read_whole_is_unscannable_and_has_no_score(room: Room, data: bytes, reason: str) -> None:
    result = room.score(data)
    assert (result.status, result.reason) == (UNSCANNABLE, reason)
    assert not result.labels


def test_content_that_cannot_be_had_has_no_score(room: Room) -> None:
    item = room.item(encoded(plain(RED)))
    item.content.sha256 = hashlib.sha256(b"other").digest()
    with pytest.raises(Poison, match="DIGEST_MISMATCH"):
        room.scorer.score(item)
    item.content.uri = "file:///etc/hostname"
    with pytest.raises(Poison, match="REF_NOT_ALLOWED"):
        room.scorer.score(item)


def test_threads_get_the_same_scores(room: Room) -> None:
    items = [room.item(encoded(plain((n, 0, 0), 64), "PNG")) for n in range(0, 250, 5)]
    alone = [room.scorer.score(item).labels[0].score for item in items]
    with ThreadPoolExecutor(4) as pool:
        together = [result.labels[0].score for result in pool.map(room.scorer.score, items)]
    assert together == alone
    assert alone == pytest.approx([n / 255 for n in range(0, 250, 5)], abs=0.01)


def test_the_artefact_is_the_pack(room: Room) -> None:
    (artefact,) = room.scorer.artefacts()
    assert artefact.kind == signal_pb2.ARTEFACT_KIND_MODEL
    assert (artefact.name, artefact.version, artefact.sha256) == ("red", "1", room.pack.digest)


def test_several_classifiers_share_one_decode(tmp_path: Path) -> None:
    room = Room(tmp_path)
    blue = model_packs.red_card()["input"] | {"colour": "BGR"}
    examples = [{"file": "examples/plain.png", "scores": {"blue": 30 / 255}, "tolerance": 0.01}]
    labels = [{"name": "blue", "index": 1, "threshold": 0.5}]
    model_packs.write_pack(tmp_path / "blue", name="blue", input=blue, labels=labels, examples=examples)
    settings = room.settings.model_copy(update={"classifiers": [tmp_path / "red", tmp_path / "blue"]})
    both = scorer.load(settings)
    got = {label.label: label.score for label in both.score(room.item(encoded(plain((255, 0, 51))))).labels}
    assert got == pytest.approx({"red": 1.0, "blue": 0.2}, abs=0.01)
    assert [artefact.name for artefact in both.artefacts()] == ["red", "blue"]


def test_provenance_stands_beside_the_models_labels_and_not_where_nothing_was_decoded(tmp_path: Path) -> None:
    room = Room(tmp_path, provenance=True)
    labels = {label.label: label.score for label in room.score(encoded(plain(RED), "JPEG"), "image/jpeg").labels}
    assert labels.keys() == {"red", "c2pa_manifest", "c2pa_valid", "c2pa_trusted", "c2pa_ai_generated"}
    assert labels["c2pa_manifest"] == 0
    assert not room.score(encoded(plain(RED))[:-20]).labels


def test_the_stages_examples_get_their_statuses(room: Room) -> None:
    examples = stage.examples(ContentStore(room.settings.content))
    for example in examples:
        items = stage.STAGE.items(example.generation)
        assert [item.item_id for item in items] == list(example.statuses)
        for item, message in zip(items, sent(stage.STAGE, example.generation), strict=True):
            wanted = example.statuses[item.item_id]
            if wanted == ERROR:
                with pytest.raises(Poison):
                    room.scorer.score(message)
            else:
                assert room.scorer.score(message).status == wanted
    assert {status for example in examples for status in example.statuses.values()} == {OK, UNSCANNABLE, ERROR}


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.fixture
def process_room(tmp_path: Path) -> Iterator[tuple[Room, subprocess.Popen[str], Path]]:
    room = Room(tmp_path)
    port_file = tmp_path / "port"
    process = start(room, port_file)
    try:
        yield room, process, port_file
    finally:
        process.kill()
        process.communicate()


def start(room: Room, port_file: Path, **settings: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "SEAWALL_CLASSIFIERS": f'["{room.pack.path}"]',
        "SEAWALL_CONTENT__ALLOWED_PREFIXES": f'["{room.content.as_uri()}/"]',
        "SEAWALL_RPC_SERVER__PORT_FILE": str(port_file),
        "SEAWALL_RPC_SERVER__LINGER_SECONDS": "0",
        **{f"SEAWALL_{name}": value for name, value in settings.items()},
    }
    code = "from seawall.classification.service import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_port(process: subprocess.Popen[str], port_file: Path) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        # The port file is written before the line is logged.
        if "serving" in line and port_file.exists():
            return int(port_file.read_text())
    raise AssertionError("the service ended before it served")


def test_the_service_answers_each_item_by_its_own_status(
    process_room: tuple[Room, subprocess.Popen[str], Path],
) -> None:
    room, process, port_file = process_room
    port = wait_for_port(process, port_file)
    items = [
        room.item(encoded(plain(RED))),
        room.item(b"GIF89a nothing more"),
        room.item(encoded(plain((51, 0, 0)), "JPEG", quality=95), "image/jpeg"),
        classification_pb2.ClassifyItem(
            content=generation_pb2.ContentRef(uri="file:///etc/hostname", sha256=b"0" * 32)
        ),
    ]
    for number, item in enumerate(items):
        item.id = 100 + number
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            stage.STAGE.method,
            request_serializer=classification_pb2.ClassifyMediaRequest.SerializeToString,
            response_deserializer=classification_pb2.ClassifyMediaResponse.FromString,
        )
        response = call(classification_pb2.ClassifyMediaRequest(items=items), timeout=20)
    replies = {reply.id: reply for reply in response.replies}
    assert {number: reply.result.status for number, reply in replies.items()} == {
        100: OK,
        101: UNSCANNABLE,
        102: OK,
        103: ERROR,
    }
    assert replies[103].result.reason == "REF_NOT_ALLOWED"
    assert replies[100].result.labels[0].score == pytest.approx(0.8, abs=0.01)
    assert replies[102].result.labels[0].score == pytest.approx(0.2, abs=0.02)
    assert all(reply.work_nanos > 0 for reply in response.replies)
    assert response.artefacts[0].sha256 == room.pack.digest
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0


Call = Callable[..., classification_pb2.ClassifyMediaResponse]


@contextmanager
def calling(port: int) -> Iterator[Call]:
    """The service's one method, over a channel of its own; called with items and a timeout."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(
            stage.STAGE.method,
            request_serializer=classification_pb2.ClassifyMediaRequest.SerializeToString,
            response_deserializer=classification_pb2.ClassifyMediaResponse.FromString,
        )

        def call(*items: classification_pb2.ClassifyItem) -> classification_pb2.ClassifyMediaResponse:
            for number, item in enumerate(items):
                item.id = number
            response: classification_pb2.ClassifyMediaResponse = method(
                classification_pb2.ClassifyMediaRequest(items=items), timeout=30
            )
            return response

        yield call


@contextmanager
def serving(room: Room, **settings: str) -> Iterator[Call]:
    """The real service of this room, and a way to call it; it ends as it should."""
    port_file = room.content.parent / "port"
    process = start(room, port_file, **settings)
    try:
        with calling(wait_for_port(process, port_file)) as call:
            yield call
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()


def test_an_item_that_the_model_fails_on_errs_alone(tmp_path: Path) -> None:
    """F18, on the real service: NaN for one picture is an error of that picture, not a score, and nobody else's."""
    room = Room(tmp_path)
    model_packs.write_pack(room.pack.path, model_packs.nan_above(0.9))
    colours = [(20 * n, 0, 0) for n in range(10)]
    items = [room.item(encoded(plain(colour))) for colour in colours]
    items.insert(5, room.item(encoded(plain((250, 0, 0)))))
    batched = {"EXECUTION__MAX_BATCH": "8", "EXECUTION__BATCH_WAIT_SECONDS": "0.02", "RPC_SERVER__WORKERS": "4"}
    for settings in ({}, batched):
        # The black picture has a value of 1 in the other class: it fails as well.
        with serving(room, **settings) as call:
            results = [reply.result for reply in sorted(call(*items).replies, key=lambda reply: reply.id)]
        failed = [n for n, result in enumerate(results) if result.status == ERROR]
        assert failed == [0, 1, 5]
        assert {results[n].reason for n in failed} == {"BAD_MODEL_OUTPUT"}
        assert not any(results[n].labels for n in failed)
        scores = [result.labels[0].score for n, result in enumerate(results) if n not in failed]
        assert scores == pytest.approx([20 * n / 255 for n in range(2, 10)], abs=0.01)


def test_models_are_swapped_under_load_without_a_failed_call_and_a_corrupt_one_is_left_out(tmp_path: Path) -> None:
    """F22, on the real service."""
    room = Room(tmp_path)
    live = tmp_path / "live"
    write_version(live, "1")
    rollout = tmp_path / "rollout.yaml"
    rollout.write_text("active: [live]\n")
    items = [room.item(encoded(plain((n, 0, 0)))) for n in range(100, 140)]
    digests = {"1": model_pack.load(live).digest}
    stop, seen, failures = threading.Event(), Queue[classification_pb2.ClassifyMediaResponse](), []

    def load(call: Call, part: list[classification_pb2.ClassifyItem]) -> None:
        while not stop.is_set():
            try:
                seen.put(call(*part))
            except grpc.RpcError as error:
                failures.append(error)
                return

    def until(version: str) -> None:
        """Until calls are answered by this version alone."""
        row = 0
        while row < 5:
            response = seen.get(timeout=30)
            for reply in response.replies:
                assert reply.result.status == OK, reply.result.reason
                (label,) = reply.result.labels
                name = label.model.removeprefix("red@")
                # Whatever answered is named, by digest, in the very reply.
                assert digests[name] in {artefact.sha256 for artefact in response.artefacts}
                row = row + 1 if name == version else 0

    with serving(room, ROLLOUT=str(rollout), RELOAD_SECONDS="0.1") as call, ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load, call, [*items[n::3]]) for n in range(3)]
        try:
            until("1")
            for version in ("2", "3"):
                digests[version] = write_version(tmp_path / "new", version, offset=int(version)).digest
                live.rename(tmp_path / f"before-{version}")
                (tmp_path / "new").rename(live)
                until(version)
            model = live / "model.onnx"
            model.write_bytes(model.read_bytes()[:-1])
            digests["4"] = write_version(tmp_path / "four", "4", offset=1.0).digest
            for _ in range(30):
                until("3")
            rollout.write_text("active: [four]\nshadow: [{pack: before-2}]\n")
            until("4")
        finally:
            stop.set()
        for one in loads:
            one.result(timeout=30)
    assert failures == []


def test_shadows_and_canaries_on_the_real_service(tmp_path: Path) -> None:
    room = Room(tmp_path)
    for version, offset in (("1", 0.0), ("2", 1.0), ("3", 2.0)):
        write_version(tmp_path / f"red-{version}", version, offset=offset)
    rollout = tmp_path / "rollout.yaml"
    rollout.write_text("active: [red-1]\ncanary: [{pack: red-2, percent: 30}]\nshadow: [{pack: red-3, percent: 60}]\n")
    items = [room.item(encoded(plain((128, 0, 0)))) for _ in range(40)]
    for number, item in enumerate(items):
        item.generation_id = f"g-{number}"
    with serving(room, ROLLOUT=str(rollout)) as call:
        replies = sorted(call(*items).replies, key=lambda reply: reply.id)
    for item, reply in zip(items, replies, strict=True):
        decides = "red@2" if falls_in(30, "red@2", item.generation_id) else "red@1"
        assert [label.model for label in reply.result.labels] == [decides]
        on_trial = ["red@3"] if falls_in(60, "red@3", item.generation_id) else []
        assert [shadow.model for shadow in reply.result.shadows] == on_trial


@pytest.mark.parametrize("fault", ["missing", "corrupt", "another model", "not reproduced"])
def test_a_service_with_a_broken_model_is_never_ready(tmp_path: Path, fault: str) -> None:
    room = Room(tmp_path)
    model = room.pack.path / "model.onnx"
    if fault == "missing":
        model.unlink()
    elif fault == "corrupt":
        model.write_bytes(model.read_bytes()[:-1])
    elif fault == "another model":
        model.write_bytes(model_packs.red_model(output_shape=("n", "m")).SerializeToString())
    else:
        examples = [{"file": "examples/plain.png", "scores": {"red": 0.1}, "tolerance": 0.01}]
        model_packs.write_pack(room.pack.path, examples=examples)
    port_file = tmp_path / "port"
    process = start(room, port_file)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0
    assert not port_file.exists()
    wanted = {
        "missing": "MODEL_FILE_MISSING",
        "corrupt": "MODEL_DIGEST_MISMATCH",
        "another model": "MODEL_DIGEST_MISMATCH",
        "not reproduced": "MODEL_NOT_REPRODUCED",
    }
    assert wanted[fault] in output
    assert '"serving"' not in output


def test_png_written_here_is_what_the_room_reads() -> None:
    # Guards the helper: a test picture that is not what it says would make every score above meaningless.
    image = Image.open(io.BytesIO(sixteen_bit()))
    assert image.mode.startswith("I") and image.getpixel((0, 0)) == 204 << 8
    assert Image.open(io.BytesIO(cmyk())).mode == "CMYK"
    assert Image.open(io.BytesIO(paletted())).mode == "P"
