"""What a stage tells the relay about itself. One contract suite (tests/contract/test_stages.py) runs every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2


class StageItem(NamedTuple):
    """One item of a generation that the stage can measure."""

    item_id: str
    nexus: generation_pb2.Nexus.ValueType


class StageReply(Protocol):
    """What every stage's RPC response has."""

    @property
    def replies(self) -> Sequence[signal_pb2.ItemReply]: ...
    @property
    def artefacts(self) -> Sequence[signal_pb2.Artefact]: ...
    @property
    def service_instance(self) -> str: ...
    @property
    def inference_start_unix_nano(self) -> int: ...
    @property
    def inference_end_unix_nano(self) -> int: ...


@dataclass(frozen=True)
class Example:
    """An example a stage ships: a generation and the statuses its items must get from the real service."""

    name: str
    generation: generation_pb2.Generation
    statuses: dict[str, signal_pb2.ItemStatus.ValueType]


class Stage(Protocol):
    """A stage: one batched RPC, and which items of a generation it measures."""

    #: Room name; also the consumer group's name and Signal.stage.
    name: str
    #: Fully qualified gRPC method, "/package.Service/Method".
    method: str
    #: The RPC's request and response classes; the request has one repeated field, ``items``.
    request_type: type[Any]
    response_type: type[Any]

    def items(self, generation: generation_pb2.Generation) -> Sequence[StageItem]:
        """The items to measure, none if there is nothing for this stage. Raises Poison on a malformed generation."""
        ...

    def add(self, request: Any, generation: generation_pb2.Generation, number: int) -> None:
        """Add to a request what ``items`` names, in its order, with ids from ``number``; called if that is anything.

        Into the request itself: an item that is made first and copied then costs three times as much.
        """
        ...
