"""A real media service, as a process of the test's own, and what becomes of files that are sent to it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil

from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.classification.stage import STAGE as CLASSIFICATION
from seawall.perceptual_hashing import banks
from seawall.perceptual_hashing.stage import STAGE as HASHING
from tests.support import images, model_packs

STAGES: Mapping[str, Any] = {stage.name: stage for stage in (HASHING, CLASSIFICATION)}
#: The picture that the hashing service's bank lists.
LISTED = "coffee"


class MediaService:
    """A running service of one of the two media stages."""

    def __init__(self, stage: str, folder: Path, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self._stage = STAGES[stage]
        self._folder = folder
        self._process = process
        self._port = port
        self._log = log

    @property
    def workers(self) -> set[int]:
        """Process ids of the decoding workers: the children of the service's only child."""
        (helper,) = psutil.Process(self._process.pid).children()
        return {child.pid for child in helper.children() if child.status() != psutil.STATUS_ZOMBIE}

    def log(self) -> str:
        """What the service wrote so far."""
        return self._log.read_text()

    def peaks(self) -> tuple[int, list[int]]:
        """The most memory that was resident at once: of the service, and of each of its workers. Bytes."""
        return _peak(self._process.pid), [_peak(pid) for pid in self.workers]

    def send(self, files: Sequence[tuple[bytes, str]], timeout: float = 60.0) -> list[signal_pb2.ItemResult]:
        """The results of one batch of (bytes, declared media type), in its order."""
        request = self._stage.request_type()
        for number, (data, media_type) in enumerate(files):
            digest = hashlib.sha256(data)
            path = self._folder / digest.hexdigest()
            path.write_bytes(data)
            content = generation_pb2.ContentRef(
                uri=path.as_uri(), sha256=digest.digest(), media_type=media_type, size_bytes=len(data)
            )
            request.items.add(id=number, content=content)
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            call = channel.unary_unary(
                self._stage.method,
                request_serializer=self._stage.request_type.SerializeToString,
                response_deserializer=self._stage.response_type.FromString,
            )
            response = call(request, timeout=timeout, wait_for_ready=True)
        replies = {reply.id: reply.result for reply in response.replies}
        return [replies[number] for number in range(len(files))]


@contextmanager
def media_service(stage: str, root: Path, **settings: str) -> Iterator[MediaService]:
    """Start the service of a stage; settings as in the environment, without SEAWALL_."""
    content = root / "content"
    content.mkdir(parents=True)
    port_file, log = root / "port", root / "log"
    settings = {
        "CONTENT__ALLOWED_PREFIXES": f'["{content.as_uri()}/"]',
        "RPC_SERVER__PORT_FILE": str(port_file),
        "RPC_SERVER__LINGER_SECONDS": "0",
        **settings,
    }
    if stage == HASHING.name:
        _write_bank(root / "banks" / "stand-ins")
        settings["BANKS__FOLDER"] = str(root / "banks")
    else:
        settings["CLASSIFIERS"] = f'["{model_packs.write_pack(root / "red").path}"]'
    environment = os.environ | {f"SEAWALL_{name}": value for name, value in settings.items()}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from seawall.{stage}.service import main; main()"],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield MediaService(stage, content, process, _port(process, port_file, log), log)
    finally:
        process.kill()
        process.wait()


def _write_bank(folder: Path) -> None:
    card = {
        "name": folder.name,
        "source": "benign stand-ins",
        "version": "1",
        "category": "stand-in",
        "pipeline": "512",
        "radius": 31,
        "licence": "CC0-1.0",
    }
    banks.write(folder, card, banks.entries_of(LISTED, images.encode(images.photograph(LISTED), "PNG"), "512"))


def _port(process: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
    # The file is renamed into place once the service is ready; a look is all there is.
    while process.poll() is None:
        if port_file.exists():
            return int(port_file.read_text())
        time.sleep(0.02)
    raise AssertionError(f"the service ended before it served: {log.read_text()}")


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} is gone")
