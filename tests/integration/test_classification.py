from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from seawall.api.classification.v1 import classification_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification import scorer, stage
from seawall.classification.settings import ClassificationSettings
from seawall.core.errors import Poison
from seawall.runtime.content import ContentStore
from seawall.runtime.settings import ContentSettings
from tests.support import model_packs
from tests.support.model_packs import encoded, plain

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
            classifiers=[root / "red"], content=ContentSettings(allowed_prefixes=[prefix]), **options
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


def animated(colours: list[tuple[int, int, int]], kind: str = "GIF", **options: Any) -> bytes:
    first, *rest = (Image.fromarray(plain(colour)) for colour in colours)
    return encoded(first, kind, save_all=True, append_images=rest, duration=50, **options)


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


def test_the_stages_examples_get_their_statuses(room: Room) -> None:
    examples = stage.examples(ContentStore(room.settings.content))
    for example in examples:
        items = stage.STAGE.items(example.generation)
        assert [item.item_id for item in items] == list(example.statuses)
        for item in items:
            assert isinstance(item.message, classification_pb2.ClassifyItem)
            wanted = example.statuses[item.item_id]
            if wanted == ERROR:
                with pytest.raises(Poison):
                    room.scorer.score(item.message)
            else:
                assert room.scorer.score(item.message).status == wanted
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


def start(room: Room, port_file: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "SEAWALL_CLASSIFIERS": f'["{room.pack.path}"]',
        "SEAWALL_CONTENT__ALLOWED_PREFIXES": f'["{room.content.as_uri()}/"]',
        "SEAWALL_RPC_SERVER__PORT_FILE": str(port_file),
        "SEAWALL_RPC_SERVER__LINGER_SECONDS": "0",
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
