"""The Faust application: three agents and one table.

    decisions.v1 ──► sort ──┐
                            ├──► actor_events.v1 ──► count ──► actor_standing.v1
    overrides.v1 ──► hear ──┘     what counts,        table: histories by actor
     by generation                by actor

What Faust would lose or count twice (docs/adr, "Faust carries actor_history") is kept from it: one batch at a time, in
order, and its outputs acknowledged before the next is taken, so that acknowledgements are contiguous; whatever an agent
meets is caught inside it, since a raising agent's event is skipped; and each value knows the offsets that are in it.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import faust
from faust.streams import _current_event
from google.protobuf.message import DecodeError

from seawall.actor_history.lean import BatchedTable, LeanMonitor
from seawall.actor_history.outputs import Outputs
from seawall.actor_history.recovery import OrderedApp
from seawall.actor_history.rules import Rules
from seawall.actor_history.settings import ActorHistorySettings
from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.core import actor, actor_overrides
from seawall.core.errors import Poison
from seawall.core.policy import ActorPolicy
from seawall.relay.dead_letters import DeadLetters
from seawall.relay.observe import StreamObserver
from seawall.runtime.broker import Output
from seawall.runtime.kafka import connection
from seawall.runtime.kafka.connection import BROKER_ERRORS
from seawall.runtime.topics import TopicNames

ROOM = "actor_history"


class _Change(NamedTuple):
    """An actor's history with the batch in it, and the last event about it."""

    history: pb.ActorHistory
    event: pb.ActorEvent
    taken: Any


def member_of(state: Path) -> str:
    """The static membership id of whoever has this folder, which RocksDB lets no two have. Started again on it, a
    process is the same member: it has its partitions back at once instead of when the dead one's session ends."""
    path = state / "member"
    if path.exists() and (name := path.read_text("ascii").strip()):
        return name
    name = f"{ROOM}-{uuid.uuid4().hex}"
    begun = path.with_suffix(".new")
    begun.write_text(name, "ascii")
    begun.replace(path)
    return name


def _take_in_hand(event: Any) -> None:
    """A table asks which event is in hand, for its partition's store and changelog; of a batch, Faust names none."""
    _current_event.set(weakref.ref(event))


def make_app(
    settings: ActorHistorySettings,
    names: TopicNames,
    partitions: int,
    dead_letters: DeadLetters,
    rules: Rules,
    outputs: Outputs,
    observer: StreamObserver,
) -> faust.App:
    """The application. ``partitions``: of decisions.v1, which the table's changelog shares with actor_events.v1."""
    app = OrderedApp(
        f"{names.prefix}{ROOM}",
        broker=[f"kafka://{address}" for address in settings.kafka.bootstrap_servers.split(",")],
        broker_credentials=_credentials(settings),
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=settings.session_timeout_seconds / 4,
        broker_commit_interval=0.5,
        consumer_group_instance_id=settings.kafka.instance or member_of(settings.state),
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        producer_max_request_size=settings.kafka.max_request_bytes,
        processing_guarantee="at_least_once",
        store="rocksdb://",
        datadir=str(settings.state / "data"),
        topic_partitions=partitions,
        topic_replication_factor=settings.changelog_replication_factor,
        topic_allow_declare=True,
        topic_disable_leader=True,
        stream_wait_empty=False,
        web_enabled=False,
        Monitor=LeanMonitor,
        Table=BatchedTable,
        key_serializer="raw",
        value_serializer="raw",
        loghandlers=[],
    )
    raw: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    decisions = app.topic(names.decisions, **raw)
    overrides = app.topic(names.overrides, **raw)
    events = app.topic(names.actor_events, **raw)
    options = {"driver": "rocksdict"}
    table = cast(
        BatchedTable,
        app.Table("histories", partitions=partitions, options=options, key_type=bytes, value_type=bytes),
    )
    app.add_dependency(outputs)

    @app.task  # type: ignore[untyped-decorator]
    async def keep_up() -> None:
        await rules.keep_up(settings.policy_reload_seconds)

    @app.timer(interval=settings.position_seconds)  # type: ignore[untyped-decorator]
    async def keep_positions() -> None:
        try:
            await table.keep_positions()
        except BROKER_ERRORS as error:
            observer.event("positions_not_kept", reason=type(error).__name__)

    def guarded(message: Any, work: Callable[[], Output | None]) -> Output | None:
        """What comes of it; or its dead letter: the others must go on, and Faust would skip it in silence."""
        try:
            return work()
        except (DecodeError, UnicodeDecodeError):
            return set_aside(message, Poison("UNDECODABLE", "the value is not of its topic"))
        except Poison as error:
            return set_aside(message, error)
        except MemoryError:
            raise
        except Exception as error:
            # Ours, not the record's: it is set aside with its name, and logged.
            observer.event("crashed", error=error)
            return set_aside(message, Poison("INTERNAL", f"actor_history failed on it: {type(error).__name__}"))

    def set_aside(message: Any, error: Poison) -> Output:
        observer.event("diverted", reason=error.reason, partition=message.partition, offset=message.offset)
        return dead_letters.output(message, error)

    async def pass_on(stream: Any, event_of: Callable[[bytes, Any], pb.ActorEvent | None]) -> AsyncIterator[None]:
        """What counts, by actor."""

        def passed(taken: Any) -> Output | None:
            event = event_of(taken.value or b"", taken.message)
            if event is None:
                return None
            key = actor.key_of(event.tenant_id, event.actor_id)
            return Output(names.actor_events, None, key, event.SerializeToString())

        async for taken in stream.take_events(settings.batch_size, within=settings.batch_seconds):
            made = (guarded(one.message, partial(passed, one)) for one in taken)
            await outputs.send([output for output in made if output is not None])
            yield

    @app.agent(decisions, concurrency=1)
    async def sort(stream: Any) -> AsyncIterator[None]:
        def event_of(value: bytes, message: Any) -> pb.ActorEvent | None:
            decision = decision_pb2.Decision.FromString(value)
            return actor.event_of(decision, message.topic, message.partition, message.offset, rules.current)

        async for _ in pass_on(stream, event_of):
            yield

    @app.agent(overrides, concurrency=1)
    async def hear(stream: Any) -> AsyncIterator[None]:
        def event_of(value: bytes, message: Any) -> pb.ActorEvent | None:
            said = Override.FromString(value)
            return actor_overrides.event_of(said, message.topic, message.partition, message.offset)

        async for _ in pass_on(stream, event_of):
            yield

    @app.agent(events, concurrency=1)
    async def count(stream: Any) -> AsyncIterator[None]:
        def add(one: Any, policy: ActorPolicy, changed: dict[bytes, _Change]) -> None:
            event = pb.ActorEvent.FromString(one.value or b"")
            key = actor.key_of(event.tenant_id, event.actor_id)
            if key != one.key:
                raise Poison("WRONG_KEY", "the record's key is not the actor that it is about")
            if (known := changed.get(key)) is not None:
                kept = known.history
            else:
                _take_in_hand(one)
                kept = pb.ActorHistory.FromString(table.get(key) or b"")
            if not event.HasField("override"):
                actor.apply(kept, event, policy)
            elif actor_overrides.apply(kept, event, policy.entry.window_hours):
                actor.reconsider(kept, event.tenant_id, policy)
            # Also what was counted before: its standing may not have been written when the process died.
            changed[key] = _Change(kept, event, one)

        def stand(key: bytes, change: _Change, policy: ActorPolicy) -> Output:
            kept, event, one = change
            made = actor.standing(kept, event.tenant_id, event.actor_id, policy)
            _take_in_hand(one)
            table[key] = kept.SerializeToString(deterministic=True)
            return Output(names.actor_standing, None, key, made.SerializeToString(deterministic=True))

        async for taken in stream.take_events(settings.batch_size, within=settings.batch_seconds):
            # One policy for the whole batch.
            policy = rules.current
            changed: dict[bytes, _Change] = {}
            made = [guarded(one.message, partial(add, one, policy, changed)) for one in taken]
            for key, change in changed.items():
                made.append(guarded(change.taken.message, partial(stand, key, change, policy)))
            # The changelog's records as well: only then may the offsets be committed.
            await outputs.send([*(output for output in made if output is not None), *table.changes()])
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
