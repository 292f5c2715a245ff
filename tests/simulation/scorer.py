"""A scorer behind a network: late, silent, overloaded, wrong, or right."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Poison, Retryable
from seawall.runtime.telemetry import TraceContext
from tests.support.stages import Obedient, order_of

Reply = prompt_scoring_pb2.ScorePromptsResponse
Request = prompt_scoring_pb2.ScorePromptsRequest


@dataclass
class ScorerFaults:
    """How often what goes wrong, each from 0 to 1. All zero: a scorer that works."""

    slow: float = 0.0
    hang: float = 0.0
    unavailable: float = 0.0
    overloaded: float = 0.0
    refused: float = 0.0
    #: Of one item of a reply: it is missing, no number, answered twice, or failed.
    bad_reply: float = 0.0


class Scorer:
    """One stage's service, as its relay calls it."""

    def __init__(self, random: Random, now: Callable[[], int]) -> None:
        self.faults = ScorerFaults()
        self._random = random
        self._now = now
        self._obedient = Obedient()

    async def __call__(self, request: Any, *, timeout: float, wait_for_ready: bool, context: TraceContext) -> Reply:
        start = self._now()
        chance, faults = self._random.random(), self.faults
        takes = self._random.uniform(0.005, 0.05)
        if chance < faults.unavailable:
            raise Retryable("UNAVAILABLE", "no connection")
        if (chance := chance - faults.unavailable) < faults.overloaded:
            raise Retryable("RESOURCE_EXHAUSTED", "one batch too many")
        if (chance := chance - faults.overloaded) < faults.hang:
            takes = math.inf
        elif (chance := chance - faults.hang) < faults.slow:
            takes = self._random.uniform(0.5, 8.0)
        await asyncio.sleep(min(takes, timeout))
        if takes >= timeout:
            raise Retryable("DEADLINE_EXCEEDED", "it took too long")
        if self._random.random() < faults.refused or any(order_of(i.generation_id) == "poison" for i in request.items):
            raise Poison("INVALID_ARGUMENT", "an item is beyond the service")
        return self._answer(request, start)

    def _answer(self, request: Request, start: int) -> Reply:
        reply = Reply(service_instance="scorer", inference_start_unix_nano=start, inference_end_unix_nano=self._now())
        for item in request.items:
            bad = self._random.random() < self.faults.bad_reply
            kind = self._random.randrange(4) if bad else -1
            if kind == 0:
                continue
            result = self._obedient.score(item)
            if kind == 1:
                result.labels[0].score = math.nan
            elif kind == 2:
                result = signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_ERROR, reason="INTERNAL")
            for _ in range(1 + (kind == 3)):
                reply.replies.add(id=item.id, work_nanos=1).result.CopyFrom(result)
        reply.replies.sort(key=lambda one: (one.id * 7) % 11)
        return reply
