"""The catalogue: every metric, span and attribute name that Seawall emits, each with a sentence for the operator.

Names follow OpenTelemetry's semantic conventions v1.44 where they have one; ours begin with ``moderation.``.
Instruments are proxies until `telemetry.setup` installs a provider, and cost next to nothing before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from opentelemetry import metrics


class Metric(NamedTuple):
    """A metric as the operator meets it."""

    name: str
    kind: str
    unit: str
    meaning: str


class Attribute(NamedTuple):
    """An attribute of a span or metric."""

    name: str
    meaning: str


class SpanName(NamedTuple):
    """A kind of span: what its name begins with, whose it is, and what it covers."""

    name: str
    kind: str
    meaning: str


#: ``{operation} {destination}``, for RPCs the method. <stage> is a room's name, <topic> the topic's in its lane.
SPANS: Final[tuple[SpanName, ...]] = (
    SpanName("process <topic>", "CONSUMER", "A relay's micro-batch: one RPC; links to the generations in it."),
    SpanName("<package.Service/Method>", "SERVER", "A stage service's work on a batch, below the relay's span."),
    SpanName("decide <topic>", "CONSUMER", "One generation attempt, from its log time to its decision's."),
    SpanName("measure <stage>", "INTERNAL", "What became of it in one stage, until its signal was logged."),
    SpanName("queue <stage>", "INTERNAL", "It waited in the topic, until the relay's poll returned it."),
    SpanName("batch <stage>", "INTERNAL", "It waited in the relay for its batch, and for a free RPC."),
    SpanName("call <stage>", "INTERNAL", "The RPC, until the signal was handed to the producer."),
    SpanName("infer <stage>", "INTERNAL", "The service's work on the whole batch it rode in."),
    SpanName("join <topic>", "INTERNAL", "From the last signal's log time to the decision's."),
)

METRICS: dict[str, Metric] = {}
ATTRIBUTES: dict[str, Attribute] = {}

#: What a watched gauge reads: values, each with its attributes. Called by the thread that exports: must not block.
Observations = Iterable[tuple[float, Mapping[str, str]]]

_meter = metrics.get_meter("seawall")


def _counter(name: str, unit: str, meaning: str) -> metrics.Counter:
    METRICS[name] = Metric(name, "counter", unit, meaning)
    return _meter.create_counter(name, unit=unit, description=meaning)


def _level(name: str, unit: str, meaning: str) -> metrics.UpDownCounter:
    METRICS[name] = Metric(name, "level", unit, meaning)
    return _meter.create_up_down_counter(name, unit=unit, description=meaning)


def _gauge(name: str, unit: str, meaning: str) -> metrics._Gauge:
    METRICS[name] = Metric(name, "gauge", unit, meaning)
    return _meter.create_gauge(name, unit=unit, description=meaning)


class Watched:
    """A gauge that is read when metrics are collected, so that it is true even while the loop it tells of hangs."""

    def __init__(self) -> None:
        self._sources: list[Callable[[], Observations]] = []

    def watch(self, source: Callable[[], Observations]) -> None:
        """Read ``source`` at every collection, until it is forgotten."""
        self._sources.append(source)

    def forget(self, source: Callable[[], Observations]) -> None:
        """Read it no more."""
        if source in self._sources:
            self._sources.remove(source)

    def _observe(self, _: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        for source in list(self._sources):
            for value, attributes in source():
                yield metrics.Observation(value, dict(attributes))


def _watched(name: str, unit: str, meaning: str) -> Watched:
    METRICS[name] = Metric(name, "gauge", unit, meaning)
    watched = Watched()
    _meter.create_observable_gauge(name, [watched._observe], unit=unit, description=meaning)
    return watched


def _histogram(name: str, unit: str, meaning: str, bounds: tuple[float, ...]) -> metrics.Histogram:
    METRICS[name] = Metric(name, "histogram", unit, meaning)
    return _meter.create_histogram(name, unit=unit, description=meaning, explicit_bucket_boundaries_advisory=bounds)


def _attribute(name: str, meaning: str) -> str:
    ATTRIBUTES[name] = Attribute(name, meaning)
    return name


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# gRPC services
RPC_SERVER_DURATION = _histogram(
    "rpc.server.call.duration", "s", "How long a stage service took for a batch, waiting included.", _SECONDS
)
RPC_CLIENT_DURATION = _histogram(
    "rpc.client.call.duration",
    "s",
    "How long a caller waited for a batch; subtract the server's to see the network.",
    _SECONDS,
)
BATCH_ITEMS = _counter(
    "moderation.batch.items", "{item}", "Items that a stage service answered, by status. ERROR here becomes HOLD later."
)
BATCH_QUEUE_DURATION = _histogram(
    "moderation.batch.queue.duration",
    "s",
    "How long a batch waited for a worker: the first sign of overload.",
    _SECONDS,
)
BATCH_REJECTED = _counter(
    "moderation.batch.rejected", "{batch}", "Batches refused with RESOURCE_EXHAUSTED: add replicas if it lasts."
)
BATCH_LIMIT = _gauge(
    "moderation.batch.limit", "{batch}", "Batches the service takes on now; it falls below the setting under overload."
)
BATCHES_ACTIVE = _level("moderation.batch.active", "{batch}", "Batches in progress or waiting in the service.")
WORKERS_STUCK = _gauge(
    "moderation.worker.stuck", "{worker}", "Workers held by one item for too long: with all of them stuck it restarts."
)

DECODER_DEATHS = _counter(
    "moderation.decoder.deaths",
    "{worker}",
    "Decoding workers that died and were replaced, by signal: SIGXCPU a file that takes too long, SIGSEGV or SIGABRT a "
    "decoder's bug, SIGKILL the system short of memory. Many in a row: one sender tries, or the library is broken.",
)

# Banks
BANK_ENTRIES = _gauge(
    "moderation.bank.entries", "{entry}", "Entries that can match, by bank. A required bank at 0 is NOT_SERVING."
)
BANK_CHANGED_AT = _gauge(
    "moderation.bank.changed_time",
    "s",
    "Unix time at which a bank's digest last changed in this process: a list that ages misses what is new.",
)
BANK_EXPIRES_AT = _gauge(
    "moderation.bank.expires_time", "s", "Unix time after which a bank matches nothing, of banks that have one."
)
BANK_CHANGES_REFUSED = _counter(
    "moderation.bank.changes.refused", "{record}", "Records of bank_entries.v1 that no replica takes: see the log."
)
BANK_MATCHES_HELD = _counter(
    "moderation.bank.matches.held",
    "{match}",
    "Matches that were found and do not count, by bank: a negative bank speaks against them, or the entry is held.",
)
BANK_FLOODS = _counter(
    "moderation.bank.floods",
    "{entry}",
    "Entries that suddenly matched far more than their history and wait for a person: `seawall banks stat`.",
)

# Models
SCORES = _histogram(
    "moderation.model.score",
    "1",
    "Scores by model and label: how they are distributed. A shift is new traffic, or a model that has broken.",
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
)
SCORE_STABILITY = _gauge(
    "moderation.model.score.stability",
    "{index}",
    "Population-stability index of a label's last scores to its card's reference: below 0.1 stable, above 0.25 not.",
)
MODEL_RELOADS = _counter(
    "moderation.model.reloads",
    "{reload}",
    "Changed models that were taken up, or refused: what served goes on serving.",
)
MODEL_LOADED_AT = _gauge(
    "moderation.model.loaded_time", "s", "Unix time at which a model was loaded, by model: how old what serves is."
)
RESULT_CACHE = _counter(
    "moderation.result_cache.lookups", "{lookup}", "Results looked up by content and model digest, by hit or miss."
)

# Every room
READY = _watched("moderation.ready", "1", "1 while the room does its work, 0 while it does not: its status says why.")
HALTED = _gauge(
    "moderation.stream.halted",
    "1",
    "1 once a room stands still until a person has looked, by reason: FUSE_TRIPPED, the dead-letter fuse.",
)

# The stream path
LAG = _watched(
    "moderation.stream.lag",
    "s",
    "Age of the oldest record that a room has read and not settled, by topic: how late decisions are because of it.",
)
WATERMARK_AGE = _watched(
    "moderation.stream.watermark.age",
    "s",
    "How long a watermark has stood still with work waiting behind it: beyond a record's budget it is stuck.",
)
RECORDS_SETTLED = _counter(
    "moderation.stream.records", "{record}", "Records settled and committed, by topic: the rate."
)
JOINS_OPEN = _watched("moderation.join.open", "{generation}", "Generations that wait for signals in the aggregator.")
JOINS_EARLY = _watched("moderation.join.early", "{signal}", "Signals that wait for their generation to be read.")
RESCANS_WAITING = _watched(
    "moderation.join.rescans", "{generation}", "Generations held and waiting to be scanned again: `seawall hold list`."
)
STREAM_EVENTS = _counter(
    "moderation.stream.events",
    "{event}",
    "What relays and the aggregator met, by event: retries, diversions, refused commits, halts. See the runbook.",
)
DECISIONS = _counter("moderation.decisions", "{decision}", "Decisions written, by outcome and rule.")
DECISION_DURATION = _histogram(
    "moderation.decision.duration", "s", "From the generation's log time to its decision's, by outcome.", _SECONDS
)

# Retroactive matching
RETROACTIVE_HELD = _gauge(
    "moderation.retroactive.held", "{hash}", "Hashes held for retroactive matching, of recent pictures and new entries."
)
RETROACTIVE_SIGNALS = _counter(
    "moderation.retroactive.signals", "{signal}", "Late signals: a picture decided earlier that a list now knows."
)

# The console
HTTP_SERVER_DURATION = _histogram(
    "http.server.request.duration", "s", "How long a page or answer of the console took, by route and status.", _SECONDS
)

# Telemetry's own loss
SPANS_DROPPED = _counter(
    "moderation.telemetry.spans.dropped", "{span}", "Spans lost to a full queue or a collector that is away."
)

# Attributes of the semantic conventions
RPC_SYSTEM = _attribute("rpc.system.name", 'Always "grpc".')
RPC_METHOD = _attribute("rpc.method", "The called method, fully qualified: package.Service/Method.")
RPC_STATUS = _attribute("rpc.status_code", 'The call\'s gRPC status by name: "OK", "RESOURCE_EXHAUSTED".')
ERROR_TYPE = _attribute("error.type", "The reason of the failure, machine-readable.")
SERVER_ADDRESS = _attribute("server.address", "The target that was called.")

MESSAGING_SYSTEM = _attribute("messaging.system", 'Always "kafka".')
MESSAGING_OPERATION = _attribute("messaging.operation.type", "send, receive or process.")
MESSAGING_DESTINATION = _attribute("messaging.destination.name", "The topic.")
MESSAGING_PARTITION = _attribute("messaging.destination.partition.id", "The partition.")
MESSAGING_OFFSET = _attribute("messaging.kafka.offset", "The record's offset.")
CONSUMER_GROUP = _attribute("messaging.consumer.group.name", "The consumer group: the room's name.")

HTTP_METHOD = _attribute("http.request.method", "The request's method; _OTHER for one that nothing here takes.")
HTTP_ROUTE = _attribute("http.route", "The page's pattern, without ids.")
HTTP_STATUS = _attribute("http.response.status_code", "The answer's status.")

# Ours
EVENT = _attribute("moderation.event", "What a room of the stream path met.")
GENERATION_ID = _attribute("moderation.generation.id", "The generation: `seawall why` takes it.")
ATTEMPT = _attribute("moderation.generation.attempt", "1 for the first scan; more after a HOLD.")
DECISION_ID = _attribute("moderation.decision.id", "The decision's derived id.")
OUTCOME = _attribute("moderation.outcome", "OUTCOME_ALLOW, _HOLD, _REVIEW, _BLOCK or _BLOCK_AND_REPORT.")
RULE = _attribute("moderation.rule", "The rule that decided; engine/… are the engine's own.")
POLICY_DIGEST = _attribute("moderation.policy.digest", "SHA-256 of the policy in force.")
RELAY = _attribute("moderation.relay.instance", "The relay that made the signal.")
SERVICE = _attribute("moderation.service.instance", "The service that measured.")
RPC_ATTEMPTS = _attribute("moderation.rpc.attempts", "RPC attempts a signal took.")
BATCH_SIZE = _attribute("moderation.batch.size", "Items in the batch.")
ITEM_STATUS = _attribute("moderation.item.status", "Status of an item: ok, error, unscannable, skipped.")
ITEM_REASON = _attribute("moderation.item.reason", "Why an item's status is not OK.")
QUEUE_SECONDS = _attribute("moderation.batch.queue_seconds", "How long this batch waited for a worker.")
BANK = _attribute("moderation.bank", "A bank, by name.")
MODEL = _attribute("moderation.model", "A model, name@version.")
LABEL = _attribute("moderation.label", "A label of a model.")
RELOAD_RESULT = _attribute("moderation.model.reload_result", "swapped or refused.")
CACHE_RESULT = _attribute("moderation.result_cache.result", "hit or miss.")
HELD_KIND = _attribute("moderation.retroactive.kind", "pictures or entries.")
DROP_CAUSE = _attribute("moderation.telemetry.drop_cause", "queue_full or export_failed.")
