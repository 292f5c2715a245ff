"""A stage's gRPC server, from NOT_SERVING through SERVING to the drain.

1. Listen, with health NOT_SERVING; calls are answered UNAVAILABLE.
2. Load models, packs and banks. Fatal ends the process: it was never ready, and what serves elsewhere goes on.
3. Health SERVING; the bound port is logged and written to `port_file`.
4. SIGTERM or SIGINT: health NOT_SERVING, so that balancers turn away, then no new calls, then wait for those in
   progress, then stop. Each step is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from seawall.core.errors import Fatal
from seawall.runtime import telemetry
from seawall.runtime.batch_service import BatchService, Scorer
from seawall.runtime.logging import get_logger
from seawall.runtime.logging import setup as setup_logging
from seawall.runtime.readiness import ReadyFile
from seawall.runtime.room_status import status
from seawall.runtime.settings import RpcServerSettings, TelemetrySettings

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

#: How often the server looks whether its workers are stuck (seconds).
_WATCH_SECONDS = 1.0
_log = get_logger(__name__)

T = TypeVar("T")


class ServiceSettings(Protocol):
    """What a room's settings need to run a service: `RoomSettings` and a field ``rpc_server``."""

    @property
    def instance(self) -> str: ...
    @property
    def telemetry(self) -> TelemetrySettings: ...
    @property
    def rpc_server(self) -> RpcServerSettings: ...


class RpcServer:
    """A grpc.aio server with health and reflection around one batch service.

    Args:
        service: full name of the gRPC service, ``"package.Service"``.
    """

    def __init__(self, settings: RpcServerSettings, service: str) -> None:
        self._settings = settings
        self._service_name = service
        self._batches: BatchService | None = None
        self._health = health.aio.HealthServicer()
        self._ready_file = ReadyFile()
        self._server: grpc.aio.Server | None = None
        #: Where it listens: "host:port" or "unix:/path". Empty before `start`.
        self.address = ""
        self.port = 0
        self._serving = False

    async def start(self) -> None:
        """Listen, not ready yet. Raises Fatal("CANNOT_LISTEN") or Fatal("BAD_SETTINGS")."""
        settings = self._settings
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # A second server on a port that is taken must fail, not share it.
                ("grpc.so_reuseport", 0),
                # Clients may ping as often as their keepalive says, calls or not.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ]
        )
        server.add_generic_rpc_handlers((_Gate(self),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((self._service_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self._say(_NOT_SERVING)
        host = f"[{settings.host}]" if ":" in settings.host and not settings.host.startswith("[") else settings.host
        wanted = f"unix:{settings.uds}" if settings.uds else f"{host}:{settings.port}"
        credentials = _credentials(settings)
        try:
            if credentials is None:
                self.port = server.add_insecure_port(wanted)
            else:
                self.port = server.add_secure_port(wanted, credentials)
        except RuntimeError:
            raise Fatal(
                "CANNOT_LISTEN", f"rpc_server: {wanted} is taken or not ours: choose another port, or 0 for any"
            ) from None
        self.address = wanted if settings.uds else f"{host}:{self.port}"
        await server.start()
        self._server = server

    async def ready(self, batches: BatchService) -> None:
        """Everything is loaded: serve."""
        self._batches = batches
        if self._settings.port_file is not None:
            _write_port(self._settings.port_file, self.port)
        status.about("artefacts", batches.artefacts)
        self._serving = not batches.unready()
        await self._say(_SERVING if self._serving else _NOT_SERVING)
        if not self._serving:
            status.blocked(batches.unready())
            _log.error("not serving", why=batches.unready())
        _log.info("serving", address=self.address, port=self.port, service=self._service_name)

    async def watch(self) -> None:
        """Until cancelled, be NOT_SERVING while every worker is stuck or the scorer is unready.

        Raises Fatal if the scorer asked to stop.
        """
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            batches = self._batches
            if batches is None:
                continue
            if batches.failure is not None:
                raise batches.failure
            why = "every worker is stuck on an item" if batches.stuck() else batches.unready()
            if bool(why) == self._serving:
                self._serving = not why
                status.blocked(why)
                await self._say(_NOT_SERVING if why else _SERVING)
                _log.warning(why or "serving again")

    async def stop(self) -> None:
        """NOT_SERVING, drain, stop; bounded by `linger_seconds` and `drain_seconds`."""
        if self._server is None:
            return
        settings = self._settings
        self._ready_file.set(False)
        await self._health.enter_graceful_shutdown()
        if self._batches is not None:
            _log.info("draining", batches=self._batches.active)
            # Callers learn of NOT_SERVING in their own time; a call that arrives meanwhile is still answered.
            await asyncio.sleep(settings.linger_seconds)
        await self._server.stop(settings.drain_seconds)
        if self._batches is not None:
            # `stop` does not wait for handlers that it aborted, nor for the items they had begun.
            await self._batches.close(timeout=1.0)
        if settings.port_file is not None:
            settings.port_file.unlink(missing_ok=True)
        _log.info("stopped")

    async def _say(self, state: int) -> None:
        for name in (health.OVERALL_HEALTH, self._service_name):
            await self._health.set(name, state)
        self._ready_file.set(state == _SERVING)


class _Gate(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Passes calls on once there is a service; handlers cannot be added to a server that has started."""

    def __init__(self, server: RpcServer) -> None:
        self._server = server
        self._handler: grpc.GenericRpcHandler | None = None
        self._loading = grpc.unary_unary_rpc_method_handler(_loading)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if self._handler is None:
            if self._server._batches is None:
                mine = details.method.startswith(f"/{self._server._service_name}/")
                return self._loading if mine else None
            self._handler = self._server._batches.handler()
        return self._handler.service(details)


async def _loading(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the service is loading its models")
    raise AssertionError("abort raises")


def run(
    room: str,
    settings: ServiceSettings,
    method: str,
    request_type: type[Any],
    response_type: type[Any],
    load: Callable[[], Scorer],
) -> None:
    """Run a stage's service until SIGTERM or SIGINT. The body of a room's ``main``.

    Args:
        room: "prompt_scoring".
        method: ``"/package.Service/Method"``.
        load: makes the scorer: loads and checks models, packs, banks. Called once, off the event loop.

    Raises Fatal as `load` does, or if it cannot listen, or if the scorer raised it.
    """
    setup_logging(settings.telemetry, room, settings.instance)
    telemetry.setup(settings.telemetry, room, settings.instance)
    try:
        uvloop.run(_run(settings, method, request_type, response_type, load))
    finally:
        telemetry.shutdown()


async def _run(
    settings: ServiceSettings,
    method: str,
    request_type: type[Any],
    response_type: type[Any],
    load: Callable[[], Scorer],
) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    server = RpcServer(settings.rpc_server, method.removeprefix("/").rpartition("/")[0])
    await server.start()
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(asked.wait())]
    try:
        loading = _in_daemon_thread(load)
        await asyncio.wait([loading, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if asked.is_set():
            return
        scorer = loading.result()
        # What has been loaded lives to the end: a full collection would look through all of it while callers wait.
        gc.collect()
        gc.freeze()
        batches = BatchService(method, request_type, response_type, scorer, settings.rpc_server, settings.instance)
        await server.ready(batches)
        tasks.append(asyncio.ensure_future(server.watch()))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Fatal):
            await asyncio.gather(*tasks)
        await server.stop()


def _in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Like `asyncio.to_thread`, but a SIGTERM during a long load need not wait for its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=body, name="load", daemon=True).start()
    return future


def _credentials(settings: RpcServerSettings) -> grpc.ServerCredentials | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    key = _pem("tls_key", settings.tls_key)
    certificate = _pem("tls_certificate", settings.tls_certificate)
    authorities = _pem("tls_client_ca", settings.tls_client_ca) if settings.tls_client_ca else None
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authorities, require_client_auth=authorities is not None
    )


def _pem(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fatal("BAD_SETTINGS", f"rpc_server.{field}: {path} cannot be read ({error.strerror})") from None


def _write_port(path: Path, port: int) -> None:
    # Renamed into place: a reader never sees half a number.
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(f"{port}\n", encoding="ascii")
        part.replace(path)
    except OSError as error:
        raise Fatal("BAD_SETTINGS", f"rpc_server.port_file: {path} cannot be written ({error.strerror})") from None
