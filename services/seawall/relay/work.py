"""One generation on its way through a relay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.api.generation.v1 import generation_pb2
from seawall.relay.offsets import OffsetTracker
from seawall.relay.stage import StageItem
from seawall.runtime.broker import Record


@dataclass(slots=True)
class Work:
    """A record that was read, what the stage measures of it, and how far that has come."""

    record: Record
    #: Of the record's partition.
    tracker: OffsetTracker
    generation: generation_pb2.Generation
    items: Sequence[StageItem]
    #: When it was read: Unix nanoseconds.
    received: int
    #: When its budget ends, on the monotonic clock.
    budget_end: float
    #: RPCs that it was part of.
    attempts: int = 0
