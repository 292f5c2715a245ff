"""The one RPC of a stage: n items in, n replies out, matched by id, each with its own status.

What a stage brings is a `Scorer`: one item in, one result out. Everything between that and the wire is here: admission
(one batch too many is answered RESOURCE_EXHAUSTED at once), the caller's deadline and cancellation between items,
isolation of an item that raises, refusal of scores that are none, and the batch's span and metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind

from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal, SeawallError
from seawall.runtime import metrics, telemetry
from seawall.runtime.logging import get_logger
from seawall.runtime.settings import RpcServerSettings
from seawall.runtime.workers import Begun, Held, Job, Unfinished, Workers

OK, ERROR = signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_ERROR

#: Time kept back from the caller's deadline so that a reply still arrives: a share of it, within bounds (seconds).
_REPLY_SHARE, _REPLY_MIN, _REPLY_MAX = 0.1, 0.005, 0.1
#: A deadline further away than this (seconds) is no deadline: gRPC reports years when the caller set none.
_FAR = 86_400.0

_STATUS_NAMES: dict[int, str] = {
    value: name.removeprefix("ITEM_STATUS_").lower() for name, value in signal_pb2.ItemStatus.items()
}
_log = get_logger(__name__)


class Scorer(Protocol):
    """What a stage brings. `score` is called by several threads at once."""

    def score(self, item: Any) -> signal_pb2.ItemResult:
        """Measure one item of the stage's request.

        Returns a result with status OK, UNSCANNABLE or ERROR (with a reason); item_id and nexus stay empty. A Poison or
        Retryable that is raised becomes ERROR with its reason, any other exception ERROR "INTERNAL"; Fatal ends the
        process as well.
        """
        ...

    # Optional: ``begin(item) -> ItemResult | Unfinished``, as `score`, for items that are worked on in another process,
    # or several at once; what their ``finish`` gives and raises is as of ``begin``.
    # Optional: ``unready() -> str``, why nothing can be scored now; the service is NOT_SERVING as long as it says so.

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """Every model, list and pack that results rest on."""
        ...


class AdaptiveLimit:
    """How many batches to take on: additive increase while they start in time, multiplicative decrease when they wait.

    Args:
        maximum: the limit's upper bound, and where it begins.
        target: seconds a batch may wait for its first item.
    """

    #: One batch in progress and one waiting keep the workers busy.
    MINIMUM = 2

    def __init__(self, maximum: int, target: float) -> None:
        self._maximum = max(maximum, 1)
        self._minimum = min(self.MINIMUM, self._maximum)
        self._target = target
        self._limit = float(self._maximum)
        self._lowered_at = float("-inf")

    @property
    def value(self) -> int:
        return int(self._limit)

    def observe(self, waited: float, now: float) -> None:
        """A batch began after ``waited`` seconds, at monotonic instant ``now``."""
        if waited <= self._target:
            self._limit = min(self._maximum, self._limit + 1.0 / self._limit)
        elif now - self._lowered_at >= self._target:
            # Once per target: every batch of the same queue tells the same story.
            self._lowered_at = now
            self._limit = max(self._minimum, self._limit * 0.7)


class BatchService:
    """A stage's service, to be registered with `runtime.rpc_server`.

    Args:
        method: fully qualified, ``"/package.Service/Method"``.
        request_type: a message with one repeated field ``items``, each with a ``uint64 id``.
        response_type: a message with the fields of `relay.stage.StageReply`.
        instance: this process, as it appears in signals.
    """

    def __init__(
        self,
        method: str,
        request_type: type[Any],
        response_type: type[Any],
        scorer: Scorer,
        settings: RpcServerSettings,
        instance: str,
    ) -> None:
        self.service, _, self._name = method.removeprefix("/").rpartition("/")
        self._method = method.removeprefix("/")
        self._request_type = request_type
        self._response_type = response_type
        self._scorer = scorer
        self._settings = settings
        self._instance = instance
        self._workers = Workers(settings.workers, self._name)
        self._limit = AdaptiveLimit(settings.max_concurrent_rpcs, settings.queue_target_seconds)
        self._jobs: set[Job] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Set when the scorer said that this process must not go on.
        self.failure: Fatal | None = None

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler to add to a grpc.aio server."""
        # Bytes in, bytes out: what does not decode is answered INVALID_ARGUMENT, and a worker encodes the reply.
        method = grpc.unary_unary_rpc_method_handler(self._serve)
        return grpc.method_handlers_generic_handler(self.service, {self._name: method})

    @property
    def limit(self) -> int:
        """Batches taken on at once, now."""
        return self._limit.value

    @property
    def active(self) -> int:
        """Batches in progress or waiting, those included whose caller is gone but whose item is not finished."""
        return len(self._jobs)

    def stuck(self) -> bool:
        """Whether every worker has been on one item for longer than any caller waits: nothing can be scored here."""
        stuck = self._workers.stuck(self._settings.stuck_seconds)
        metrics.WORKERS_STUCK.set(stuck)
        return stuck >= self._workers.count

    def unready(self) -> str:
        """Why the scorer says that nothing can be scored now; empty: it can, or does not say."""
        ask = getattr(self._scorer, "unready", None)
        return str(ask()) if ask is not None else ""

    def artefacts(self) -> list[dict[str, str]]:
        """On what results rest now, as plain data."""
        return [
            {
                "kind": signal_pb2.ArtefactKind.Name(one.kind).removeprefix("ARTEFACT_KIND_").lower(),
                "name": one.name,
                "version": one.version,
                "sha256": one.sha256.hex(),
            }
            for one in self._scorer.artefacts()
        ]

    async def close(self, timeout: float) -> bool:
        """Begin no further item and wait for those in progress. False if some were left behind after ``timeout``."""
        for job in self._jobs:
            job.cancel()
        self._workers.stop()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            _log.warning("items still in progress are left behind", batches=len(self._jobs))
            return False
        return True

    async def _serve(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        began = time.monotonic()
        caller = telemetry.from_metadata(context.invocation_metadata())
        attributes = {metrics.RPC_SYSTEM: "grpc", metrics.RPC_METHOD: self._method}
        status = "CANCELLED"
        with telemetry.batch_span(self._method, SpanKind.SERVER, parent=caller, attributes=attributes) as span:
            try:
                reply = await self._answer(body, context, began, span)
                status = "OK"
                return reply
            except _Refused as refused:
                status = refused.code.name
                span.fail(status)
                if refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    metrics.BATCH_REJECTED.add(1)
                else:
                    _log.warning("batch refused", code=status, detail=refused.detail, trace_id=span.context.trace_id)
                await context.abort(refused.code, refused.detail)
                raise AssertionError("abort raises") from None
            finally:
                span.set(metrics.RPC_STATUS, status)
                metrics.RPC_SERVER_DURATION.record(
                    time.monotonic() - began, {metrics.RPC_METHOD: self._method, metrics.RPC_STATUS: status}
                )

    async def _answer(
        self, body: bytes, context: grpc.aio.ServicerContext, began: float, span: telemetry.BatchSpan
    ) -> bytes:
        if len(self._jobs) >= self._limit.value:
            raise _Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{len(self._jobs)} batches are in progress: try again later"
            )
        request = self._decode(body)
        span.set(metrics.BATCH_SIZE, len(request.items))
        remaining = context.time_remaining()
        if remaining is None or remaining > _FAR:
            remaining = self._settings.default_timeout_seconds
        kept_back = min(max(remaining * _REPLY_SHARE, _REPLY_MIN), _REPLY_MAX)
        try:
            batch = _Batch(request, self._scorer, self._response_type, self._instance, span.context.trace_id)
        except Exception as error:
            _log.error("artefacts cannot be told", exc_info=error)
            raise _Refused(grpc.StatusCode.INTERNAL, "the service cannot name its artefacts: see its log") from None

        loop = asyncio.get_running_loop()
        finished: asyncio.Future[bytes | None] = loop.create_future()

        def settle(reply: bytes | None) -> None:
            if not finished.done():
                finished.set_result(reply)

        def retire(reply: bytes) -> None:
            self._retire(job, began)
            if batch.fatal is not None:
                self.failure = batch.fatal
            settle(reply)

        def done() -> None:
            # In the worker: encoding is work too. Nobody may wait any more, and a stuck item may outlive the loop.
            reply = b"" if finished.done() else batch.reply()
            if not loop.is_closed():
                loop.call_soon_threadsafe(retire, reply)

        job = Job(len(request.items), batch.begin, began + remaining - kept_back, done)
        self._admit(job)
        # An item that outlasts the deadline must not take its neighbours' results with it.
        timer = loop.call_later(began + remaining - kept_back * 0.8 - time.monotonic(), settle, None)
        try:
            reply = await finished
            span.set(metrics.QUEUE_SECONDS, max(job.started - began, 0.0))
            return reply if reply is not None else batch.reply()
        finally:
            # Reached on the caller's cancellation too.
            job.cancel()
            timer.cancel()

    def _decode(self, body: bytes) -> Any:
        try:
            request = self._request_type.FromString(body)
        except DecodeError:
            raise _invalid(f"the request is not a {self._request_type.DESCRIPTOR.full_name}") from None
        count = len(request.items)
        if count == 0:
            raise _invalid("items is empty: send at least one")
        if count > self._settings.max_items:
            raise _invalid(f"items has {count} members, above rpc_server.max_items ({self._settings.max_items})")
        if len({item.id for item in request.items}) != count:
            raise _invalid("items.id is not unique within the request: number the items")
        return request

    def _admit(self, job: Job) -> None:
        self._jobs.add(job)
        self._idle.clear()
        metrics.BATCHES_ACTIVE.add(1)
        self._workers.submit(job)

    def _retire(self, job: Job, admitted: float) -> None:
        self._jobs.discard(job)
        if not self._jobs:
            self._idle.set()
        metrics.BATCHES_ACTIVE.add(-1)
        now = time.monotonic()
        # A batch that never began waited until now.
        waited = (job.started or now) - admitted
        self._limit.observe(waited, now)
        metrics.BATCH_LIMIT.set(self._limit.value)
        metrics.BATCH_QUEUE_DURATION.record(waited)


class _Refused(Exception):
    """The call as a whole fails with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def _invalid(detail: str) -> _Refused:
    return _Refused(grpc.StatusCode.INVALID_ARGUMENT, detail)


class _Batch:
    """The items of one request and what became of them."""

    def __init__(self, request: Any, scorer: Scorer, response_type: type[Any], instance: str, trace_id: str) -> None:
        self._items = request.items
        self._scorer = scorer
        self._score: Callable[[Any], signal_pb2.ItemResult | Unfinished] = getattr(scorer, "begin", scorer.score)
        self._response_type = response_type
        self._instance = instance
        self._trace_id = trace_id
        self._results: list[tuple[signal_pb2.ItemResult, int] | None] = [None] * len(self._items)
        # Before the first item; a scorer that swaps a model meanwhile is asked again for the reply.
        self._artefacts = scorer.artefacts()
        self._began = time.time_ns()
        self._told = False
        self.fatal: Fatal | None = None

    def begin(self, position: int) -> Unfinished | None:
        """Score the item at ``position``, or begin to. Never raises, nor does what is given."""
        item = self._items[position]
        return self._try(position, lambda: self._score(item), 0)

    def _try(
        self, position: int, work: Callable[[], signal_pb2.ItemResult | Unfinished], nanos: int
    ) -> Unfinished | None:
        """Do some of the item's work, on which so many nanoseconds have been spent before."""
        start = time.perf_counter_ns() - nanos
        try:
            result = work()
            spent = time.perf_counter_ns() - start
            if isinstance(result, Begun):
                finish = result.finish
                return result._replace(finish=lambda: self._try(position, finish, spent))
            if isinstance(result, Held):
                rest = result.finish
                return result._replace(finish=lambda share: self._try(position, lambda: rest(share), spent + share))
            fault = _fault(result)
            if fault:
                result = _error(fault)
        except SeawallError as error:
            if isinstance(error, Fatal):
                self.fatal = error
            self._tell(position, error)
            result = _error(error.reason)
        except BaseException as error:
            # Whatever it is (a panic of a native library is no Exception): the neighbours must be scored.
            self._tell(position, error)
            result = _error("INTERNAL")
        self._results[position] = (result, time.perf_counter_ns() - start)
        return None

    def reply(self) -> bytes:
        """The response, encoded. Items that nobody got to are ERROR "DEADLINE_EXCEEDED"."""
        response = self._response_type(
            artefacts=self._all_artefacts(),
            service_instance=self._instance,
            inference_start_unix_nano=self._began,
            inference_end_unix_nano=time.time_ns(),
        )
        add = response.replies.add
        counts: dict[int, int] = {}
        for item, outcome in zip(self._items, self._results, strict=True):
            result, nanos = outcome or (_error("DEADLINE_EXCEEDED"), 0)
            counts[result.status] = counts.get(result.status, 0) + 1
            add(id=item.id, result=result, work_nanos=nanos)
        for status, count in counts.items():
            metrics.BATCH_ITEMS.add(count, {metrics.ITEM_STATUS: _STATUS_NAMES.get(status, "unknown")})
        encoded: bytes = response.SerializeToString()
        return encoded

    def _all_artefacts(self) -> Sequence[signal_pb2.Artefact]:
        """Those from before the first item, and those that came since."""
        before = self._artefacts
        try:
            now = self._scorer.artefacts()
        except Exception as error:
            self._tell(-1, error)
            return before
        return before if now is before else [*before, *(artefact for artefact in now if artefact not in before)]

    def _tell(self, position: int, error: BaseException) -> None:
        # The first of a batch: a model that fails every item must not drown the log, and the metric counts them all.
        if not self._told:
            self._told = True
            _log.warning("item failed", position=position, trace_id=self._trace_id, exc_info=error)


def _error(reason: str) -> signal_pb2.ItemResult:
    return signal_pb2.ItemResult(status=ERROR, reason=reason)


def _fault(result: signal_pb2.ItemResult) -> str:
    """Why ``result`` cannot be passed on; empty if it can."""
    for label in result.labels:
        # A comparison with NaN is false.
        if not 0.0 <= label.score <= 1.0:
            return "BAD_SCORE"
    if result.status == signal_pb2.ITEM_STATUS_UNSPECIFIED:
        return "NO_STATUS"
    return ""
