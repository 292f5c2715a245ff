"""The Faust application: two agents and one table.

    decisions.v1 ──► sort ──► actor_events.v1 ──► count ──► actor_standing.v1
      by generation    what counts,  by actor       table: histories by actor

What Faust would lose or count twice (docs/adr, "Faust carries actor_history") is kept from it: one batch at a time, in
order, and its outputs acknowledged before the next is taken, so that acknowledgements are contiguous; whatever an agent
meets is caught inside it, since a raising agent's event is skipped; and each value knows the offsets that are in it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import faust
from faust.streams import _current_event
from google.protobuf.message import DecodeError

from seawall.actor_history import history
from seawall.actor_history.settings import ActorHistorySettings
from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.core.errors import Poison
from seawall.relay.dead_letters import DeadLetters
from seawall.relay.observe import StreamObserver
from seawall.runtime.broker import Output
from seawall.runtime.kafka import connection
from seawall.runtime.topics import TopicNames

ROOM = "actor_history"


class _Change(NamedTuple):
    """An actor's history with the batch in it, and the last event about it."""

    history: pb.ActorHistory
    event: pb.ActorEvent
    taken: Any


_Changed = dict[bytes, _Change]


def _take_in_hand(event: Any) -> None:
    """A table asks which event is in hand, for its partition's store and changelog; of a batch, Faust names none."""
    _current_event.set(weakref.ref(event))


def make_app(
    settings: ActorHistorySettings,
    names: TopicNames,
    partitions: int,
    dead_letters: DeadLetters,
    observer: StreamObserver,
) -> faust.App:
    """The application. ``partitions``: of decisions.v1, which the table's changelog shares with actor_events.v1."""
    app = faust.App(
        f"{names.prefix}{ROOM}",
        broker=[f"kafka://{address}" for address in settings.kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=settings.session_timeout_seconds / 4,
        broker_commit_interval=0.5,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_max_request_size=settings.kafka.max_request_bytes,
        processing_guarantee="at_least_once",
        store="rocksdb://",
        datadir=str(settings.state / "data"),
        topic_partitions=partitions,
        topic_replication_factor=1,
        topic_allow_declare=True,
        topic_disable_leader=True,
        stream_wait_empty=False,
        web_enabled=False,
        key_serializer="raw",
        value_serializer="raw",
        loghandlers=[],
    )
    raw: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    decisions = app.topic(names.decisions, **raw)
    events = app.topic(names.actor_events, **raw)
    standings = app.topic(names.actor_standing, **raw)
    letters = app.topic(names.dead_letters, **raw)
    options = {"driver": "rocksdict"}
    table = app.Table("histories", partitions=partitions, options=options, key_type=bytes, value_type=bytes)
    rules = settings.standing

    async def set_aside(message: Any, error: Poison) -> None:
        output: Output = dead_letters.output(message, error)
        observer.event("diverted", reason=error.reason, partition=message.partition, offset=message.offset)
        await letters.send(key=output.key, value=output.value, headers=list(output.headers))

    async def each(taken: list[Any], work: Callable[[Any], Any]) -> None:
        """Do it for each; what cannot be done is set aside, and the others go on."""
        for one in taken:
            try:
                await work(one)
            except (DecodeError, Poison, UnicodeDecodeError) as error:
                poison = error if isinstance(error, Poison) else Poison("UNDECODABLE", "the value is not of its topic")
                await set_aside(one.message, poison)
            except (asyncio.CancelledError, MemoryError):
                raise
            except Exception as error:
                # Ours, not the record's; but Faust would skip it in silence. It is set aside with its name, and logged.
                observer.event("crashed", error=error)
                await set_aside(one.message, Poison("INTERNAL", f"actor_history failed on it: {type(error).__name__}"))

    @app.agent(decisions, concurrency=1)
    async def sort(stream: Any) -> AsyncIterator[None]:
        async def pass_on(taken: Any) -> None:
            message = taken.message
            decision = decision_pb2.Decision.FromString(taken.value or b"")
            event = history.event_of(decision, message.topic, message.partition, message.offset, rules)
            if event is not None:
                key = history.key_of(event.tenant_id, event.actor_id)
                await events.send(key=key, value=event.SerializeToString())

        async for taken in stream.take_events(settings.batch_size, within=settings.batch_seconds):
            await each(taken, pass_on)
            await app.producer.flush()
            yield

    @app.agent(events, concurrency=1)
    async def count(stream: Any) -> AsyncIterator[None]:
        async for taken in stream.take_events(settings.batch_size, within=settings.batch_seconds):
            changed: _Changed = {}

            async def add(one: Any, changed: _Changed = changed) -> None:
                _take_in_hand(one)
                event = pb.ActorEvent.FromString(one.value or b"")
                key = history.key_of(event.tenant_id, event.actor_id)
                if key != one.key:
                    raise Poison("WRONG_KEY", "the record's key is not the actor that it is about")
                known = changed.get(key)
                kept = known.history if known else pb.ActorHistory.FromString(table.get(key) or b"")
                history.apply(kept, event, rules)
                # Also what was counted before: its standing may not have been written when the process died.
                changed[key] = _Change(kept, event, one)

            await each(taken, add)
            for key, (kept, event, one) in changed.items():
                _take_in_hand(one)
                table[key] = kept.SerializeToString(deterministic=True)
                made = history.standing(kept, event.tenant_id, event.actor_id, rules)
                await standings.send(key=key, value=made.SerializeToString(deterministic=True))
            # The changelog's records as well: only then may the offsets be committed.
            await app.producer.flush()
            yield

    @app.on_rebalance_complete.connect
    async def ready(*_: Any, **__: Any) -> None:
        observer.ready(True)

    return app


def _credentials(settings: ActorHistorySettings) -> Any:
    """Faust's word for what the other rooms' clients are given."""
    options = connection.client_options(settings.kafka)
    if settings.kafka.security_protocol == "PLAINTEXT":
        return None
    if settings.kafka.sasl_username is None:
        return faust.SSLCredentials(options["ssl_context"])
    return faust.SASLCredentials(
        username=options["sasl_plain_username"],
        password=options["sasl_plain_password"],
        ssl_context=options["ssl_context"],
        mechanism=options["sasl_mechanism"],
    )
