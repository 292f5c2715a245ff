"""The broker seam with aiokafka: the only package that imports it."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.runtime.broker import RebalanceListener
from seawall.runtime.kafka.admin import KafkaAdmin
from seawall.runtime.kafka.consumer import KafkaConsumer
from seawall.runtime.kafka.producer import KafkaProducer
from seawall.runtime.settings import KafkaSettings

__all__ = ["KafkaBroker"]


class KafkaBroker:
    """A ``runtime.broker.Broker``. Clients connect when they start, each with its own connections."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        instance: str | None = None,
        listener: RebalanceListener | None = None,
        commits: bool = True,
    ) -> KafkaConsumer:
        return KafkaConsumer(self._settings, topics, group=group, instance=instance, listener=listener, commits=commits)

    def reader(self, topics: Sequence[str], *, from_end: bool = False) -> KafkaConsumer:
        return KafkaConsumer(self._settings, topics, from_end=from_end)

    def producer(self) -> KafkaProducer:
        return KafkaProducer(self._settings)

    def admin(self) -> KafkaAdmin:
        return KafkaAdmin(self._settings)
