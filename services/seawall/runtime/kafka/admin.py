"""Topic administration with aiokafka."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from seawall.core.errors import Fatal, Retryable
from seawall.runtime.broker import Replicas, TopicPartition, TopicSpec
from seawall.runtime.kafka.connection import BROKER_ERRORS, client_options, meaning, start_failure
from seawall.runtime.settings import KafkaSettings

_VISIBLE_POLL_SECONDS = 0.05
_COORDINATOR_ERRORS = (
    kafka_errors.GroupCoordinatorNotAvailableError,
    kafka_errors.GroupLoadInProgressError,
    kafka_errors.NotCoordinatorForGroupError,
)


class KafkaAdmin:
    """A ``runtime.broker.Admin``."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._timeout = settings.request_timeout_ms / 1000
        self._client: Any = None

    async def start(self) -> None:
        client = AIOKafkaAdminClient(**client_options(self._settings))
        try:
            await client.start()
        except BROKER_ERRORS as error:
            await client.close()
            raise await start_failure(self._settings, error, "connect to administer topics") from error
        self._client = client

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def partitions(self, topics: Collection[str]) -> Mapping[str, int]:
        # All topics are asked for, since naming an absent one would create it where the broker creates by itself.
        try:
            async with asyncio.timeout(self._timeout):
                described = await self._started().describe_topics()
        except BROKER_ERRORS as error:
            raise meaning(error, "list topics") from error
        return {topic["topic"]: len(topic["partitions"]) for topic in described if topic["topic"] in topics}

    async def configs(self, topics: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        try:
            async with asyncio.timeout(self._timeout):
                responses = await self._started().describe_configs(resources)
        except BROKER_ERRORS as error:
            raise meaning(error, "read the topics' configuration") from error
        found: dict[str, Mapping[str, str]] = {}
        for response in responses:
            for code, _message, _type, name, entries in response.resources:
                if code:
                    raise meaning(kafka_errors.for_code(code)(), f"read the configuration of {name}")
                found[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
        return found

    async def committed(self, group: str) -> Mapping[TopicPartition, int]:
        try:
            async with asyncio.timeout(self._timeout):
                found = await self._group_offsets(group)
        except BROKER_ERRORS as error:
            raise meaning(error, f"read the offsets of group {group}") from error
        return {TopicPartition(*partition): at.offset for partition, at in found.items() if at.offset >= 0}

    async def _group_offsets(self, group: str) -> Mapping[Any, Any]:
        while True:
            try:
                found: Mapping[Any, Any] = await self._started().list_consumer_group_offsets(group)
                return found
            except _COORDINATOR_ERRORS:
                # The first group of a cluster has none until the broker has made its topic of offsets.
                await asyncio.sleep(_VISIBLE_POLL_SECONDS)

    async def replicas(self, topics: Collection[str]) -> Mapping[TopicPartition, Replicas]:
        try:
            async with asyncio.timeout(self._timeout):
                described = await self._started().describe_topics()
        except BROKER_ERRORS as error:
            raise meaning(error, "list topics") from error
        return {
            TopicPartition(topic["topic"], one["partition"]): Replicas(len(one["replicas"]), len(one["isr"]))
            for topic in described
            if topic["topic"] in topics
            for one in topic["partitions"]
        }

    async def create(self, specs: Sequence[TopicSpec], replication_factor: int) -> None:
        if not specs:
            return
        new = [
            NewTopic(spec.name, spec.partitions, replication_factor, topic_configs=dict(spec.config)) for spec in specs
        ]
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._started().create_topics(new)
        except BROKER_ERRORS as error:
            raise meaning(error, "create topics") from error
        for name, code, *message in response.topic_errors:
            refusal = kafka_errors.for_code(code)
            if refusal in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
                continue
            if refusal.retriable:
                raise Retryable("TOPIC_NOT_CREATED", f"topic {name}: {refusal.__name__}: run it again")
            raise Fatal("TOPIC_NOT_CREATED", f"topic {name}: {refusal.__name__}: {(message or ['no reason given'])[0]}")
        await self._await_visible({spec.name for spec in specs})

    async def _await_visible(self, names: set[str]) -> None:
        """Kafka answers before every broker knows the topics; whoever writes next should find them."""
        try:
            async with asyncio.timeout(self._timeout):
                while set(await self.partitions(names)) != names:  # noqa: ASYNC110 - Kafka tells nobody when
                    await asyncio.sleep(_VISIBLE_POLL_SECONDS)
        except TimeoutError as error:
            raise Retryable("TOPIC_NOT_CREATED", f"topics {sorted(names)} are not there yet: run it again") from error

    def _started(self) -> Any:
        if self._client is None:
            raise RuntimeError("the admin client was not started")
        return self._client
