"""Hostile media against the real services: refused or contained, with a reason, and at nobody else's cost."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from seawall.api.signal.v1 import signal_pb2
from seawall.runtime.decoding import DEFAULT_LIMITS
from tests.support import images, videos
from tests.support.media_service import LISTED, STAGES, MediaService, media_service

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

OK, UNSCANNABLE = signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_UNSCANNABLE
#: What a media service may hold at most, and what a worker begins with, shared with its helper. Above that it may take
#: `decoding.memory_bytes`.
SERVICE_BYTES = 400 * 2**20
WORKER_BYTES = 170 * 2**20
LITTLE = 64 * 2**20

NEIGHBOUR = (images.encode(images.photograph(LISTED, (600, 400))), "image/jpeg")
#: 10 kB that take many seconds on any machine: a thousand times the same large canvas.
ENDLESS = (images.gif_of_frames(1_000, 2_000), "image/gif")
#: Settings that let it begin.
PATIENT = {"DECODING__MAX_TOTAL_PIXELS": "10000000000", "RPC_SERVER__WORKERS": "2"}

#: A second of a still picture, and the same in a codec that is not decoded.
FILM = videos.video(videos.still("chelsea", videos.RATE))
OLD = videos.video(videos.still("chelsea", 3), "mpeg2video", "matroska")

#: By name: the file, the media type it was sent under, and why it cannot be scanned.
HOSTILE: Mapping[str, tuple[bytes, str, str]] = {
    "a JPEG that claims 65,500²": (images.jpeg_claiming(65_500, 65_500), "image/jpeg", "TOO_MANY_PIXELS"),
    "a JPEG that claims 16,000²": (images.jpeg_claiming(16_000, 16_000), "image/jpeg", "TOO_MANY_PIXELS"),
    "a PNG that claims 20,000²": (images.png_claiming(20_000, 20_000), "image/png", "TOO_MANY_PIXELS"),
    "a WebP that claims 2²⁴": (images.webp_claiming(2**24, 2**24), "image/webp", "TOO_MANY_PIXELS"),
    "a GIF whose frame leaves its screen": (images.gif_claiming(65_535, 65_535), "image/gif", "TOO_MANY_PIXELS"),
    "a GIF of 10,000 frames": (images.gif_of_frames(10_000), "image/gif", "TOO_MANY_FRAMES"),
    "a JPEG of 1,000 passes": (images.jpeg_of_scans(1_000), "image/jpeg", "TOO_MANY_SCANS"),
    "a PNG with fewer pixels than it claims": (images.png_claiming(4_000, 4_000), "image/png", "TRUNCATED"),
    "a truncated JPEG": (NEIGHBOUR[0][:-2_000], "image/jpeg", "TRUNCATED"),
    "a truncated WebP": (images.encode(images.noise(300, 200), "WEBP")[:-200], "image/webp", "TRUNCATED"),
    "an archive behind a JPEG": (NEIGHBOUR[0] + images.zip_of("a", b"a"), "image/jpeg", "POLYGLOT"),
    "a document behind a PNG": (
        images.encode(images.noise(64, 64), "PNG") + b"%PDF-1.7",
        "image/png",
        "POLYGLOT",
    ),
    "a truncated video": (FILM[:-2_000], "video/mp4", "TRUNCATED"),
    "a video that claims 20,000²": (
        FILM.replace(struct.pack(">HH", 320, 240), struct.pack(">HH", 20_000, 20_000)),
        "video/mp4",
        "TOO_MANY_PIXELS",
    ),
    "a video that claims a day": (
        FILM.replace(struct.pack(">II", 1_000, 1_000), struct.pack(">II", 1_000, 86_400_000)),
        "video/mp4",
        "TOO_LONG",
    ),
    "a video in an old codec": (OLD, "video/x-matroska", "UNKNOWN_CODEC"),
    "a video declared a picture": (FILM, "image/png", "TYPE_MISMATCH"),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", "UNKNOWN_TYPE"),
    "a page": (b"<!doctype html><title>a page</title>", "image/png", "UNKNOWN_TYPE"),
    "nothing": (b"", "image/png", "UNKNOWN_TYPE"),
    "a picture declared a video": (NEIGHBOUR[0], "video/mp4", "TYPE_MISMATCH"),
}


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[MediaService]:
    """The hashing service, with workers that have two CPU seconds for a file."""
    with media_service("perceptual_hashing", tmp_path, DECODING__CPU_SECONDS="2", **PATIENT) as service:
        yield service


def unharmed(stage: str, result: signal_pb2.ItemResult) -> bool:
    """Whether the neighbour was scanned as if it were alone."""
    if stage == "perceptual_hashing":
        return result.status == OK and [match.entry_id for match in result.matches] == [LISTED]
    return result.status == OK and len(result.labels) > 0


@pytest.mark.parametrize("stage", STAGES)
def test_hostile_files(tmp_path: Path, stage: str) -> None:
    """F29: each is UNSCANNABLE with its reason; every file between them is scanned; memory stays under its cap."""
    with media_service(stage, tmp_path) as service:
        workers = service.workers
        files = [file for data, kind, _ in HOSTILE.values() for file in ((data, kind), NEIGHBOUR)]
        for _ in range(3):
            results = service.send(files)
            reasons = dict(zip(HOSTILE, [(one.status, one.reason) for one in results[::2]], strict=True))
            assert reasons == {name: (UNSCANNABLE, reason) for name, (_, _, reason) in HOSTILE.items()}
            assert all(unharmed(stage, one) for one in results[1::2])
        most, of_workers = service.peaks()
        assert most < SERVICE_BYTES
        assert max(of_workers) < WORKER_BYTES + LITTLE
        # Refusing them cost no worker its life.
        assert service.workers == workers


def test_the_largest_files_that_are_allowed(tmp_path: Path) -> None:
    """F29: pictures and a video just below every cap are scanned, and memory stays under its cap."""
    large = [
        (images.encode(images.plain(5_000, 5_000), "PNG", compress_level=1), "image/png"),
        (images.encode(images.plain(10_000, 10_000)), "image/jpeg"),
        (images.encode(images.plain(5_000, 4_900), "WEBP"), "image/webp"),
        (images.gif_of_frames(1_000, 300), "image/gif"),
        (videos.repeated(videos.picture("chelsea", (3840, 2160)), 60), "video/mp4"),
    ]
    with media_service("perceptual_hashing", tmp_path) as service:
        results = service.send([*large, NEIGHBOUR] * 2, timeout=120)
        assert [(one.status, one.reason) for one in results] == [(OK, "")] * 12
        assert unharmed("perceptual_hashing", results[5])
        most, of_workers = service.peaks()
        assert most < SERVICE_BYTES
        assert max(of_workers) < WORKER_BYTES + DEFAULT_LIMITS.memory_bytes


def test_a_file_that_takes_for_ever(patient: MediaService) -> None:
    """F29: its worker is stopped by its CPU limit and replaced; the files behind it are scanned."""
    before = patient.workers
    results = patient.send([NEIGHBOUR, ENDLESS, *[NEIGHBOUR] * 30])
    assert (results.pop(1).status, results[0].status) == (UNSCANNABLE, OK)
    assert all(unharmed("perceptual_hashing", one) for one in results)
    assert len(patient.workers) == len(before)
    assert len(before - patient.workers) == 1
    assert "SIGXCPU" in patient.log()


def test_a_file_that_takes_too_much_memory(tmp_path: Path) -> None:
    """F29: its worker refuses it at its limit, and goes on."""
    large = (images.encode(images.plain(5_000, 4_000), "PNG", compress_level=1), "image/png")
    with media_service("perceptual_hashing", tmp_path, DECODING__MEMORY_BYTES=str(LITTLE)) as service:
        results = service.send([large, NEIGHBOUR] * 4)
        assert [one.reason for one in results[::2]] == ["TOO_MUCH_MEMORY"] * 4
        assert all(unharmed("perceptual_hashing", one) for one in results[1::2])
        most, of_workers = service.peaks()
        assert most < SERVICE_BYTES
        assert max(of_workers) < WORKER_BYTES + LITTLE


def test_a_file_that_crashes_its_decoder(tmp_path: Path) -> None:
    """F29: a crash, told by its signal, costs the one file and none that its worker was given with it; five in a row
    are an error in the log."""
    with media_service("perceptual_hashing", tmp_path, **PATIENT) as service:
        for number in range(6):
            before = service.workers
            results: list[signal_pb2.ItemResult] = []
            files = [ENDLESS] if number else [NEIGHBOUR, ENDLESS, *[NEIGHBOUR] * 6]
            sending = threading.Thread(target=lambda: results.extend(service.send(files)))  # noqa: B023
            sending.start()
            os.kill(busy_one(sending, before), signal.SIGSEGV)
            sending.join()
            result = results.pop(files.index(ENDLESS))
            assert (result.status, result.reason) == (UNSCANNABLE, "DECODER_DIED")
            assert len(results) == len(files) - 1
            assert all(unharmed("perceptual_hashing", one) for one in results)
        assert "one after the other" in service.log()
        assert all(unharmed("perceptual_hashing", one) for one in service.send([NEIGHBOUR] * 4))


def busy_one(sending: threading.Thread, workers: set[int]) -> int:
    """The worker that has begun to work."""
    idle = {pid: psutil.Process(pid).cpu_times().user for pid in workers}
    while sending.is_alive():
        for pid, user in idle.items():
            if psutil.Process(pid).cpu_times().user > user + 0.1:
                return pid
        sending.join(0.01)
    raise AssertionError("the file was decoded before it could be told which worker decodes it")
