"""Faults of actor_history: the real process, a real broker, exact counts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.core import identity
from seawall.runtime.broker import Output
from tests.support import ledger_rows
from tests.support.kafka import PATIENCE_SECONDS
from tests.support.mesh import Lane

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]

ACTORS = 40


class Standings:
    """What is sent to actor_history, and what comes of it. Use `watching`."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self.producer = lane.broker.producer()
        self.reader = lane.broker.reader([lane.names.actor_standing, lane.names.dead_letters])
        self.sent = 0
        self.overturned: set[int] = set()
        self.letters: set[str] = set()
        self._standings: dict[str, pb.ActorStanding] = {}

    @property
    def counts(self) -> dict[str, int]:
        return {actor: sum(reason.count for reason in one.reasons) for actor, one in self._standings.items()}

    @property
    def expected(self) -> dict[str, int]:
        standing = set(range(self.sent)) - self.overturned
        return Counter(f"actor-{number % ACTORS}" for number in standing)

    async def send(self, count: int, *, repeated: int = 0) -> None:
        """The REVIEWs of so many generations, of one actor in turn; then the last of them once more."""
        batch = [self._near_miss(number) for number in range(self.sent, self.sent + count)]
        # As the aggregator's own replay does.
        await self.producer.send([*batch, *batch[len(batch) - repeated :]])
        self.sent += count

    async def overturn(self, numbers: Iterable[int]) -> None:
        """A person allows these generations, some of which may not have been sent yet."""
        said = [self._word(number) for number in numbers]
        await self.producer.send(said)
        self.overturned.update(numbers)

    def _word(self, number: int) -> Output:
        about = decision_pb2.Decision.FromString(self._near_miss(number).value or b"")
        word = ledger_rows.word(about, decision_pb2.OUTCOME_ALLOW)
        return Output(self._lane.names.overrides, None, about.generation_id.encode(), word.SerializeToString())

    def _near_miss(self, number: int) -> Output:
        decision = decision_pb2.Decision(
            decision_id=identity.decision_id(f"g-{number}", 1, "p"),
            kind=decision_pb2.DECISION_KIND_JOINT,
            generation_id=f"g-{number}",
            tenant_id="t",
            actor_id=f"actor-{number % ACTORS}",
            outcome=decision_pb2.OUTCOME_REVIEW,
            decided_unix_nano=1_700_000_000_000_000_000 + number,
        )
        key = decision.generation_id.encode()
        return Output(self._lane.names.decisions, number % 2, key, decision.SerializeToString())

    async def until(self, total: int, set_aside: int = 0) -> None:
        """Wait until so many are counted, and so many dead letters written."""
        await self._until(lambda: sum(self.counts.values()) >= total and len(self.letters) >= set_aside)

    async def until_exact(self) -> None:
        """Wait until what stands is counted, and no more."""
        await self._until(lambda: self.counts == self.expected)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                for partition, records in (await self.reader.poll(max_records=5_000, timeout=0.2)).items():
                    for record in records:
                        if partition[0] == self._lane.names.dead_letters:
                            letter = dead_letter_pb2.DeadLetter.FromString(record.value or b"")
                            self.letters.add(letter.dead_letter_id)
                        else:
                            made = pb.ActorStanding.FromString(record.value or b"")
                            self._standings[made.actor_id] = made

    async def until_committed(self) -> None:
        """Wait until nothing would be read again: what counts as a gap, or as read twice, would hold the offsets."""
        names = self._lane.names
        reader = self._lane.broker.reader([names.decisions, names.overrides, names.actor_events])
        admin = self._lane.broker.admin()
        await reader.start()
        await admin.start()
        try:
            ends = {at: end for at, end in (await reader.end_offsets(reader.assignment())).items() if end}

            async def done() -> bool:
                committed = await admin.committed(f"{names.prefix}actor_history")
                return all(committed.get(at, 0) >= end for at, end in ends.items())

            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await done():  # noqa: ASYNC110  a look is all there is
                    await asyncio.sleep(0.1)
        finally:
            await admin.stop()
            await reader.stop()


@asynccontextmanager
async def watching(lane: Lane) -> AsyncIterator[Standings]:
    made = Standings(lane)
    await made.producer.start()
    await made.reader.start()
    try:
        yield made
    finally:
        await made.reader.stop()
        await made.producer.stop()


async def test_actor_history_is_killed(lane: Lane) -> None:
    """F31: nothing is lost and nothing counted twice, what a person overturned not at all; what cannot be read is set
    aside."""
    room = lane.run("actor_history")
    await room.ready()
    async with watching(lane) as seen:
        # Words on what is not decided yet, as it is where another topic is read faster.
        await seen.overturn(range(7, 4_000, 399))
        for kills in range(2):
            await seen.send(2_000, repeated=100)
            await seen.overturn(range(seen.sent - 2_000, seen.sent, 21))
            await seen.producer.send([Output(lane.names.decisions, 0, b"raw", b"\xff\xff")])
            await seen.until(seen.sent - 1_500)
            os.kill(room.pid, signal.SIGKILL)
            await room.died(kills + 1)
        await seen.until_exact()
        await room.ready()
        await seen.send(1)
        await seen.until(0, set_aside=2)
        await seen.until_exact()
        await seen.until_committed()
        assert seen.counts == seen.expected
        assert len(seen.letters) == 2


async def test_two_share_the_work_and_one_leaves_for_good(lane: Lane) -> None:
    """F31: partitions move, and their tables with them, in the middle of a backlog."""
    first = lane.run("actor_history", SESSION_TIMEOUT_SECONDS="6")
    await first.ready()
    async with watching(lane) as seen:
        await seen.send(2_000)
        await seen.until(200)
        home = lane.home / "another"
        second = lane.run("actor_history", name="another", HOME=str(home), SESSION_TIMEOUT_SECONDS="6")
        await second.ready()
        await seen.send(2_000, repeated=100)
        await seen.until(seen.sent - 1_500)
        await first.stop()
        await seen.send(2_000)
        await seen.until(seen.sent)
        await seen.until_committed()
        assert seen.counts == seen.expected
        assert not seen.letters
