"""The three stages as they are run: each service a process of its own, with real models, over a Unix socket."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seawall.api.generation.v1 import generation_pb2
from seawall.classification import stage as classification
from seawall.local import demo_bank, photographs
from seawall.local.models.install import install_demo
from seawall.local.samples import load_catalogue
from seawall.perceptual_hashing import stage as perceptual_hashing
from seawall.prompt_scoring import stage as prompt_scoring
from seawall.relay.stage import Example, Stage
from seawall.runtime.content import ContentStore
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import ContentSettings

#: A model is loaded and proven, and native code compiled, before a service is ready.
START_SECONDS = 90
STOP_SECONDS = 30
#: Items of a batch that is still worked on when its caller has been answered something else.
LABORIOUS_ITEMS = 64


@dataclass(frozen=True)
class Home:
    """$SEAWALL_HOME of the services under test, and what their callers need of it."""

    folder: Path
    sealer: Sealer
    content: ContentStore


@dataclass(frozen=True)
class Case:
    """A stage, and what the suite needs to know of it."""

    stage: Stage
    #: What the stage ships.
    examples: Sequence[Example]
    #: Generations of one item, which together are work for a while: no two alike, so that nothing known is used again.
    laborious: Sequence[generation_pb2.Generation]
    #: What the examples hold that must never be logged.
    secrets: Sequence[bytes]
    home: Home


@dataclass(frozen=True)
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    target: str
    stderr: Path


@contextmanager
def running(case: Case, **environment: str) -> Iterator[Service]:
    """``seawall run`` of the case's stage, ready."""
    name = case.stage.name
    # Sockets have short paths; the log and the ready file go with them.
    with tempfile.TemporaryDirectory(prefix="seawall-") as short:
        socket, ready, stderr = (Path(short, f"{name}.{kind}") for kind in ("sock", "ready", "stderr"))
        # A setting in the environment of whoever runs the tests must not change what they mean.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("SEAWALL_")}
        settings = {
            "SEAWALL_HOME": str(case.home.folder),
            "SEAWALL_READY_FILE": str(ready),
            "SEAWALL_PARENT_PID": str(os.getpid()),
            "SEAWALL_RPC_SERVER__UDS": str(socket),
            "SEAWALL_RPC_SERVER__LINGER_SECONDS": "0",
            "SEAWALL_TELEMETRY__LOG_LEVEL": "debug",
        }
        with stderr.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "seawall.cli", "run", name],
                env={**inherited, **settings, **environment},
                stdout=log,
                stderr=log,
            )
        try:
            _await_file(ready, process, stderr)
            yield Service(process, f"unix:{socket}", stderr)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _await_file(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(START_SECONDS * 20):
        if path.exists():
            return
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the service ended with {process.returncode} before it was ready:\n{log.read_text()}")
    pytest.fail(f"the service was not ready after {START_SECONDS} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def stage_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home of its own that shares wheels, compiled code and models with the user's."""
    shared = Path(os.environ.get("SEAWALL_CACHE") or Path.home() / ".seawall")
    (shared / "cache").mkdir(parents=True, exist_ok=True)
    install_demo(shared, lambda line: None)
    folder = tmp_path_factory.mktemp("stages")
    for name in ("cache", "models"):
        (folder / name).symlink_to(shared / name, target_is_directory=True)
    demo_bank.ensure(folder / "banks")
    prefix = (folder / "content").as_uri() + "/"
    return Home(
        folder,
        Sealer.load_or_create(folder / "keys" / "sealing.json"),
        ContentStore(ContentSettings(allowed_prefixes=[prefix])),
    )


def _prompt_scoring(home: Home) -> Case:
    sealer = home.sealer
    examples = prompt_scoring.examples(sealer)
    laborious = [
        generation_pb2.Generation(generation_id=name, attempt=1, prompt=sealer.seal(text, name, "prompt"))
        for name, text in (
            (f"laborious-{number}", f"a quiet harbour with {number} wooden boats under a pale evening sky, " * 20)
            for number in range(LABORIOUS_ITEMS)
        )
    ]
    secrets: set[bytes] = set()
    for example in examples:
        made = example.generation
        # One example's text is sealed for the generation that its name says, and moved to another.
        sealed_for = f"example-{example.name}"
        if made.HasField("prompt"):
            secrets |= _telling(sealer.open(made.prompt, sealed_for, "prompt"))
        if made.HasField("negative_prompt"):
            secrets |= _telling(sealer.open(made.negative_prompt, sealed_for, "negative_prompt"))
    return Case(prompt_scoring.STAGE, examples, laborious, sorted(secrets), home)


def _telling(text: str) -> set[bytes]:
    """A text, and its longer words: a part of a prompt in a log is as bad as the whole."""
    return {part.encode() for part in (text.strip(), *text.split()) if len(part) >= 8}


def _of_media(stage: Stage, make: Callable[[ContentStore], Sequence[Example]], home: Home) -> Case:
    examples = make(home.content)
    photograph = photographs.original(next(iter(load_catalogue().stand_ins)))
    laborious = []
    for number in range(LABORIOUS_ITEMS):
        # Decoders stop at the end that the format marks: the picture is the same, its digest is not.
        content = home.content.put(photograph + bytes((number,)), "image/png")
        media = generation_pb2.MediaItem(item_id="output/0", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, content=content)
        laborious.append(generation_pb2.Generation(generation_id=f"laborious-{number}", attempt=1, media=[media]))
    references = [media.content for example in examples for media in example.generation.media]
    secrets = {reference.uri.encode() for reference in references}
    for path in (home.folder / "content").glob("*/*"):
        secrets.add(path.read_bytes()[:32])
    return Case(stage, examples, laborious, sorted(secrets - {b""}), home)


_CASES: dict[str, Callable[[Home], Case]] = {
    "prompt_scoring": _prompt_scoring,
    "perceptual_hashing": lambda home: _of_media(perceptual_hashing.STAGE, perceptual_hashing.examples, home),
    "classification": lambda home: _of_media(classification.STAGE, classification.examples, home),
}


@pytest.fixture(scope="session", params=list(_CASES))
def case(request: pytest.FixtureRequest, stage_home: Home) -> Case:
    """Each stage in turn."""
    name: Any = request.param
    return _CASES[name](stage_home)


@pytest.fixture(scope="session")
def service(case: Case) -> Iterator[Service]:
    """The service of the stage in turn: one process for all tests that leave it running."""
    with running(case) as started:
        yield started
