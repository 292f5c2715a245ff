"""Words that the fault tests share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from seawall.api.signal.v1 import signal_pb2
from tests.support.ledger import Ledger
from tests.support.mesh import Lane
from tests.support.stages import LABEL, plain_score

OK, ERROR = signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_ERROR


def ids(order: str, count: int, first: int = 0) -> list[str]:
    """Generations of one order: "plain:0", "plain:1", …"""
    return [f"{order}:{number}" for number in range(first, first + count)]


async def send(
    lane: Lane, generation_ids: Iterable[str], *, media: int = 0, partition: int | None = None, **fields: Any
) -> None:
    """Send one generation for each id, acknowledged.

    Args:
        partition: all to one, so that they may ride in one batch.
    """
    made = (lane.generation(one, media=media, **fields) for one in generation_ids)
    await lane.send(*made, partition=partition)


def expected(generation_ids: Iterable[str], **outcomes: str) -> dict[str, str]:
    """The outcome of each id by its order; ALLOW where none is given, BLOCK for "block"."""
    by_order = {"block": "BLOCK", **outcomes}
    return {one: by_order.get(one.partition(":")[0], "ALLOW") for one in generation_ids}


def statuses(ledger: Ledger, generation_id: str, stage: str) -> set[tuple[int, str]]:
    """(status, reason) of every item that a stage reported of a generation, in all attempts."""
    return {(item.status, item.reason) for signal in ledger.signals_of(generation_id, stage) for item in signal.items}


def measured_right(ledger: Ledger, generation_id: str, stage: str) -> bool:
    """Whether every signal of a stage about this generation holds its own score, and nothing else."""
    labels = [
        label
        for signal in ledger.signals_of(generation_id, stage)
        for item in signal.items
        if item.status == OK
        for label in item.labels
    ]
    return bool(labels) and all((one.label, one.score) == (LABEL, plain_score(generation_id)) for one in labels)
