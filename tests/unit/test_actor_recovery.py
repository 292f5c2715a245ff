"""The order in which actor_history takes its partitions up again."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.tables.recovery import Recovery
from faust.types import TP

from seawall.actor_history.app import member_of
from seawall.actor_history.recovery import OrderedRecovery, SeekingThread

STREAM, CHANGELOG = TP("decisions.v1", 0), TP("histories-changelog", 0)


class Told:
    """An application of which every part tells what it is asked to do."""

    consumer_generation_id = 3

    def __init__(self) -> None:
        self.order: list[str] = []
        self.conf = SimpleNamespace(stream_recovery_delay=0.0, broker_request_timeout=20.0)
        self.on_rebalance_complete = SimpleNamespace(send=self._nothing)
        self.flow_control = SimpleNamespace(resume=lambda: self.order.append("clear the queues"))
        self._fetcher = SimpleNamespace(maybe_start=self._nothing)
        self.assignor = SimpleNamespace(assigned_standbys=set)
        self.consumer = self

    async def _nothing(self) -> None:
        return None

    def assignment(self) -> set[TP]:
        return {STREAM, CHANGELOG}

    def resume_partitions(self, partitions: set[TP]) -> None:
        assert partitions == {STREAM}
        self.order.append("let go")

    async def perform_seek(self) -> None:
        await asyncio.sleep(0)
        self.order.append("seek")

    def resume_flow(self) -> None:
        return None

    def on_rebalance_end(self) -> None:
        self.order.append("end")


class Tables:
    """The one table, and what keeps it."""

    changelog_topics = frozenset({CHANGELOG.topic})

    def values(self) -> list[Any]:
        return [self]

    async def on_recovery_completed(self, active: set[TP], standby: set[TP]) -> None:
        return None

    def on_actives_ready(self) -> None:
        return None

    def on_standbys_ready(self) -> None:
        return None


async def recovered(kind: type[Recovery], generation: int = 3) -> list[str]:
    app: Any = Told()
    tables: Any = Tables()
    recovery = kind(app, tables)
    await recovery.on_recovery_completed(generation)
    assert recovery.completed.is_set() == (generation == 3)
    return list(app.order)


async def test_nothing_is_let_go_before_offsets_are_sought_and_queues_cleared() -> None:
    assert await recovered(OrderedRecovery) == ["seek", "clear the queues", "let go", "end"]


async def test_a_recovery_that_another_rebalance_has_overtaken_lets_nothing_go() -> None:
    assert await recovered(OrderedRecovery, generation=2) == []


async def test_fausts_own_order_still_needs_it() -> None:
    """Should this fail: seawall.actor_history.recovery may go (faust-streaming issue 596)."""
    assert await recovered(Recovery) == ["let go", "seek", "clear the queues", "end"]


class Kafka:
    """A client whose fetch lasts until ``comes`` is set; the stream has no committed offset, or one."""

    _closed = False

    def __init__(self, committed: int | None) -> None:
        self.order: list[str] = []
        self.comes = asyncio.Event()
        self._committed = committed

    @property
    def _fetcher(self) -> Any:
        subscriptions = SimpleNamespace(fetch_context=nullcontext)
        return SimpleNamespace(_closed=False, _subscriptions=subscriptions, fetched_records=self._records)

    async def _records(self, *_: Any, **__: Any) -> dict[TP, list[int]]:
        await self.comes.wait()
        self.order.append("fetched")
        return {}

    async def seek_to_committed(self) -> dict[TP, int | None]:
        self.order.append("committed")
        return {STREAM: self._committed, CHANGELOG: None}

    async def seek_to_beginning(self, *partitions: TP) -> None:
        assert partitions == (STREAM,), "tables are read on from where they are"
        self.order.append("beginning")


@pytest.mark.parametrize("committed", [7, None])
async def test_offsets_are_sought_when_no_fetch_is_on_its_way(committed: int | None) -> None:
    kafka: Any = Kafka(committed)
    thread: Any = SeekingThread.__new__(SeekingThread)
    thread._one_at_a_time = asyncio.Lock()
    thread.consumer = SimpleNamespace(flow_active=True)
    thread.app = SimpleNamespace(tables=Tables())
    thread._consumer = kafka
    fetch = asyncio.ensure_future(thread._fetch_records(kafka, {STREAM}, timeout=1.0))
    await asyncio.sleep(0)
    seek = asyncio.ensure_future(thread._seek())
    for _ in range(10):
        await asyncio.sleep(0)
    assert kafka.order == []
    kafka.comes.set()
    assert await seek == {STREAM: committed, CHANGELOG: None}
    await fetch
    # What has no offset yet may have been fetched and put aside as well.
    assert kafka.order == ["fetched", "committed", *(["beginning"] if committed is None else [])]


def test_whoever_has_the_folder_is_the_member(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = member_of(tmp_path)
    assert member_of(tmp_path) == first
    assert member_of(tmp_path / "other") != first
    assert first.startswith("actor_history-")
    (tmp_path / "member").write_text("")  # as a loss of power may leave it
    assert member_of(tmp_path) not in ("", first)
