"""What cannot be read from the ledger: how the rooms are, and where the topics end. Asked every few seconds, beside the
pages, which show the last answer: a room that hangs makes no page wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from seawall.console.records import Ends
from seawall.console.shapes import RoomNow
from seawall.core.errors import SeawallError
from seawall.runtime.broker import TopicPartition

_MAX_ANSWER: Final = 4 * 1024 * 1024
_MAX_ROOMS: Final = 200
#: Answers older than so many rounds are none.
_STALE_ROUNDS: Final = 4

READY: Final = "moderation_ready_ratio"
HALTED: Final = "moderation_stream_halted_ratio"
LAG: Final = "moderation_stream_lag_seconds"
WATERMARK: Final = "moderation_stream_watermark_age_seconds"


class Rooms(Protocol):
    """Tells how the rooms are. The page *Now* needs no more of them."""

    async def look(self) -> list[RoomNow]: ...


class PrometheusRooms:
    """Rooms by their Prometheus endpoints.

    Args:
        addresses: by room; "/metrics" is added where an address has no path.
        run_folder: where rooms of a mesh on this machine write ``<room>.http``, "host:port".
    """

    def __init__(self, addresses: Mapping[str, str], run_folder: Path, *, timeout: float) -> None:
        self._addresses = dict(addresses)
        self._run_folder = run_folder
        self._client = httpx2.AsyncClient(timeout=timeout, follow_redirects=False, trust_env=False)

    async def look(self) -> list[RoomNow]:
        """Every room, by name."""
        addresses = {**await asyncio.to_thread(self._found_here), **self._addresses}
        names = sorted(addresses)[:_MAX_ROOMS]
        return list(await asyncio.gather(*(self._ask(name, addresses[name]) for name in names)))

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.aclose()

    def _found_here(self) -> dict[str, str]:
        found = {}
        for file in sorted(self._run_folder.glob("*.http"))[:_MAX_ROOMS]:
            try:
                found[file.stem] = f"http://{file.read_text(encoding='ascii').strip()}"
            except (OSError, UnicodeDecodeError):
                continue  # It has just stopped.
        return found

    async def _ask(self, name: str, address: str) -> RoomNow:
        url = address if address.count("/") > 2 and not address.endswith("/") else f"{address.rstrip('/')}/metrics"
        try:
            async with self._client.stream("GET", url) as answer:
                answer.raise_for_status()
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _MAX_ANSWER:
                        return RoomNow(room=name, ready=None)
        except (httpx2.HTTPError, httpx2.InvalidURL):
            return RoomNow(room=name, ready=None)
        return await asyncio.to_thread(read_metrics, name, body.decode("utf-8", "replace"))


def read_metrics(name: str, text: str) -> RoomNow:
    """A room from what its endpoint says; what it does not say is None, and a room that answers is ready unless it says
    that it is not."""
    ready, halted = True, ""
    lag: list[float] = []
    watermark: list[float] = []
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == READY:
                    ready = sample.value >= 1
                elif sample.name == HALTED and sample.value >= 1:
                    halted = sample.labels.get("error_type", "") or "HALTED"
                elif sample.name == LAG:
                    lag.append(sample.value)
                elif sample.name == WATERMARK:
                    watermark.append(sample.value)
    except ValueError:
        return RoomNow(room=name, ready=None)
    return RoomNow(
        room=name,
        ready=ready,
        lag_seconds=max(lag, default=None),
        watermark_seconds=max(watermark, default=None),
        halted=halted,
    )


class Watch:
    """Looks again and again, until it is cancelled; the last answers are its attributes."""

    def __init__(self, rooms: Rooms, ends: Ends, *, every: float, timeout: float) -> None:
        self._rooms = rooms
        self._ends = ends
        self._every = every
        self._timeout = timeout
        self._rooms_at = self._ends_at = float("-inf")
        self._last_rooms: Sequence[RoomNow] = ()
        self._last_ends: Mapping[TopicPartition, int] = {}

    @property
    def rooms(self) -> Sequence[RoomNow]:
        """The rooms; none while nothing is known of them."""
        return self._last_rooms if self._is_fresh(self._rooms_at) else ()

    @property
    def ends(self) -> Mapping[TopicPartition, int] | None:
        """Where the topics end; None while Kafka does not say."""
        return self._last_ends if self._is_fresh(self._ends_at) else None

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Once. Whatever fails is None afterwards, and asked again."""
        await asyncio.gather(self._look_at_rooms(), self._look_at_ends())

    async def _look_at_rooms(self) -> None:
        self._last_rooms = await self._rooms.look()
        self._rooms_at = time.monotonic()

    async def _look_at_ends(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                self._last_ends = await self._ends.look()
        except (TimeoutError, SeawallError):
            self._ends_at = float("-inf")
        else:
            self._ends_at = time.monotonic()

    def _is_fresh(self, at: float) -> bool:
        return time.monotonic() - at < self._every * _STALE_ROUNDS + self._timeout
