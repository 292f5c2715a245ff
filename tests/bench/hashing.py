"""From a picture's bytes to its PDQ, alone and in the running service; with `matching`, from a PDQ to what is listed.

Rates are per second of CPU. Ceilings are taken in the same run: a bare JPEG decode by simplejpeg for what decodes; for
the service, processes that decode, hash and match without gRPC and without workers. The two take turns of half a
second, and the ratio is the median of many: what else the machine does meets both. pip's pdqhash stands beside.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from operator import sub
from pathlib import Path

import grpc
import numpy as np
import pdqhash
import simplejpeg
from PIL import Image

from seawall.api.generation.v1 import generation_pb2
from seawall.api.perceptual_hashing.v1 import perceptual_hashing_pb2
from seawall.local import demo_bank, photographs
from seawall.perceptual_hashing import hashing, pdq, scorer
from seawall.perceptual_hashing.settings import PerceptualHashingSettings
from seawall.perceptual_hashing.stage import STAGE
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import DEFAULT_LIMITS, Decoder, Decoding, DecodingSettings, Pixels, decode_gray
from seawall.runtime.decoding.isolated import IsolatedDecoder, make_decoder
from seawall.runtime.settings import ContentSettings, seawall_home
from seawall.runtime.workers import BEGUN
from tests.bench.harness import Report, child, cpu_seconds, resident_mb, say

_NAMES = ("astronaut", "coffee", "chelsea")
PICTURES = 120
#: Rounds over the pictures of one side that a rate is taken of; the best counts, as everything else is somebody else's.
ROUNDS = 6
HAND_OVER_ROUNDS = 8
AGREEMENT_PICTURES = 150
TURNS = 16
BATCH = 64


async def run(report: Report) -> None:
    """Measure, in one run."""
    _pictures_alone(report)
    _agreement(report)
    await _service(report)
    if importlib.util.find_spec("tests.bench.matching") is not None:
        matching = importlib.import_module("tests.bench.matching")
        matching.measure(report)


# ---- decoding and hashing --------------------------------------------------------------------------------------------


def _jpegs(side: int, count: int) -> list[bytes]:
    """Square JPEGs, crops of ordinary photographs, all different."""
    rng = random.Random(side)
    found = []
    for number in range(count):
        picture = photographs.picture(_NAMES[number % len(_NAMES)])
        edge = rng.randint(min(picture.size) // 2, min(picture.size))
        left, top = (rng.randint(0, whole - edge) for whole in picture.size)
        body = io.BytesIO()
        crop = picture.crop((left, top, left + edge, top + edge)).resize((side, side))
        crop.save(body, "JPEG", quality=rng.randint(85, 92))
        found.append(body.getvalue())
    return found


def _rate(work: Callable[[int], object], count: int) -> float:
    """Calls per second of CPU, best of a few rounds."""
    work(0)
    best = 0.0
    for _ in range(ROUNDS):
        began = time.process_time()
        for number in range(count):
            work(number)
        best = max(best, count / (time.process_time() - began))
    return best


def _pictures_alone(report: Report) -> None:
    for side, decoded, hashed in ((512, 1_300, 25_000), (1024, 450, 9_000)):
        files = _jpegs(side, PICTURES)
        grays = [decode_gray(file, min_side=None) for file in files]
        say(f"{side}²: {sum(map(len, files)) / len(files) / 1000:.0f} KB on average")
        bare = _rate(lambda k: _bare(files[k]), PICTURES)  # noqa: B023
        report.add(f"{side}² bare simplejpeg decode to gray", bare, unit="/s")
        whole = _rate(lambda k: pdq.hash_gray(decode_gray(files[k])), PICTURES)  # noqa: B023
        report.add(f"{side}² bytes → PDQ, 512-first", whole, decoded, unit="/s")
        report.add(f"{side}² bytes → PDQ ÷ bare decode", whole / bare)
        # A few pictures in turn: one is hashed right after it was decoded, when it still lies in a cache.
        alone = _rate(lambda k: pdq.hash_gray(grays[k % 4]), 8 * PICTURES)  # noqa: B023
        report.add(f"{side}² hash alone", alone, hashed, unit="/s")
        eight = _rate(lambda k: pdq.hash_variants(grays[k % 4]), 8 * PICTURES)  # noqa: B023
        report.add(f"{side}² all eight variants, in hashes", alone / eight, 5, "<=")
        pip = _rate(lambda k: pdqhash.compute(_rgb(grays[k])), 5)  # noqa: B023
        report.add(f"{side}² pip pdqhash alone", pip, unit="/s")
        _hand_over(report, side, files)


def _bare(file: bytes) -> object:
    return simplejpeg.decode_jpeg(file, colorspace="GRAY", min_height=512, min_width=512)


def _rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[:, :, None], 3, axis=2)


def _hand_over(report: Report, side: int, files: Sequence[bytes]) -> None:
    """What it costs that pictures are decoded and hashed in a worker: CPU of both processes, less that of one alone.

    A service's thread has one picture ahead with its worker, as `runtime.workers` does; a lone picture also wakes a
    worker that sleeps, and finds its caches cold.
    """
    options = {"variants": True, "strip_borders": True, "signal_types": []}
    here = make_decoder(DecodingSettings(isolated=False), 1, hashing.MEASURE, **options)
    there = IsolatedDecoder(DEFAULT_LIMITS, 1, hashing.MEASURE, **options)

    def spent(decoder: Decoder, most: int) -> float:
        before = time.process_time() + _running(there.pids)
        begun: deque[Decoding[bytes]] = deque()
        for file in files:
            begun.append(decoder.measured(file, "gray", 512, "", "512"))
            if len(begun) == most:
                _finish(begun, most - 1)
        _finish(begun, 0)
        return (time.process_time() + _running(there.pids) - before) / len(files)

    try:
        # In turn, and the median: the machine is not the same from one second to the next.
        rounds = [(spent(here, 1), spent(there, BEGUN), spent(there, 1)) for _ in range(HAND_OVER_ROUNDS)]
        alone, behind, lone = zip(*rounds, strict=True)
        report.add(f"{side}² decode and hash in process", statistics.median(alone) * 1e6, unit="µs")
        over = statistics.median(map(sub, behind, alone)) * 1e6
        report.add(f"{side}² hand-over to a worker", over, 150, "<=", "µs")
        report.add(f"{side}² hand-over of a lone picture", statistics.median(map(sub, lone, alone)) * 1e6, unit="µs")
    finally:
        there.close()


def _finish(begun: deque[Decoding[bytes]], left: int) -> None:
    while len(begun) > left:
        for measured in begun.popleft():
            list(hashing.read(measured))


def _running(pids: Sequence[int]) -> float:
    """CPU seconds of single-threaded processes, to the nanosecond where psutil counts in hundredths of a second."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def _agreement(report: Report) -> None:
    """Against pip's pdqhash, given the same gray: random sizes and proportions, sides of 64 pixels and more."""
    rng = np.random.default_rng(1)
    equal = far = 0
    for number in range(AGREEMENT_PICTURES):
        width, height = (int(side) for side in rng.integers(64, 1400, 2))
        picture = photographs.picture(_NAMES[number % len(_NAMES)])
        left, top = (int(rng.integers(0, side // 2)) for side in picture.size)
        crop = picture.crop((left, top, *picture.size)).resize((width, height), Image.Resampling.LANCZOS)
        gray = np.asarray(crop.convert("L"))
        bits, _ = pdqhash.compute(_rgb(gray))
        theirs = np.packbits(np.asarray(bits, np.uint8)).tobytes()
        apart = (int.from_bytes(theirs) ^ int.from_bytes(pdq.hash_gray(gray).value)).bit_count()
        equal += apart == 0
        far = max(far, apart)
    report.add("identical to pip pdqhash", equal / AGREEMENT_PICTURES * 100, 99, unit="%")
    report.add("largest distance to it", far, 2, "<=", "bits")


# ---- the service -----------------------------------------------------------------------------------------------------


async def _service(report: Report) -> None:
    """Images per CPU-second of the service with its workers, and of one process that only decodes, hashes, matches."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        home = Path(folder)
        (home / "cache").symlink_to(seawall_home() / "cache")
        demo_bank.ensure(home / "banks")
        store = ContentStore(ContentSettings(allowed_prefixes=[(home / "content").as_uri() + "/"]))
        contents = [store.put(file, "image/jpeg") for file in _jpegs(512, 4 * PICTURES)]
        (home / "items").write_bytes(_request(contents).SerializeToString())
        async with _looping(home) as loops, _served(home, contents) as (measure, pid):
            pairs = [(await loops(), await measure()) for _ in range(TURNS)]
            report.add("in-process decode + hash + match", statistics.median(loop for loop, _ in pairs), unit="/s")
            report.add("service", statistics.median(rate for _, rate in pairs), unit="images/core-s")
            report.add("service ÷ in-process loop", statistics.median(rate / loop for loop, rate in pairs), 0.85)
            report.add("service ÷ in-process loop, least", min(rate / loop for loop, rate in pairs))
            report.add("service ÷ in-process loop, most", max(rate / loop for loop, rate in pairs))
            report.add("resident service and workers", resident_mb(pid), 400, "<=", "MB")


def _request(contents: Sequence[generation_pb2.ContentRef]) -> perceptual_hashing_pb2.HashMediaRequest:
    items = [perceptual_hashing_pb2.HashItem(id=number, content=content) for number, content in enumerate(contents)]
    return perceptual_hashing_pb2.HashMediaRequest(items=items)


@asynccontextmanager
async def _served(
    home: Path, contents: Sequence[generation_pb2.ContentRef]
) -> AsyncIterator[tuple[Callable[[], Awaitable[float]], int]]:
    """A running service: what measures images per CPU-second of it and its workers, and its process id."""
    port_file = home / "port"
    code = "from seawall.perceptual_hashing.service import main; main()"
    settings = {"SEAWALL_HOME": str(home), "SEAWALL_RPC_SERVER__PORT_FILE": str(port_file)}
    async with child(["-c", code], **settings) as process:
        while not port_file.exists():  # noqa: ASYNC110  a look is all there is
            await asyncio.sleep(0.05)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port_file.read_text().strip()}") as channel:
            call = channel.unary_unary(STAGE.method, request_serializer=lambda request: request.SerializeToString())
            batches = [_request(contents[first : first + BATCH]) for first in range(0, len(contents), BATCH)]
            waiting = asyncio.Semaphore(2)

            async def send(batch: perceptual_hashing_pb2.HashMediaRequest) -> None:
                async with waiting:
                    await call(batch, timeout=60)

            async def measure() -> float:
                began = cpu_seconds(process.pid)
                await asyncio.gather(*(send(batch) for batch in batches))
                return len(contents) / (cpu_seconds(process.pid) - began)

            await measure()
            yield measure, process.pid


@asynccontextmanager
async def _looping(home: Path) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Loops on every core: what measures their pictures per CPU-second, all at once, as the service keeps the cores
    busy: they share caches, and more."""
    settings = {"SEAWALL_HOME": str(home), "SEAWALL_DECODING__ISOLATED": "false"}
    arguments = ["-m", "tests.bench.hashing", str(home / "items")]
    async with AsyncExitStack() as stack:
        loops = [
            await stack.enter_async_context(child(arguments, True, **settings)) for _ in range(os.cpu_count() or 1)
        ]

        async def rate(loop: asyncio.subprocess.Process) -> float:
            assert loop.stdin is not None and loop.stdout is not None
            loop.stdin.write(b"again\n")
            return float(await loop.stdout.readline())

        async def rates() -> float:
            return statistics.fmean(await asyncio.gather(*map(rate, loops)))

        await rates()
        yield rates


def _score_in_process(path: str) -> None:
    """Pictures per CPU-second over all items, once for every line of standard input."""
    hashes = scorer.load(PerceptualHashingSettings())
    items = perceptual_hashing_pb2.HashMediaRequest.FromString(Path(path).read_bytes()).items
    for _ in sys.stdin:
        began = time.process_time()
        for item in items:
            hashes.score(item)
        print(len(items) / (time.process_time() - began), flush=True)


if __name__ == "__main__":
    _score_in_process(sys.argv[1])
