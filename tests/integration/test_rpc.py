"""A real gRPC server and client on a port from the system."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal, Poison, Retryable
from seawall.runtime import telemetry
from seawall.runtime.batch_service import BatchService
from seawall.runtime.rpc_client import StageClient
from seawall.runtime.rpc_server import RpcServer
from seawall.runtime.settings import RpcClientSettings, RpcServerSettings, TelemetrySettings
from seawall.runtime.workers import HELD, Held

SERVICE = "seawall.api.prompt_scoring.v1.PromptScoringService"
METHOD = f"/{SERVICE}/ScorePrompts"
REQUEST, RESPONSE = prompt_scoring_pb2.ScorePromptsRequest, prompt_scoring_pb2.ScorePromptsResponse
OK, ERROR = signal_pb2.ITEM_STATUS_OK, signal_pb2.ITEM_STATUS_ERROR

Client = StageClient[prompt_scoring_pb2.ScorePromptsRequest, prompt_scoring_pb2.ScorePromptsResponse]


class PanicException(BaseException):
    """What a panic of a native library looks like: no Exception."""


class Obedient:
    """A scorer that does what an item's generation_id says."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.scored: list[int] = []

    def score(self, item: prompt_scoring_pb2.PromptItem) -> signal_pb2.ItemResult:
        self.scored.append(item.id)
        order, _, value = item.generation_id.partition(":")
        if order == "score":
            label = signal_pb2.LabelScore(label="x", score=float(value))
            return signal_pb2.ItemResult(status=OK, labels=[label])
        if order == "wait":
            self.entered.set()
            assert self.release.wait(60)
        elif order == "raise":
            raise RuntimeError("the text of a prompt")
        elif order == "panic":
            raise PanicException
        elif order == "poison":
            raise Poison("UNSEAL_FAILED", "prompt.ciphertext does not open")
        elif order == "later":
            raise Retryable("STORE_UNAVAILABLE", "the store is away")
        elif order == "fatal":
            raise Fatal("MODEL_LOST", "the model is gone")
        elif order == "no-status":
            return signal_pb2.ItemResult()
        elif order == "nothing":
            return None  # type: ignore[return-value]
        elif order == "unscannable":
            return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_UNSCANNABLE, reason="TRUNCATED")
        return signal_pb2.ItemResult(status=OK)

    def artefacts(self) -> Sequence[signal_pb2.Artefact]:
        return [signal_pb2.Artefact(kind=signal_pb2.ARTEFACT_KIND_MODEL, name="obedient", sha256=bytes(32))]


class Holding(Obedient):
    """One that does it for several items at once."""

    def begin(self, item: prompt_scoring_pb2.PromptItem) -> Held:
        return Held(item, lambda items: None, lambda share: self.score(item))


class Mesh:
    """A server, its scorer and a client."""

    def __init__(self, server: RpcServer, batches: BatchService, scorer: Obedient, client: Client) -> None:
        self.server, self.batches, self.scorer, self.client = server, batches, scorer, client

    async def call(self, *orders: str, timeout: float = 30.0) -> prompt_scoring_pb2.ScorePromptsResponse:
        return await self.client.call(request(*orders), timeout)

    async def entered(self) -> None:
        """Until the scorer is inside a "wait" item."""
        assert await asyncio.to_thread(self.scorer.entered.wait, 30)
        self.scorer.entered.clear()


def request(*orders: str) -> prompt_scoring_pb2.ScorePromptsRequest:
    return REQUEST(items=[prompt_scoring_pb2.PromptItem(id=n, generation_id=order) for n, order in enumerate(orders)])


def statuses(response: prompt_scoring_pb2.ScorePromptsResponse) -> list[tuple[Any, str]]:
    replies = sorted(response.replies, key=lambda reply: reply.id)
    assert [reply.id for reply in replies] == list(range(len(replies)))
    return [(reply.result.status, reply.result.reason) for reply in replies]


@asynccontextmanager
async def running(
    *,
    client: dict[str, Any] | None = None,
    ready: bool = True,
    make_scorer: Callable[[], Obedient] = Obedient,
    **settings: Any,
) -> AsyncIterator[Mesh]:
    server_settings = RpcServerSettings(**{"workers": 2, "linger_seconds": 0, "drain_seconds": 5, **settings})
    server = RpcServer(server_settings, SERVICE)
    scorer = make_scorer()
    await server.start()
    batches = BatchService(METHOD, REQUEST, RESPONSE, scorer, server_settings, "service-0")
    if ready:
        await server.ready(batches)
    stage = StageClient(
        RpcClientSettings(**{"target": server.address, "timeout_seconds": 30, **(client or {})}),
        METHOD,
        REQUEST,
        RESPONSE,
    )
    try:
        yield Mesh(server, batches, scorer, stage)
    finally:
        scorer.release.set()
        await stage.close()
        await server.stop()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own: it happens in another thread or process."""
    for _ in range(6_000):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to pass")


async def test_n_items_go_in_and_n_replies_come_out() -> None:
    async with running() as mesh:
        response = await mesh.call(*["score:0.25"] * 100)
        assert statuses(response) == [(OK, "")] * 100
        assert {reply.result.labels[0].score for reply in response.replies} == {0.25}
        assert all(reply.work_nanos > 0 for reply in response.replies)
        assert response.service_instance == "service-0"
        assert [artefact.name for artefact in response.artefacts] == ["obedient"]
        assert 0 < response.inference_start_unix_nano <= response.inference_end_unix_nano
        assert sorted(mesh.scorer.scored) == list(range(100))
        await eventually(lambda: mesh.batches.active == 0)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (f"score:{math.nan}", "BAD_SCORE"),
        (f"score:{math.inf}", "BAD_SCORE"),
        ("score:-0.001", "BAD_SCORE"),
        ("score:1.001", "BAD_SCORE"),
        ("no-status", "NO_STATUS"),
        ("nothing", "INTERNAL"),
        ("raise", "INTERNAL"),
        ("panic", "INTERNAL"),
        ("poison", "UNSEAL_FAILED"),
        ("later", "STORE_UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("make_scorer", [Obedient, Holding])
async def test_an_item_that_fails_errs_alone(
    make_scorer: Callable[[], Obedient], order: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running(make_scorer=make_scorer) as mesh:
        orders = ["score:0"] * 32 + [order] + ["score:1"] * 31
        answered = statuses(await mesh.call(*orders))
        assert answered.pop(32) == (ERROR, reason)
        assert answered == [(OK, "")] * 63
        assert statuses(await mesh.call("score:0.5")) == [(OK, "")]
    assert "the text of a prompt" not in capfd.readouterr().err


async def test_what_is_done_together_is_each_items_work_in_part() -> None:
    class Slow(Holding):
        def begin(self, item: prompt_scoring_pb2.PromptItem) -> Held:
            return super().begin(item)._replace(together=lambda items: pause.wait(0.1))

    pause = threading.Event()
    async with running(workers=1, make_scorer=Slow) as mesh:
        began = time.perf_counter_ns()
        response = await mesh.call(*["ok"] * HELD)
        taken = time.perf_counter_ns() - began
    spent = [reply.work_nanos for reply in response.replies]
    assert 100e6 <= sum(spent) < taken
    assert min(spent) >= 100e6 / HELD


async def test_unscannable_is_passed_on() -> None:
    async with running() as mesh:
        assert statuses(await mesh.call("unscannable")) == [(signal_pb2.ITEM_STATUS_UNSCANNABLE, "TRUNCATED")]


async def test_a_fatal_scorer_ends_the_watch() -> None:
    async with running() as mesh:
        watch = asyncio.create_task(mesh.server.watch())
        assert statuses(await mesh.call("fatal")) == [(ERROR, "MODEL_LOST")]
        with pytest.raises(Fatal, match="MODEL_LOST"):
            await watch


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "items is empty"),
        (b"\xff\xff not protobuf", "is not a seawall.api.prompt_scoring.v1.ScorePromptsRequest"),
        (request(*["ok"] * 9).SerializeToString(), "max_items"),
        (REQUEST(items=[prompt_scoring_pb2.PromptItem(id=7)] * 2).SerializeToString(), "items.id"),
    ],
)
async def test_a_request_that_makes_no_sense_is_invalid(body: bytes, field: str) -> None:
    async with running(max_items=8) as mesh, grpc.aio.insecure_channel(mesh.server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(METHOD)(body, timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in caught.value.details()
        assert mesh.scorer.scored == []


async def test_the_client_calls_an_invalid_request_poison() -> None:
    async with running() as mesh:
        with pytest.raises(Poison, match="INVALID_ARGUMENT"):
            await mesh.client.call(REQUEST(), 30)


async def test_a_call_without_a_deadline_gets_the_services_own() -> None:
    async with running(default_timeout_seconds=0.5) as mesh, grpc.aio.insecure_channel(mesh.server.address) as channel:
        call = channel.unary_unary(METHOD, REQUEST.SerializeToString, RESPONSE.FromString)
        assert statuses(await call(request("ok"))) == [(OK, "")]
        assert statuses(await call(request("wait"))) == [(ERROR, "DEADLINE_EXCEEDED")]


async def test_items_that_the_deadline_cut_off_err_and_the_others_keep_their_results() -> None:
    async with running(workers=1) as mesh:
        answered = statuses(await mesh.call("score:0.5", "wait", "score:0.5", timeout=1.0))
        assert answered == [(OK, ""), (ERROR, "DEADLINE_EXCEEDED"), (ERROR, "DEADLINE_EXCEEDED")]
        mesh.scorer.release.set()
        await eventually(lambda: mesh.batches.active == 0)
        assert mesh.scorer.scored == [0, 1]


async def test_no_time_left_is_told_without_a_call() -> None:
    async with running() as mesh:
        with pytest.raises(Retryable, match="DEADLINE_EXCEEDED"):
            await mesh.call("ok", timeout=0)
        assert mesh.scorer.scored == []


async def test_cancelling_the_caller_stops_the_work_at_the_next_item() -> None:
    async with running(workers=1) as mesh:
        call = asyncio.create_task(mesh.call("wait", *["ok"] * 50))
        await mesh.entered()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        (job,) = mesh.batches._jobs
        await eventually(lambda: job._cancelled)
        mesh.scorer.release.set()
        await eventually(lambda: mesh.batches.active == 0)
        assert mesh.scorer.scored == [0]
        assert statuses(await mesh.call("ok")) == [(OK, "")]


async def test_closing_the_channel_under_a_call_is_worth_another_try() -> None:
    async with running() as mesh:
        call = asyncio.create_task(mesh.call("wait"))
        await mesh.entered()
        await mesh.client.close()
        with pytest.raises(Retryable, match="CANCELLED"):
            await call


async def test_one_batch_too_many_is_refused_at_once() -> None:
    async with running(workers=1, max_concurrent_rpcs=2) as mesh:
        first = asyncio.create_task(mesh.call("wait"))
        await mesh.entered()
        second = asyncio.create_task(mesh.call("ok"))
        await eventually(lambda: mesh.batches.active == 2)
        with pytest.raises(Retryable) as caught:
            await mesh.call("ok")
        assert caught.value.reason == "RESOURCE_EXHAUSTED"
        mesh.scorer.release.set()
        assert statuses(await first) == statuses(await second) == [(OK, "")]
        assert statuses(await mesh.call("ok")) == [(OK, "")]


async def test_a_batch_whose_caller_is_gone_still_counts_until_its_item_ends() -> None:
    async with running(workers=1, max_concurrent_rpcs=1) as mesh:
        call = asyncio.create_task(mesh.call("wait"))
        await mesh.entered()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(Retryable, match="RESOURCE_EXHAUSTED"):
            await mesh.call("ok")
        mesh.scorer.release.set()
        await eventually(lambda: mesh.batches.active == 0)
        assert statuses(await mesh.call("ok")) == [(OK, "")]


async def test_calls_before_it_has_loaded_are_unavailable_and_health_says_so() -> None:
    async with running(ready=False, client={"max_attempts": 1}) as mesh:
        assert await health(mesh.server.address) == "NOT_SERVING"
        with pytest.raises(Retryable, match="UNAVAILABLE"):
            await mesh.call("ok")
        await mesh.server.ready(mesh.batches)
        assert await health(mesh.server.address) == "SERVING"
        assert await health(mesh.server.address, SERVICE) == "SERVING"
        await mesh.client._channel.channel_ready()


async def health(address: str, service: str = "") -> str:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


async def test_stuck_workers_make_it_not_serving_until_they_are_free() -> None:
    async with (
        running(workers=1, stuck_seconds=0.01) as mesh,
        grpc.aio.insecure_channel(mesh.server.address) as channel,
    ):
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch = asyncio.create_task(mesh.server.watch())
        call = asyncio.create_task(mesh.call("wait"))
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        mesh.scorer.release.set()
        await call
        assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        watched.cancel()


async def test_a_rolling_restart_fails_no_call() -> None:
    async with running(linger_seconds=0.3) as old, running() as new:
        both = RpcClientSettings(target=f"ipv4:{old.server.address},{new.server.address}", max_attempts=2)
        client: Client = StageClient(both, METHOD, REQUEST, RESPONSE)
        while not (old.scorer.scored and new.scorer.scored):
            assert statuses(await client.call(request("ok"), 30)) == [(OK, "")]
        stopping = asyncio.create_task(old.server.stop())
        while not stopping.done():
            answers = await asyncio.gather(*(client.call(request("ok", "ok"), 30) for _ in range(4)))
            assert [statuses(answer) for answer in answers] == [[(OK, "")] * 2] * 4
        after = len(old.scorer.scored)
        for _ in range(20):
            assert statuses(await client.call(request("ok"), 30)) == [(OK, "")]
        assert len(old.scorer.scored) == after
        await client.close()


async def test_a_server_that_says_not_serving_is_left_out() -> None:
    async with running() as one, running(ready=False) as loading:
        target = f"ipv4:{loading.server.address},{one.server.address}"
        client: Client = StageClient(RpcClientSettings(target=target, max_attempts=1), METHOD, REQUEST, RESPONSE)
        for _ in range(50):
            assert statuses(await client.call(request("ok"), 30, wait_for_ready=True)) == [(OK, "")]
        await loading.server.ready(loading.batches)
        while not loading.scorer.scored:
            assert statuses(await client.call(request("ok"), 30)) == [(OK, "")]
        await client.close()


async def test_reflection_lists_the_service() -> None:
    async with running() as mesh, grpc.aio.insecure_channel(mesh.server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter(
                [
                    reflection_pb2.ServerReflectionRequest(list_services=""),
                    reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
                ]
            ),
            timeout=30,
        )
        listed, described = [reply async for reply in call]
        assert SERVICE in [service.name for service in listed.list_services_response.service]
        assert described.file_descriptor_response.file_descriptor_proto


class Flaky:
    """A server that answers UNAVAILABLE ``failures`` times, then properly."""

    def __init__(self, failures: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.calls = 0
        self.failures = failures
        self.code = code

    async def serve(self, _: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        self.calls += 1
        if self.calls <= self.failures:
            await context.abort(self.code, "not now: the text of a prompt")
        return RESPONSE().SerializeToString()

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Client]:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(self.serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ScorePrompts": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client: Client = StageClient(
            RpcClientSettings(target=f"127.0.0.1:{port}", **settings), METHOD, REQUEST, RESPONSE
        )
        yield client
        await client.close()
        await server.stop(None)


async def test_unavailable_is_tried_again_a_bounded_number_of_times() -> None:
    flaky = Flaky(failures=2)
    async with flaky.running(max_attempts=3) as client:
        assert await client.call(request("ok"), 30) == RESPONSE()
    assert flaky.calls == 3
    broken = Flaky(failures=100)
    async with broken.running(max_attempts=3) as client:
        with pytest.raises(Retryable, match="UNAVAILABLE"):
            await client.call(request("ok"), 30)
    assert broken.calls == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Retryable),
        (grpc.StatusCode.INTERNAL, Retryable),
        (grpc.StatusCode.UNKNOWN, Retryable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Retryable),
        (grpc.StatusCode.INVALID_ARGUMENT, Poison),
        (grpc.StatusCode.UNAUTHENTICATED, Fatal),
    ],
)
async def test_other_errors_are_not_tried_again_and_become_ours(code: grpc.StatusCode, kind: type[Exception]) -> None:
    flaky = Flaky(failures=1, code=code)
    async with flaky.running() as client:
        with pytest.raises(kind, match=code.name) as caught:
            await client.call(request("ok"), 30)
    assert flaky.calls == 1
    # What a service says may quote what it was sent.
    assert kind is Fatal or "prompt" not in str(caught.value).replace("prompt_scoring", "")


async def test_a_server_that_is_not_there_is_unavailable_without_waiting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound, not listening: refused.
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        client: Client = StageClient(RpcClientSettings(target=target, max_attempts=1), METHOD, REQUEST, RESPONSE)
        with pytest.raises(Retryable, match="UNAVAILABLE"):
            await client.call(request("ok"), 30)
        await client.close()


async def test_an_unknown_method_is_fatal() -> None:
    async with running() as mesh:
        client: Client = StageClient(
            RpcClientSettings(target=mesh.server.address), f"/{SERVICE}/NoSuchMethod", REQUEST, RESPONSE
        )
        with pytest.raises(Fatal, match="UNIMPLEMENTED"):
            await client.call(request("ok"), 30)
        await client.close()


async def test_a_request_that_is_too_large_says_to_send_less() -> None:
    async with running(max_message_bytes=1000, client={"max_message_bytes": 10_000}) as mesh:
        with pytest.raises(Poison, match="MESSAGE_TOO_LARGE"):
            await mesh.call(*["x" * 100] * 50)
        with pytest.raises(Poison, match="MESSAGE_TOO_LARGE"):
            await mesh.call(*["x" * 100] * 500)


async def test_a_unix_socket_and_a_port_file(tmp_path: Path) -> None:
    async with running(uds=tmp_path / "s") as mesh:
        assert mesh.server.address == f"unix:{tmp_path}/s"
        assert statuses(await mesh.call("ok")) == [(OK, "")]
    async with running(port_file=tmp_path / "ports" / "service") as mesh:
        assert (tmp_path / "ports" / "service").read_text() == f"{mesh.server.port}\n"
    assert not (tmp_path / "ports" / "service").exists()


def certificates(folder: Path) -> None:
    """An authority, and a certificate it signed for 127.0.0.1, as PEM files."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    openssl("req", *curve, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=service")
    (folder / "extensions").write_text("subjectAltName=IP:127.0.0.1,DNS:service\n")
    openssl(
        *("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-extfile", "extensions", "-out", "certificate.pem"),
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
async def test_mutual_tls(tmp_path: Path) -> None:
    await asyncio.to_thread(certificates, tmp_path)
    ca, certificate, key = tmp_path / "ca.pem", tmp_path / "certificate.pem", tmp_path / "key.pem"
    server: dict[str, Any] = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": ca}
    ours: dict[str, Any] = {"tls_ca": ca, "tls_certificate": certificate, "tls_key": key}
    no_certificate: dict[str, Any] = {"tls_ca": ca}
    plain: dict[str, Any] = {}
    async with running(client=ours, **server) as mesh:
        assert statuses(await mesh.call("ok")) == [(OK, "")]
        for wrong in (no_certificate, plain):
            settings = RpcClientSettings(target=mesh.server.address, max_attempts=1, **wrong)
            client: Client = StageClient(settings, METHOD, REQUEST, RESPONSE)
            with pytest.raises(Retryable, match="UNAVAILABLE"):
                await client.call(request("ok"), 30)
            await client.close()
        assert len(mesh.scorer.scored) == 1


async def test_a_certificate_that_cannot_be_read_is_fatal(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    with pytest.raises(Fatal, match=r"rpc_server\.tls_key"):
        await RpcServer(RpcServerSettings(tls_certificate=absent, tls_key=absent), SERVICE).start()
    with pytest.raises(Fatal, match=r"rpc_client\.tls_ca"):
        StageClient(RpcClientSettings(tls_ca=absent), METHOD, REQUEST, RESPONSE)


async def test_a_port_that_is_taken_is_fatal() -> None:
    async with running() as mesh:
        with pytest.raises(Fatal, match="CANNOT_LISTEN"):
            await RpcServer(RpcServerSettings(port=mesh.server.port), SERVICE).start()


async def test_the_callers_trace_goes_on_in_the_service() -> None:
    exporter = InMemorySpanExporter()
    telemetry.install([exporter], TelemetrySettings(), Resource.create({}))
    caller = telemetry.TraceContext.new()
    unsampled = telemetry.TraceContext.new(sampled=False)
    async with running() as mesh:
        await mesh.client.call(request("ok", "ok"), 30, telemetry.metadata(caller))
        await mesh.client.call(request("ok"), 30, telemetry.metadata(unsampled))
        with pytest.raises(Poison):
            await mesh.client.call(REQUEST(), 30, telemetry.metadata(caller))
    telemetry.shutdown(timeout=30)
    good, bad = exporter.get_finished_spans()
    assert good.name == METHOD.removeprefix("/")
    assert good.kind.name == "SERVER"
    assert good.parent is not None
    assert f"{good.parent.trace_id:032x}-{good.parent.span_id:016x}" == f"{caller.trace_id}-{caller.span_id}"
    assert good.attributes is not None
    assert good.attributes["rpc.status_code"] == "OK"
    assert good.attributes["moderation.batch.size"] == 2
    assert bad.attributes is not None
    assert bad.attributes["rpc.status_code"] == bad.attributes["error.type"] == "INVALID_ARGUMENT"
    assert bad.events == ()


CHILD = """
    import sys, threading
    from pathlib import Path
    from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
    from seawall.api.signal.v1 import signal_pb2
    from seawall.core.errors import Fatal
    from seawall.runtime import rpc_server
    from seawall.runtime.settings import RoomSettings, RpcServerSettings, load_settings

    class Settings(RoomSettings):
        rpc_server: RpcServerSettings = RpcServerSettings()

    folder = Path(sys.argv[1])

    class Scorer:
        def score(self, item):
            (folder / "entered").touch()
            while not (folder / "release").exists():
                threading.Event().wait(0.01)
            return signal_pb2.ItemResult(status=signal_pb2.ITEM_STATUS_OK)

        def artefacts(self):
            return []

    def load():
        if sys.argv[2] == "broken":
            raise Fatal("DIGEST_MISMATCH", "model.onnx differs from its card: seawall models install demo")
        if sys.argv[2] == "slow":
            (folder / "entered").touch()
            threading.Event().wait(600)
        return Scorer()

    rpc_server.run(
        "prompt_scoring", load_settings(Settings, "prompt_scoring"),
        "/seawall.api.prompt_scoring.v1.PromptScoringService/ScorePrompts",
        prompt_scoring_pb2.ScorePromptsRequest, prompt_scoring_pb2.ScorePromptsResponse, load,
    )
"""


@asynccontextmanager
async def child(folder: Path, mode: str, **settings: str) -> AsyncIterator[Process]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SEAWALL_")},
        "SEAWALL_RPC_SERVER__PORT_FILE": str(folder / "port"),
        "SEAWALL_RPC_SERVER__LINGER_SECONDS": "0.5",
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(CHILD), str(folder), mode, env=environment, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def exists(path: Path, process: Process) -> None:
    await eventually(lambda: path.exists() or process.returncode is not None)
    assert process.returncode is None


async def address_of(folder: Path, process: Process) -> str:
    await exists(folder / "port", process)
    return f"127.0.0.1:{(folder / 'port').read_text().strip()}"


async def ended(process: Process) -> str:
    _, errors = await process.communicate()
    return errors.decode()


async def test_sigterm_drains_what_is_in_progress(tmp_path: Path) -> None:
    async with child(tmp_path, "serve") as process:
        address = await address_of(tmp_path, process)
        client: Client = StageClient(RpcClientSettings(target=address, timeout_seconds=60), METHOD, REQUEST, RESPONSE)
        call = asyncio.create_task(client.call(request("a", "b", "c"), 60))
        await exists(tmp_path / "entered", process)
        async with grpc.aio.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            # Callers are told before anything is refused.
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert process.returncode is None
            (tmp_path / "release").touch()
            assert statuses(await call) == [(OK, "")] * 3
            watch.cancel()
        await client.close()
        errors = await ended(process)
        assert process.returncode == 0
        assert [line for line in errors.splitlines() if '"stopped"' in line]
        assert not (tmp_path / "port").exists()


async def test_a_hung_item_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    async with child(tmp_path, "serve", SEAWALL_RPC_SERVER__DRAIN_SECONDS="0.2") as process:
        address = await address_of(tmp_path, process)
        client: Client = StageClient(
            RpcClientSettings(target=address, timeout_seconds=60, max_attempts=1), METHOD, REQUEST, RESPONSE
        )
        call = asyncio.create_task(client.call(request("a"), 60))
        await exists(tmp_path / "entered", process)
        process.send_signal(signal.SIGTERM)
        errors = await ended(process)
        assert process.returncode == 0
        assert "left behind" in errors
        with pytest.raises(Retryable):
            await call
        await client.close()


async def test_a_sigterm_while_it_loads_ends_it(tmp_path: Path) -> None:
    async with child(tmp_path, "slow") as process:
        await exists(tmp_path / "entered", process)
        process.send_signal(signal.SIGTERM)
        await ended(process)
        assert process.returncode == 0
        assert not (tmp_path / "port").exists()


async def test_a_broken_model_is_never_ready(tmp_path: Path) -> None:
    async with child(tmp_path, "broken") as process:
        errors = await ended(process)
        assert process.returncode == 1
        assert "DIGEST_MISMATCH" in errors
        assert '"serving"' not in errors
        assert not (tmp_path / "port").exists()
