"""What the simulation is worth: bugs of the kind it is there for, planted one at a time, and how soon it finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from seawall.aggregator.engine import Engine as Aggregator
from seawall.api.control.v1 import control_pb2
from seawall.core.errors import Retryable
from seawall.core.join import Join
from seawall.relay.engine import Engine as Relay
from seawall.relay.offsets import OffsetTracker
from tests.simulation.run import simulate

#: A thousand run in CI; a bug that so few do not find is one the suite would find by luck.
_SEEDS = 150

Plant = Callable[[pytest.MonkeyPatch], None]


def _done_before_the_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    produce = Relay._produce

    async def early(self: Any, outputs: Any, batch: Any) -> None:
        for work in batch:
            work.tracker.done(work.record.offset)
        await produce(self, outputs, [])
        self._in_flight -= len(batch)

    patch.setattr(Relay, "_produce", early)


def _a_poll_thrown_away(patch: pytest.MonkeyPatch) -> None:
    """As it was once: a full relay polls to stay in its group, and what a rebalance let through is dropped."""

    async def full(self: Any) -> None:
        self._consumer.pause(self._consumer.assignment())
        self._room.clear()
        if self._in_flight >= self._settings.max_in_flight:
            try:
                await asyncio.wait_for(self._room.wait(), timeout=self._settings.commit_seconds)
            except TimeoutError:
                with suppress(Retryable):
                    await self._consumer.poll(max_records=1, timeout=0)
        self._consumer.resume(self._consumer.assignment())

    patch.setattr(Relay, "_wait_for_room", full)


def _the_highest_offset_committed(patch: pytest.MonkeyPatch) -> None:
    """As a framework does whose watermark is not contiguous."""

    def done(self: Any, offset: int) -> None:
        self._watermark = max(self._watermark or 0, offset + 1)

    patch.setattr(OffsetTracker, "done", done)


def _settled_before_the_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    hand_over = Aggregator._hand_over

    async def early(self: Any, outbox: Any) -> None:
        for settle in outbox.settle:
            settle()
        outbox.settle.clear()
        await hand_over(self, outbox)

    patch.setattr(Aggregator, "_hand_over", early)


def _signals_forgotten_that_a_replay_needs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Join, "signal_watermark", lambda self: self._next_signal)


def _time_obeyed_before_it_is_written(patch: pytest.MonkeyPatch) -> None:
    """The clock decides, not the log: a replay may decide otherwise."""
    deadline = Aggregator._deadline

    def hasty(self: Any, joined: Any) -> Any:
        output = deadline(self, joined)
        written = control_pb2.JoinRecord.FromString(output.value or b"").deadline
        state = self._partitions[joined.position.partition]
        at = joined.position._replace(topic=self._signals, log_nanos=self._clock.now_nanos())
        self._hasty = state.join._route(written.generation_record.offset, None, at)
        return output

    watch = Aggregator._watch_time

    def obeyed(self: Any, outbox: Any) -> None:
        self._hasty = []
        watch(self, outbox)
        for state in self._partitions.values():
            self._follow(state, [one for one in self._hasty if one[0].position.partition == state.number], outbox)

    patch.setattr(Aggregator, "_deadline", hasty)
    patch.setattr(Aggregator, "_watch_time", obeyed)


def _a_hold_settled_without_its_next_attempt(patch: pytest.MonkeyPatch) -> None:
    plan = Aggregator._plan_rescan

    def forgetful(self: Any, state: Any, joined: Any) -> None:
        plan(self, state, joined)
        state.join.settle(joined.position.offset)

    patch.setattr(Aggregator, "_plan_rescan", forgetful)


def _work_given_up_still_counted(patch: pytest.MonkeyPatch) -> None:
    """A leak: what was taken back in a rebalance is counted as in flight for ever."""
    revoked = Relay.on_revoked

    async def leaky(self: Any, partitions: Any) -> None:
        waiting = len(self._pending)
        await revoked(self, partitions)
        self._in_flight += waiting - len(self._pending)

    patch.setattr(Relay, "on_revoked", leaky)


PLANTED: list[Plant] = [
    _done_before_the_acknowledgement,
    _a_poll_thrown_away,
    _the_highest_offset_committed,
    _settled_before_the_acknowledgement,
    _signals_forgotten_that_a_replay_needs,
    _time_obeyed_before_it_is_written,
    _a_hold_settled_without_its_next_attempt,
    _work_given_up_still_counted,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(simulate(seed).broken for seed in range(_SEEDS)), f"{_SEEDS} seeds did not find it"
