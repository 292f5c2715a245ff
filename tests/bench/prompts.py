"""Prompt scoring: views and rules at 2,000 patterns, the service against the same work in one process, call latency.

Prompts are ordinary sentences of 200 characters. The 2,000 patterns are the bundled packs and made-up words. Rates are
per core-second of CPU. The ceiling of the service is one thread that makes the views, matches, tokenises and runs
onnxruntime, and nothing else: no gRPC, no sealing, no messages. Service and ceiling take turns on the same prompts.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import mean, median, quantiles

import yaml

from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.local.models.install import install_demo
from seawall.prompt_scoring import normalise, scorer, term_packs
from seawall.prompt_scoring.detection import detect
from seawall.prompt_scoring.settings import PromptScoringSettings
from seawall.prompt_scoring.stage import STAGE
from seawall.prompt_scoring.term_set import TermSet
from seawall.prompt_scoring.text_scorer import Reading
from seawall.runtime.rpc_client import StageClient
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import RpcClientSettings, seawall_home
from tests.bench.harness import Report, child, cpu_seconds, resident_mb, say, until

PATTERNS = 2_000
CHARACTERS = 200
PROMPTS = 2_000
ROUNDS = 5
SERVICE_PROMPTS = 512
SERVICE_ROUNDS = 4
BATCH = 64
CALLS = 400

Client = StageClient[prompt_scoring_pb2.ScorePromptsRequest, prompt_scoring_pb2.ScorePromptsResponse]

_TEXT = """a quiet harbour at dawn with wooden boats and soft light on the water gulls above pier distant hills in mist
muted colours market street after rain lanterns cobblestones red bicycle against wall autumn leaves pine forest bowl of
fruit city skyline night steam train crossing stone bridge wide angle lens grain film detailed warm tones"""
_WORDS = _TEXT.split()
_SYLLABLES = ("ba", "ko", "ri", "tan", "mel", "sor", "vid", "pra", "lun", "zek", "qua", "fim")


async def run(report: Report) -> None:
    """Measure views and rules, then the service."""
    with tempfile.TemporaryDirectory(prefix="seawall-bench-") as folder:
        _rules(report, Path(folder))
        install_demo(seawall_home(), say)
        await _service(report, Path(folder))


# ---- views and rules -------------------------------------------------------------------------------------------------


def prompts(count: int, seed: int) -> list[str]:
    """Ordinary text of about 200 characters, all different."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        words: list[str] = []
        while sum(map(len, words)) + len(words) < CHARACTERS:
            words.append(chance.choice(_WORDS) + chance.choice(("", "", "", "", ",")))
        made.append(" ".join(words)[:CHARACTERS].rpartition(" ")[0])
    return made


def _rules(report: Report, folder: Path) -> None:
    packs = [term_packs.load(bundled) for bundled in term_packs.bundled()]
    have = sum(len(pack.terms) for pack in packs)
    packs.append(_made_up(folder / "made-up", PATTERNS - have))
    terms = TermSet(packs)
    report.add("patterns", sum(len(pack.terms) for pack in packs))
    plain = [prompt for prompt in prompts(PROMPTS, 1) if not _found(prompt, terms)]

    def rate(name: str, disguise: Callable[[str], str], target: float | None = None) -> float:
        texts = [disguise(prompt) for prompt in plain]
        made = mean(len(normalise.views(text, terms.spelling)) for text in texts[:50])
        value = _rate(lambda text: detect(text, "", terms, around=4, max_pairs=4), texts)
        report.add(f"{name} ({made:.0f} views)", value, target, unit="prompts/core-s")
        return value

    rate("plain ASCII that hits nothing", str, 100_000)
    rate("with a name and figures", lambda text: f"{text} Zeiss 35mm f/16")
    rates = [rate(name, disguise) for name, disguise in _DISGUISES.items()]
    # As many of each: the rate of the mixed stream.
    report.add("each of these disguises as often", len(rates) / sum(1 / value for value in rates), 5_000)
    rate("every disguise in one prompt", _everything, 5_000)


def _found(prompt: str, terms: TermSet) -> bool:
    return any(terms.hits(view, prompt) for view in normalise.views(prompt, terms.spelling))


def _rate(work: Callable[[str], object], texts: Sequence[str]) -> float:
    """Texts per second of this thread's CPU: the median of some rounds."""
    rates = []
    for _ in range(ROUNDS + 1):
        began = time.thread_time()
        for text in texts:
            work(text)
        rates.append(len(texts) / (time.thread_time() - began))
    return median(rates[1:])


def _made_up(folder: Path, count: int) -> term_packs.TermPack:
    """A pack of patterns in the shapes that real ones have, of words that are none."""
    chance = random.Random(2)

    def word() -> str:
        return "".join(chance.choice(_SYLLABLES) for _ in range(chance.randint(2, 4)))

    shapes: tuple[Callable[[], str], ...] = (
        lambda: f"{word()}s?",
        lambda: f"{word()}(?:ed|ing|s)? (?:the |a )?{word()}",
        lambda: f"(?:{word()}|{word()}) (?:[a-z]+ ){{0,2}}{word()}",
        lambda: f"{word()} ?{word()}",
    )
    folder.mkdir()
    terms = [shapes[number % len(shapes)]() for number in range(count)]
    (folder / "coercion.yaml").write_text(yaml.safe_dump({"concept": "coercion", "terms": terms}), encoding="utf-8")
    card = {"name": folder.name, "version": "1", "language": "en", "licence": "Apache-2.0", "files": {}}
    (folder / "pack.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    return term_packs.stamp(folder)


def _spaced(text: str) -> str:
    return " ".join(text[:40]) + text[40:]


_DISGUISES: dict[str, Callable[[str], str]] = {
    "zero-width": lambda text: "\u200b".join(text),
    "lookalikes": lambda text: text.translate(str.maketrans("aeo", "аео")),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in text),
    "figures for letters": lambda text: text.translate(str.maketrans("aeio", "4310")),
    "spaced out": _spaced,
    "repeats": lambda text: text.replace("e", "eeee"),
    "misspelt": lambda text: text.replace("er", "re").replace("in", "ni"),
    "base64": lambda text: f"{text[:130]} {base64.b64encode(text[130:].encode()).decode()}",
    "percent": lambda text: text.replace("a", "%61"),
}


def _everything(text: str) -> str:
    """Every disguise on a part of the text, so that every kind of view is made; no longer than before."""
    parts = [text[at : at + 18] for at in range(0, 180, 18)]
    hidden = base64.b64encode(parts[0].encode()).decode()
    return " ".join(
        (
            hidden,
            "\u200b".join(parts[1][:8]),
            parts[2].translate(str.maketrans("aeo", "аео")),
            parts[3].translate(str.maketrans("aeio", "4310")),
            " ".join(parts[4][:6]),
            parts[5].replace("e", "eee"),
            parts[6].replace("er", "re").replace("in", "ni"),
            "-".join(parts[7].split()),
            parts[8],
        )
    )[:CHARACTERS]


# ---- the service -----------------------------------------------------------------------------------------------------


class _Ceiling:
    """Views, rules, tokeniser and onnxruntime on one thread."""

    def __init__(self, settings: PromptScoringSettings) -> None:
        self._settings = settings
        self._artefacts = scorer.load_artefacts(settings)

    def score(self, prompt: str) -> None:
        settings, artefacts = self._settings, self._artefacts
        found = detect(prompt, "", artefacts.terms, around=settings.around_words, max_pairs=settings.max_pairs)
        reading = Reading(normalise.visible_text(prompt), "", (), found)
        for text_scorer in artefacts.text_scorers:
            text_scorer.score(reading)

    def rate(self, texts: Sequence[str]) -> float:
        """Prompts per second of CPU."""
        began = time.thread_time()
        for text in texts:
            self.score(text)
        return len(texts) / (time.thread_time() - began)

    def seconds(self, prompt: str) -> float:
        """One prompt by the wall clock."""
        began = time.perf_counter()
        self.score(prompt)
        return time.perf_counter() - began


class _Service:
    def __init__(self, pid: int, client: Client, sealer: Sealer) -> None:
        self.pid = pid
        self.client = client
        self._sealer = sealer
        self._numbers = itertools.count()

    def request(self, texts: Sequence[str]) -> prompt_scoring_pb2.ScorePromptsRequest:
        request = prompt_scoring_pb2.ScorePromptsRequest()
        for number, text in enumerate(texts):
            name = f"bench-{next(self._numbers)}"
            request.items.add(id=number, generation_id=name, prompt=self._sealer.seal(text, name, "prompt"))
        return request

    async def call(self, request: prompt_scoring_pb2.ScorePromptsRequest) -> float:
        """One RPC, every prompt of which must be scored. Its seconds by the wall clock."""
        began = time.perf_counter()
        response = await self.client.call(request, 30, wait_for_ready=True)
        seconds = time.perf_counter() - began
        statuses = {reply.result.status for reply in response.replies}
        if statuses != {signal_pb2.ITEM_STATUS_OK} or len(response.replies) != len(request.items):
            raise RuntimeError(f"not every prompt was scored: {statuses}")
        return seconds

    async def rate(self, texts: Sequence[str]) -> float:
        """Prompts per second of CPU of the service's process, two batches in flight."""
        requests = iter([self.request(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)])

        async def caller() -> None:
            for request in requests:
                await self.call(request)

        before = cpu_seconds(self.pid)
        await asyncio.gather(caller(), caller())
        return len(texts) / (cpu_seconds(self.pid) - before)


async def _service(report: Report, home: Path) -> None:
    # Every prompt is to cost what a new one does.
    ceiling = _Ceiling(PromptScoringSettings(cache_entries=0))
    texts = prompts(SERVICE_PROMPTS, 3)
    async with _started(home) as service:
        ceiling.rate(texts[:BATCH])
        await service.rate(texts[: 2 * BATCH])
        ceilings, services = [], []
        for _ in range(SERVICE_ROUNDS):
            ceilings.append(await asyncio.to_thread(ceiling.rate, texts))
            services.append(await service.rate(texts))
        report.add("views + tokeniser + onnxruntime, in process", median(ceilings), unit="prompts/core-s")
        report.add("service process", median(services), unit="prompts/core-s")
        report.add("service / in process", median(a / b for a, b in zip(services, ceilings, strict=True)), 0.9)
        works, calls = [], []
        for text in texts[:CALLS]:
            works.append(await asyncio.to_thread(ceiling.seconds, text))
            calls.append(await service.call(service.request([text])))
        work, call = quantiles(works, n=100), quantiles(calls, n=100)
        report.add("in-process work, p50", work[49] * 1000, unit="ms")
        report.add("in-process work, p99", work[98] * 1000, unit="ms")
        report.add("single-prompt call, p50", call[49] * 1000, unit="ms")
        report.add("single-prompt call, p99", call[98] * 1000, unit="ms")
        report.add("p99 of a call / p99 of the work", call[98] / work[98], 2, "<=")
        report.add("p99 of a call / p50 of the work", call[98] / work[49])
        report.add("resident", resident_mb(service.pid), unit="MB")


@asynccontextmanager
async def _started(home: Path) -> AsyncIterator[_Service]:
    port_file, keyset = home / "port", home / "keys.json"
    environment = {
        "SEAWALL_RPC_SERVER__PORT_FILE": str(port_file),
        "SEAWALL_RPC_SERVER__WORKERS": "1",
        "SEAWALL_SEALING__KEYSET": str(keyset),
        "SEAWALL_CACHE_ENTRIES": "0",
        "SEAWALL_TELEMETRY__LOG_LEVEL": "error",
    }
    sealer = Sealer.load_or_create(keyset)
    async with child(["-m", "seawall.cli", "run", "prompt_scoring"], **environment) as process:
        await until(port_file.exists, timeout=60, what="the service")
        client: Client = StageClient(
            RpcClientSettings(target=f"ipv4:127.0.0.1:{port_file.read_text().strip()}", timeout_seconds=30),
            STAGE.method,
            prompt_scoring_pb2.ScorePromptsRequest,
            prompt_scoring_pb2.ScorePromptsResponse,
        )
        try:
            yield _Service(process.pid, client, sealer)
        finally:
            await client.close()
