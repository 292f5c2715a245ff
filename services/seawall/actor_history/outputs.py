"""What the agents write, beside the table's own changelog: a batch at a time, acknowledged before the next is taken.

Through the producer that the other rooms have: Faust's own costs several objects and a callback a record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from mode import Service

from seawall.core.errors import Retryable
from seawall.relay.observe import StreamObserver
from seawall.runtime.broker import Broker, Output

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0


class Outputs(Service):
    """Sends; while the broker is away nothing moves, and nothing is lost."""

    abstract = False

    def __init__(self, broker: Broker, observer: StreamObserver) -> None:
        super().__init__()
        self._producer = broker.producer()
        self._observer = observer
        self._running = False

    async def on_stop(self) -> None:
        if self._running:
            self._running = False
            await self._producer.stop()

    async def send(self, outputs: Sequence[Output]) -> None:
        """Return once all are acknowledged. Raises Fatal where no later try would be better."""
        if not outputs:
            return
        pause, refused = _FIRST_PAUSE, False
        while True:
            try:
                if not self._running:
                    await self._producer.start()
                    self._running = True
                await self._producer.send(outputs)
                break
            except Retryable as error:
                refused = True
                self._observer.ready(False)
                self._observer.event("produce_failed", reason=error.reason, records=len(outputs))
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        if refused:
            self._observer.ready(True)
