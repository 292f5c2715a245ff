"""What cannot be read from the ledger: how the rooms are, and where the topics end. Asked every few seconds, beside the
pages, which show the last answer: a room that hangs makes no page wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from seawall.console.records import Ends
from seawall.console.shapes import RoomNow
from seawall.core.errors import SeawallError
from seawall.oncall.rooms import TOPIC_LABEL, Answer, ask, named
from seawall.runtime.broker import TopicPartition
from seawall.runtime.prometheus import scraped

_MAX_ROOMS: Final = 200
#: Answers older than so many rounds are none.
_STALE_ROUNDS: Final = 4


class Rooms(Protocol):
    """Tells how the rooms are. The page *Now* needs no more of them."""

    async def look(self) -> list[RoomNow]: ...


class AskedRooms:
    """Rooms by their own endpoints, as `seawall status` asks them.

    Args:
        addresses: "host:port" by room; a host of several addresses is several instances.
        run_folder: where rooms of a mesh on this machine write ``<room>.http``, "host:port".
    """

    def __init__(self, addresses: Mapping[str, Sequence[str]], run_folder: Path, *, timeout: float) -> None:
        self._addresses = addresses
        self._run_folder = run_folder
        self._timeout = timeout

    async def look(self) -> list[RoomNow]:
        """Every instance of every room, by name."""
        here = {**await asyncio.to_thread(self._found_here), **self._addresses}
        answers = await ask(named(here)[:_MAX_ROOMS], self._timeout)
        return sorted(map(room_of, answers), key=lambda one: (one.room, one.instance))

    def _found_here(self) -> dict[str, Sequence[str]]:
        found: dict[str, Sequence[str]] = {}
        for file in sorted(self._run_folder.glob("*.http"))[:_MAX_ROOMS]:
            try:
                found[file.stem] = [file.read_text(encoding="ascii").strip()]
            except (OSError, UnicodeDecodeError):
                continue  # It has just stopped.
        return found


def room_of(answer: Answer) -> RoomNow:
    """A room from what it answered; what it does not say is None."""
    if answer.fault:
        return RoomNow(room=answer.room, ready=None, why=answer.fault)
    halted = answer.by(scraped("moderation.stream.halted"), "error_type")
    return RoomNow(
        room=answer.room,
        instance=str(answer.document.get("instance", "")),
        ready=bool(answer.document.get("ready")),
        why=str(answer.document.get("why", "")),
        lag_seconds=max(answer.by(scraped("moderation.stream.lag"), TOPIC_LABEL).values(), default=None),
        watermark_seconds=max(
            answer.by(scraped("moderation.stream.watermark.age"), TOPIC_LABEL).values(), default=None
        ),
        clock_ahead_seconds=round(answer.ahead, 1) if answer.clock_is_off else None,
        halted=next((reason or "HALTED" for reason, value in halted.items() if value >= 1), ""),
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
