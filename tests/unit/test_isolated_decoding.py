from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import psutil
import pytest

from seawall.core.errors import Retryable
from seawall.perceptual_hashing import hashing
from seawall.runtime import metrics, prefork
from seawall.runtime.decoding import (
    DEFAULT_LIMITS,
    DecodingSettings,
    Frame,
    InProcessDecoder,
    Reason,
    Unscannable,
    messages,
    worker,
)
from seawall.runtime.decoding.isolated import IsolatedDecoder, make_decoder
from seawall.runtime.prefork_line import Worker
from tests.support import images

STILL = images.encode(images.photograph("coffee", (640, 480)))
#: 10 kB that take many seconds on any machine: a thousand times the same large canvas.
ENDLESS = images.gif_of_frames(1_000, 2_000)
PATIENT = DecodingSettings(max_total_pixels=10**10, cpu_seconds=60)


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    decoder = IsolatedDecoder(DEFAULT_LIMITS, 2)
    yield decoder
    decoder.close()


def frames(decoder: IsolatedDecoder | InProcessDecoder, data: bytes, *rest: Any, **options: Any) -> list[Frame]:
    """All frames, their pixels copied."""
    found = decoder.frames(data, *rest, **options)
    return [frame._replace(pixels=frame.pixels.copy()) for frame in found]


def reason_of(decoder: IsolatedDecoder, data: bytes) -> Reason:
    with pytest.raises(Unscannable) as caught:
        frames(decoder, data, "gray")
    return Reason(caught.value.reason)


FILES: dict[str, bytes] = {
    "a JPEG": STILL,
    "a turned JPEG": images.with_exif_orientation(images.photograph("rocket", (300, 200)), 6),
    "a PNG": images.encode(images.photograph("camera", (301, 77)), "PNG"),
    "an AVIF": images.encode(images.photograph("chelsea", (200, 150)), "AVIF"),
    "a GIF": images.animation([images.noise(90, 60, seed) for seed in range(7)], "GIF"),
    "a WebP": images.animation([images.noise(90, 60, seed) for seed in range(5)], "WEBP"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("options", [("gray", None), ("gray", 64), ("rgb", 64)], ids=str)
def test_workers_give_the_frames_that_the_process_itself_would(
    decoder: IsolatedDecoder, name: str, options: tuple[Any, ...]
) -> None:
    alone = InProcessDecoder(DEFAULT_LIMITS)
    for most in (None, 3):
        expected, got = (frames(one, FILES[name], *options, most=most) for one in (alone, decoder))
        assert [(frame.number, frame.view) for frame in got] == [(frame.number, frame.view) for frame in expected]
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(got, expected, strict=True))


HASHES: dict[str, Any] = {"variants": True, "strip_borders": True, "signal_types": []}


def test_what_is_measured_in_a_worker_is_what_the_process_itself_would_measure() -> None:
    there = make_decoder(DEFAULT_LIMITS, 1, hashing.MEASURE, **HASHES)
    here = make_decoder(DecodingSettings(isolated=False), 1, hashing.MEASURE, **HASHES)
    try:
        for data in FILES.values():
            found = [list(one.measured(data, "gray", 512, "", "512,full")) for one in (here, there)]
            assert found[0] == found[1]
            assert all(list(hashing.read(measured)) for measured in found[0])
        with pytest.raises(Unscannable, match="TRUNCATED"):
            list(there.measured(STILL[:-900], "gray", 512, "", "512"))
    finally:
        there.close()


def test_frames_are_only_measured_where_a_measure_was_asked_for(decoder: IsolatedDecoder) -> None:
    for one in (decoder, InProcessDecoder(DEFAULT_LIMITS)):
        with pytest.raises((messages.DecoderFailed, ValueError)):
            list(one.measured(STILL, "gray"))


def test_pixels_are_a_read_only_view_of_what_the_worker_wrote(decoder: IsolatedDecoder) -> None:
    for frame in decoder.frames(STILL, "gray"):
        assert not frame.pixels.flags.owndata
        assert not frame.pixels.flags.writeable


def test_what_is_unscannable_says_why_and_keeps_its_worker(decoder: IsolatedDecoder) -> None:
    before = decoder.pids
    assert reason_of(decoder, b"text") is Reason.UNKNOWN_TYPE
    assert reason_of(decoder, STILL[:-900]) is Reason.TRUNCATED
    assert reason_of(decoder, images.png_claiming(65_000, 65_000)) is Reason.TOO_MANY_PIXELS
    assert reason_of(decoder, bytes(DEFAULT_LIMITS.max_bytes + 1)) is Reason.TOO_LARGE
    assert decoder.pids == before


def test_frames_before_the_fault_are_given(decoder: IsolatedDecoder) -> None:
    # The JPEG stands whole; what rides behind it does not.
    data = STILL + images.encode(images.noise(64, 64))[:-400] + b"\xff\xd9"
    broken = data[: len(STILL) + 300]
    seen = []
    with pytest.raises(Unscannable):
        for frame in decoder.frames(broken, "gray"):
            seen.append(frame.number)
    assert seen == [0]


def test_frames_that_nobody_wants_any_more_leave_the_worker_free(decoder: IsolatedDecoder) -> None:
    before = decoder.pids
    for _ in range(5):
        for _ in decoder.frames(FILES["a GIF"], "gray"):
            break
    assert len(frames(decoder, FILES["a GIF"], "gray")) == 7
    assert decoder.pids == before


def test_a_file_that_takes_too_long_is_unscannable_and_its_neighbours_are_decoded() -> None:
    decoder = IsolatedDecoder(PATIENT.model_copy(update={"cpu_seconds": 1}), 2)
    try:
        before = decoder.pids
        with ThreadPoolExecutor(2) as threads:
            bad = threads.submit(reason_of, decoder, ENDLESS)
            neighbours = [frames(decoder, STILL, "gray") for _ in range(20)]
            assert bad.result() is Reason.TOO_SLOW
        assert all(len(one) == 1 for one in neighbours)
        assert len(set(before) - set(decoder.pids)) == 1
        # The limit is of one file: many quick ones together may take longer.
        assert frames(decoder, STILL, "gray")
    finally:
        decoder.close()


def test_a_file_that_takes_too_much_memory_is_unscannable() -> None:
    decoder = IsolatedDecoder(DecodingSettings(memory_bytes=48 * 2**20), 1)
    try:
        large = images.encode(images.plain(5000, 4000), "PNG", compress_level=1)
        for _ in range(3):
            assert reason_of(decoder, large) is Reason.TOO_MUCH_MEMORY
        assert frames(decoder, STILL, "gray")
    finally:
        decoder.close()


def killed_during(decoder: IsolatedDecoder, number: int) -> Reason:
    """Kill the only worker once it has begun a file that occupies it."""
    (pid,) = decoder.pids
    found: list[Reason] = []
    thread = threading.Thread(target=lambda: found.append(reason_of(decoder, ENDLESS)))
    used = psutil.Process(pid).cpu_times().user
    thread.start()
    while thread.is_alive() and psutil.Process(pid).cpu_times().user - used < 0.2:
        thread.join(0.01)
    os.kill(pid, number)
    thread.join(30)
    return found[0]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_crashes_is_replaced(number: int) -> None:
    decoder = IsolatedDecoder(PATIENT, 1)
    try:
        before = decoder.pids
        assert killed_during(decoder, number) is Reason.DECODER_DIED
        assert decoder.pids != before
        assert len(frames(decoder, STILL, "gray")) == 1
    finally:
        decoder.close()


def test_a_worker_that_died_between_two_files_costs_neither() -> None:
    decoder = IsolatedDecoder(DEFAULT_LIMITS, 1)
    try:
        (pid,) = decoder.pids
        os.kill(pid, signal.SIGKILL)
        until_gone(pid)
        assert len(frames(decoder, STILL, "gray")) == 1
        assert decoder.pids != [pid]
    finally:
        decoder.close()


GIF = FILES["a GIF"]


def numbers(decoding: Iterator[Frame]) -> list[int]:
    return [frame.number for frame in decoding]


def begun(decoder: IsolatedDecoder, *files: bytes) -> list[Any]:
    """Decodings of this thread, one behind the other."""
    return [decoder.frames(data, "gray") for data in files]


@pytest.fixture
def alone() -> Iterator[IsolatedDecoder]:
    """One worker, which has a CPU second for a file."""
    decoder = IsolatedDecoder(PATIENT.model_copy(update={"cpu_seconds": 1}), 1)
    yield decoder
    decoder.close()


def test_what_stands_behind_another_is_decoded_in_order_by_one_worker(alone: IsolatedDecoder) -> None:
    before = alone.pids
    still, film = begun(alone, STILL, GIF)
    assert next(still).pixels.shape == (480, 640)
    assert (numbers(film), numbers(still)) == (list(range(7)), [])
    film, turned = begun(alone, GIF, FILES["a turned JPEG"])
    assert numbers(film) == list(range(7))
    assert next(turned).pixels.shape == (300, 200)
    turned.close()
    # One that is not read to its end is out of the next one's way.
    film, still = begun(alone, GIF, STILL)
    assert next(film).number == 0
    film.close()
    assert numbers(still) == [0]
    assert alone.pids == before


def test_pixels_stay_while_the_worker_decodes_the_next(alone: IsolatedDecoder) -> None:
    (expected,) = frames(InProcessDecoder(DEFAULT_LIMITS), STILL, "gray")
    still, film = begun(alone, STILL, GIF)
    pixels = next(still).pixels
    assert numbers(film) == list(range(7))
    assert np.array_equal(pixels, expected.pixels)
    still.close()


def test_one_that_is_read_before_its_turn_is_decoded_by_another_worker(decoder: IsolatedDecoder) -> None:
    first, second = begun(decoder, GIF, FILES["a PNG"])
    assert next(second).pixels.shape == (77, 301)
    assert numbers(first) == list(range(7))
    second.close()
    assert len(frames(decoder, STILL, "gray")) == 1


def test_one_that_is_closed_before_its_turn_is_nobodys_answer(alone: IsolatedDecoder) -> None:
    first, second = begun(alone, FILES["a PNG"], GIF)
    second.close()
    assert next(first).pixels.shape == (77, 301)
    first.close()
    assert [len(frames(alone, data, "gray")) for data in (STILL, GIF, STILL)] == [1, 7, 1]


@pytest.mark.parametrize("endless_is_first", [True, False])
def test_only_the_first_in_line_is_blamed_for_a_death(endless_is_first: bool) -> None:
    decoder = IsolatedDecoder(PATIENT, 1)
    try:
        (pid,) = decoder.pids
        used = psutil.Process(pid).cpu_times().user
        one, other = begun(decoder, *((ENDLESS, GIF) if endless_is_first else (STILL, ENDLESS)))
        while psutil.Process(pid).cpu_times().user - used < 0.2:
            threading.Event().wait(0.01)
        os.kill(pid, signal.SIGSEGV)
        until_gone(pid)
        if endless_is_first:
            with pytest.raises(Unscannable, match="DECODER_DIED"):
                next(one)
            assert numbers(other) == list(range(7))
        else:
            # The answer was there before.
            assert numbers(one) == [0]
            with pytest.raises(Unscannable, match="DECODER_DIED"):
                next(other)
    finally:
        decoder.close()


def test_an_answer_that_was_there_before_a_death_counts(alone: IsolatedDecoder) -> None:
    (pid,) = alone.pids
    (still,) = begun(alone, STILL)
    assert select.select([still], [], [], 30)[0]
    os.kill(pid, signal.SIGSTOP)
    (film,) = begun(alone, GIF)
    os.kill(pid, signal.SIGKILL)
    until_gone(pid)
    assert numbers(still) == [0]
    with pytest.raises(Unscannable, match="DECODER_DIED"):
        next(film)


def test_the_limit_of_time_is_of_the_first_in_line(alone: IsolatedDecoder) -> None:
    endless, last = begun(alone, ENDLESS, STILL)
    with pytest.raises(Unscannable, match="TOO_SLOW"):
        next(endless)
    assert numbers(last) == [0]


def test_what_stands_behind_a_file_that_takes_long_moves_to_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[int] = []
    monkeypatch.setattr(metrics.DECODER_DEATHS, "add", lambda number, _: deaths.append(number))
    decoder = IsolatedDecoder(PATIENT.model_copy(update={"cpu_seconds": 1}), 2)
    try:
        before = decoder.pids
        endless, film = begun(decoder, ENDLESS, GIF)
        assert not endless.late()
        assert not film.late()
        # The other worker is this thread's now, and what comes next stands in line there.
        (last,) = begun(decoder, STILL)
        assert (numbers(film), numbers(last)) == (list(range(7)), [0])
        assert deaths == []
        with pytest.raises(Unscannable, match="TOO_SLOW"):
            next(endless)
        assert deaths == [1]
        assert len(set(decoder.pids) & set(before)) == 1
        # Whatever it was given before, it has forgotten.
        assert [len(frames(decoder, data, "gray")) for data in (STILL, GIF, STILL)] == [1, 7, 1]
    finally:
        decoder.close()


def test_what_is_late_and_finds_no_worker_stays_where_it_is(alone: IsolatedDecoder) -> None:
    endless, last = begun(alone, ENDLESS, STILL)
    due = last.due
    assert not last.late()
    assert last.due >= due
    with pytest.raises(Unscannable, match="TOO_SLOW"):
        next(endless)
    assert numbers(last) == [0]


@pytest.fixture
def measuring() -> Iterator[IsolatedDecoder]:
    """The same, which hashes: of small files it has a longer line."""
    decoder = IsolatedDecoder(PATIENT.model_copy(update={"cpu_seconds": 1}), 1, hashing.MEASURE, **HASHES)
    yield decoder
    decoder.close()


def measured(decoder: IsolatedDecoder, *files: bytes) -> list[Any]:
    return [decoder.measured(data, "gray", 512, "", "512") for data in files]


def woken(decoding: Any) -> None:
    """Wait as a service's thread does."""
    while decoding.fileno() >= 0:
        assert select.select([decoding], [], [], 30)[0]
        decoding.ready()


def test_answers_about_small_files_are_told_several_at_a_time(measuring: IsolatedDecoder) -> None:
    (expected,) = measured(measuring, STILL)
    # Its bell has rung when the worker is stopped, and is silent before it goes on.
    woken(expected)
    told = list(expected)
    (pid,) = measuring.pids
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        threading.Event().wait(0.001)
    line = measured(measuring, *[STILL] * 20)
    assert not line[0].ready()
    os.kill(pid, signal.SIGCONT)
    woken(line[0])
    # Whoever is woken for one of them finds sixteen; the rest is told when there is nothing left to do.
    for decoding in line[:16]:
        assert decoding.fileno() < 0
        assert list(decoding) == told
    for decoding in line[16:]:
        woken(decoding)
        assert list(decoding) == told
    assert measuring.pids == [pid]


def test_an_answer_that_lies_behind_a_file_that_takes_long_is_found(measuring: IsolatedDecoder) -> None:
    still, endless = measured(measuring, STILL, ENDLESS)
    while not still.late():
        threading.Event().wait(max(still.due - time.monotonic(), 0.0))
    assert still.fileno() < 0
    assert len(list(still)) == 1
    assert not endless.late()
    with pytest.raises(Unscannable, match="TOO_SLOW"):
        next(endless)


def test_of_a_long_line_only_the_file_that_kills_is_lost(measuring: IsolatedDecoder) -> None:
    (before,) = measuring.pids
    line = measured(measuring, STILL, STILL, ENDLESS, *[STILL] * 5)
    found: list[Any] = []
    for decoding in line:
        try:
            found.append(len(list(decoding)))
        except Unscannable as error:
            found.append(error.reason)
    assert found == [1, 1, "TOO_SLOW", 1, 1, 1, 1, 1]
    assert measuring.pids != [before]


def test_a_line_is_bounded_by_places_and_by_bytes(measuring: IsolatedDecoder, alone: IsolatedDecoder) -> None:
    small = images.encode(images.photograph("coffee", (160, 120)))
    line = measured(measuring, small)
    while line[-1].room:
        line += measured(measuring, small)
    assert len(line) == 32
    assert [len(list(decoding)) for decoding in line] == [1] * 32
    (large,) = measured(measuring, STILL + bytes(2**21))
    assert not large.room
    large.close()
    # Who is given frames has none that another could have.
    line = begun(alone, STILL, STILL)
    assert [decoding.room for decoding in line] == [False, False]
    assert [numbers(decoding) for decoding in line] == [[0], [0]]


def test_decodings_that_were_dropped_hold_no_place(decoder: IsolatedDecoder) -> None:
    for _ in range(4):
        assert next(begun(decoder, GIF, STILL)[0]).number == 0
    assert len(frames(decoder, STILL, "gray")) == 1
    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(lambda _: len(frames(decoder, STILL, "gray")) == 1, range(4)))


def until_gone(pid: int) -> None:
    """Wait until a process runs no more; its parent may not have reaped it yet."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 30)[0]
    finally:
        os.close(descriptor)


def test_a_helper_that_died_is_replaced_when_it_is_needed() -> None:
    decoder = IsolatedDecoder(DEFAULT_LIMITS, 1)
    try:
        (pid,) = decoder.pids
        helper = psutil.Process(pid).ppid()
        os.kill(helper, signal.SIGKILL)
        until_gone(helper)
        # Its workers live on.
        assert len(frames(decoder, STILL, "gray")) == 1
        os.kill(pid, signal.SIGKILL)
        until_gone(pid)
        assert len(frames(decoder, STILL, "gray")) == 1
    finally:
        decoder.close()


def test_deaths_in_a_row_are_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = IsolatedDecoder(DEFAULT_LIMITS, 1)
    counted: list[str] = []
    monkeypatch.setattr(
        metrics.DECODER_DEATHS, "add", lambda number, attributes: counted.append(attributes[metrics.ERROR_TYPE])
    )
    try:
        monkeypatch.setattr(Worker, "receive", dying(Worker.receive))
        reasons = [reason_of(decoder, STILL) for _ in range(5)]
    finally:
        decoder.close()
    assert reasons == [Reason.DECODER_DIED] * 5
    assert counted == ["SIGSEGV"] * 5
    assert "one after the other" in capsys.readouterr().err


def dying(receive: Callable[[Worker], bytes]) -> Callable[[Worker], bytes]:
    """Kill the worker that a reply is waited for, as a decoder's bug would."""

    def dies(worker: Worker) -> bytes:
        if worker.pid:
            os.kill(worker.pid, signal.SIGSEGV)
            until_gone(worker.pid)
            return b""
        return receive(worker)

    return dies


def test_workers_are_confined_and_leave_with_the_service() -> None:
    code = (
        "import sys; from seawall.runtime.decoding import DEFAULT_LIMITS\n"
        "from seawall.runtime.decoding.isolated import IsolatedDecoder\n"
        "decoder = IsolatedDecoder(DEFAULT_LIMITS, 2); print(*decoder.pids, flush=True); sys.stdin.read()"
    )
    service = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        pids = [int(pid) for pid in service.stdout.readline().split()]
        limits = {}
        for pid in pids:
            with open(f"/proc/{pid}/limits", encoding="ascii") as file:
                limits[pid] = {line[:25].strip(): line[25:].split()[0] for line in file.readlines()[1:]}
        for one in limits.values():
            assert one["Max core file size"] == "0"
            assert one["Max file size"] == "0"
            assert int(one["Max address space"]) < 3 * 2**30
        os.kill(service.pid, signal.SIGKILL)
        for pid in pids:
            until_gone(pid)
    finally:
        service.kill()
        service.communicate()


def test_a_pool_that_cannot_start_says_so() -> None:
    with pytest.raises(Retryable, match="WORKERS_UNAVAILABLE"):
        prefork.Pool("seawall.runtime.no_such_workload", {}, 1, prefork.Limits(2**20, 1, 1.0), 1, 4096)


def test_a_closed_decoder_refuses() -> None:
    decoder = make_decoder(DEFAULT_LIMITS, 1)
    assert isinstance(decoder, IsolatedDecoder)
    decoder.close()
    with pytest.raises(Retryable, match="WORKERS_UNAVAILABLE"):
        frames(decoder, STILL, "gray")
    assert isinstance(make_decoder(DecodingSettings(isolated=False), 1), InProcessDecoder)


@pytest.mark.parametrize(
    "message",
    [b"", b"f", b"x" * 40, b"uNOT_A_REASON\0", b"e" + b"ValueError", b"f\1\0\7" + bytes(12), b"f\1\0\0" + b"\xff" * 12],
    ids=repr,
)
def test_a_workers_word_is_checked(message: bytes) -> None:
    with pytest.raises(messages.DecoderFailed):
        messages.take_frame(message, np.zeros(4096, np.uint8))


@pytest.mark.parametrize("wish", [messages.NEXT, b"enough"])
def test_a_fault_behind_a_frame_keeps_no_pixels_alive(wish: bytes) -> None:
    """A worker lives within a limit of memory: what it holds until garbage is collected is taken from the next file."""

    class Pixels:
        pass

    class Service:
        hurried = True

        def say(self, message: bytes, *, last: bool = True) -> None:
            assert message == b"a frame"

        def wish(self) -> bytes:
            return wish

    seen: list[weakref.ref[Pixels]] = []

    def frames() -> Iterator[Pixels]:
        for number in range(2):
            pixels = Pixels()
            seen.append(weakref.ref(pixels))
            if number:
                raise Unscannable(Reason.TRUNCATED, "the second frame is damaged")
            yield pixels
            del pixels

    raised = False
    gc.disable()
    try:
        try:
            worker._answer(cast(Any, Service()), frames(), lambda item, last: b"a frame")
        except Unscannable:
            raised = True
        assert raised == (wish == messages.NEXT)
        assert [one() for one in seen] == [None, None]
    finally:
        gc.enable()
