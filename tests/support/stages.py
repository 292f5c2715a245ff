"""Rooms for the fault suite, as processes: ``python -m tests.support.stages ROOM``.

    words, pictures    the real relay of a test stage: of the prompt, of each media item
    service            the real RPC server with a scorer that does what the generation's id says, for both stages
    aggregator         the real aggregator

A generation's id is "<order>:<anything>". "plain" is scored below 0.5 by a digest of the id, so that a reply matched to
the wrong item shows; the other orders are in `Obedient.score` and `_Mangling`.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.relay.settings import RelaySettings
from seawall.relay.stage import Stage, StageItem
from seawall.runtime.settings import RpcServerSettings

WORDS, PICTURES = "words", "pictures"
SERVICE, AGGREGATOR = "service", "aggregator"
#: The one label of both stages.
LABEL = "score"
#: Above what a topic takes, also compressed.
HUGE_BYTES = 1_500_000


def _folder() -> Path:
    """Where tests and rooms meet."""
    return Path(os.environ["KILL_MARKER"]).parent


def _note(name: str) -> None:
    """Add one to the count that is this file's size."""
    descriptor = os.open(_folder() / name, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(descriptor, b".")
    os.close(descriptor)


#: Tells the scorer which stage asks.
_OF_A_PICTURE = generation_pb2.SealedText(key_id=PICTURES)


def sent(stage: Stage, generation: generation_pb2.Generation, number: int = 0) -> list[Any]:
    """The items that a stage's request has for a generation, with ids from ``number``."""
    request = stage.request_type()
    if stage.items(generation):
        stage.add(request, generation, number)
    return list(request.items)


class TestStage:
    """One item for the prompt, or one for each media item; the scorer sees the generation's id alone."""

    __test__ = False
    method = "/seawall.api.prompt_scoring.v1.PromptScoringService/ScorePrompts"
    request_type: type[Any] = prompt_scoring_pb2.ScorePromptsRequest
    response_type: type[Any] = prompt_scoring_pb2.ScorePromptsResponse

    def __init__(self, name: str) -> None:
        self.name = name

    def items(self, generation: generation_pb2.Generation) -> Sequence[StageItem]:
        if self.name == WORDS:
            has_prompt = generation.HasField("prompt")
            return [StageItem("prompt", generation_pb2.NEXUS_ATTEMPT)] if has_prompt else []
        return [StageItem(media.item_id, media.nexus) for media in generation.media]

    def add(
        self, request: prompt_scoring_pb2.ScorePromptsRequest, generation: generation_pb2.Generation, number: int
    ) -> None:
        of_what = None if self.name == WORDS else _OF_A_PICTURE
        for position in range(number, number + len(self.items(generation))):
            request.items.add(id=position, generation_id=generation.generation_id, prompt=of_what)


def order_of(generation_id: str) -> str:
    return generation_id.partition(":")[0]


def plain_score(generation_id: str) -> float:
    """The score of every item of a generation that is to be allowed."""
    return hashlib.sha256(generation_id.encode()).digest()[0] / 512


class Obedient:
    """A scorer that does what the generation's id says."""

    def score(self, item: prompt_scoring_pb2.PromptItem) -> signal_pb2.ItemResult:
        result = signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_OK)
        order = order_of(item.generation_id)
        match order:
            case "block" | "late" if order == "block" or item.prompt == _OF_A_PICTURE:
                # "late": the prompt is harmless, the picture is not.
                result.labels.add(label=LABEL, score=0.99)
                return result
            case "huge":
                # Noise: no compression makes it fit.
                result.hashes.add(hash_type="noise", value=random.Random(item.generation_id).randbytes(HUGE_BYTES))
            case "raise":
                raise RuntimeError("this item is beyond the model")
            case "hang":
                threading.Event().wait()
            # The work itself: nothing waits for these sleeps but the batch they are part of.
            case "slow":
                time.sleep(0.02)
            case "slower":
                time.sleep(2.5)
            case "gated":
                _note("begun")
                while not (_folder() / "gate").exists():
                    time.sleep(0.01)
            case "die":
                from tests.support.kill_switch import kill_once

                kill_once()
            case "die-always":
                os.kill(os.getpid(), signal.SIGKILL)
        result.labels.add(label=LABEL, score=plain_score(item.generation_id))
        return result

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        digest = hashlib.sha256(b"obedient").digest()
        return [signal_pb2.Artefact(kind=signal_pb2.ARTEFACT_KIND_MODEL, name="obedient", version="1", sha256=digest)]


def mangle(request: prompt_scoring_pb2.ScorePromptsRequest, reply: prompt_scoring_pb2.ScorePromptsResponse) -> None:
    """Make of a good reply what the ids ask for; whatever they ask, its order is turned round."""
    orders = {item.id: order_of(item.generation_id) for item in request.items}
    replies = list(reversed(reply.replies))
    del reply.replies[:]
    for one in replies:
        order = orders[one.id]
        if order == "nan":
            one.result.labels[0].score = math.nan
        elif order == "above":
            one.result.labels[0].score = 1.5
        if order != "short":
            reply.replies.append(one)
        if order == "twice":
            reply.replies.append(one)
        elif order == "stranger":
            reply.replies.add(id=1_000_000 + one.id).result.status = signal_pb2.ITEM_STATUS_OK


def _serve() -> None:
    from seawall.runtime import rpc_server
    from seawall.runtime.batch_service import BatchService

    class Mangling(BatchService):
        async def _serve(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            reply = prompt_scoring_pb2.ScorePromptsResponse.FromString(await super()._serve(body, context))
            mangle(prompt_scoring_pb2.ScorePromptsRequest.FromString(body), reply)
            return reply.SerializeToString()

    class Settings(RelaySettings):
        rpc_server: RpcServerSettings = RpcServerSettings()

    server: Any = rpc_server
    server.BatchService = Mangling
    stage = TestStage(WORDS)
    rpc_server.run(SERVICE, Settings(), stage.method, stage.request_type, stage.response_type, Obedient)


def main(room: str) -> None:
    """Run one room until SIGTERM."""
    from seawall.local.supervisor import bind_to_parent

    bind_to_parent()
    if room == SERVICE:
        _serve()
        return
    from tests.support import kill_switch

    kill_switch.arm()
    if room == AGGREGATOR:
        from seawall.aggregator import service

        service.main()
    else:
        from seawall.relay.run import run

        run(TestStage(room))


if __name__ == "__main__":
    main(sys.argv[1])
