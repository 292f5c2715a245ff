"""A client of a stage's RPC: every call has a deadline, only UNAVAILABLE is retried, errors become ours.

A target of several addresses ("dns:///…") is balanced round-robin over those whose health is SERVING.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc

from seawall.core.errors import Fatal, Poison, Retryable, SeawallError
from seawall.runtime import metrics
from seawall.runtime.settings import RpcClientSettings

Request = TypeVar("Request")
Response = TypeVar("Response")

_Code = grpc.StatusCode
#: The caller or the deployment is wrong: no other server and no later time will change the answer.
_FATAL = {_Code.UNIMPLEMENTED, _Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED}
#: Said by gRPC itself or by a balancer, not by a service that has seen content: may be repeated to a person.
_QUOTABLE = _FATAL | {_Code.UNAVAILABLE}


class StageClient(Generic[Request, Response]):
    """Calls one method of one service. Make it inside the event loop that uses it.

    Args:
        method: ``"/package.Service/Method"``.
    """

    def __init__(
        self, settings: RpcClientSettings, method: str, request_type: type[Request], response_type: type[Response]
    ) -> None:
        self._settings = settings
        self._method = method.removeprefix("/")
        service, _, name = self._method.rpartition("/")
        self._channel = _channel(settings, service)
        request: Any = request_type
        response: Any = response_type
        self._call = self._channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    async def call(
        self,
        request: Request,
        timeout: float,
        metadata: Iterable[tuple[str, str]] = (),
        *,
        wait_for_ready: bool = False,
    ) -> Response:
        """One call, attempts on UNAVAILABLE included, within ``timeout`` seconds (and the setting's own bound).

        ``wait_for_ready``: while no server can be reached wait for one, rather than fail with UNAVAILABLE at once.
        Cancelling the task that awaits it cancels the work on the server.

        Raises:
            Retryable: UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, CANCELLED or another gRPC status's name.
            Poison: INVALID_ARGUMENT, or MESSAGE_TOO_LARGE: send fewer items.
            Fatal: UNIMPLEMENTED, UNAUTHENTICATED, PERMISSION_DENIED.
        """
        timeout = min(timeout, self._settings.timeout_seconds)
        if timeout <= 0:
            raise Retryable("DEADLINE_EXCEEDED", f"no time was left to call {self._method}")
        began = time.monotonic()
        status = "OK"
        try:
            response: Response = await self._call(
                request, timeout=timeout, metadata=tuple(metadata), wait_for_ready=wait_for_ready
            )
            return response
        except grpc.aio.AioRpcError as error:
            status = error.code().name
            raise _ours(error, self._method, self._settings.target) from None
        except asyncio.CancelledError:
            status = "CANCELLED"
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but the call: the channel was closed under it.
            raise Retryable("CANCELLED", f"the call of {self._method} was cancelled: the channel is closed") from None
        finally:
            metrics.RPC_CLIENT_DURATION.record(
                time.monotonic() - began, {metrics.RPC_METHOD: self._method, metrics.RPC_STATUS: status}
            )

    async def close(self, grace: float | None = None) -> None:
        """End calls in progress after ``grace`` seconds (None: at once) and close the channel."""
        await self._channel.close(grace)


def _ours(error: grpc.aio.AioRpcError, method: str, target: str) -> SeawallError:
    code = error.code()
    if code is _Code.INVALID_ARGUMENT:
        return Poison(code.name, f"{method} refused the request: the service's log names the field")
    if code is _Code.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or ""):
        return Poison("MESSAGE_TOO_LARGE", f"a message of {method} exceeds max_message_bytes: send fewer items")
    said = f": {(error.details() or '')[:200]}" if code in _QUOTABLE else ""
    detail = f"{method} at {target} answered {code.name}{said}"
    return Fatal(code.name, detail) if code in _FATAL else Retryable(code.name, detail)


def _channel(settings: RpcClientSettings, service: str) -> grpc.aio.Channel:
    method_config: dict[str, Any] = {"name": [{"service": service}], "waitForReady": False}
    if settings.max_attempts > 1:
        method_config["retryPolicy"] = {
            "maxAttempts": settings.max_attempts,
            "initialBackoff": "0.05s",
            "maxBackoff": "0.5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    service_config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # A server that drains or is stuck says NOT_SERVING, and is left out until it says SERVING again.
        "healthCheckConfig": {"serviceName": service},
        "methodConfig": [method_config],
        # Retries stop while most calls fail: they would only add to what ails the servers.
        "retryThrottling": {"maxTokens": 50, "tokenRatio": 0.5},
    }
    backoff = int(settings.max_reconnect_backoff_seconds * 1000)
    options = [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.service_config_disable_resolution", 1),
        # A proxy named in the environment is for the web, not for our own services.
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", int(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", min(100, backoff)),
        ("grpc.min_reconnect_backoff_ms", min(100, backoff)),
        ("grpc.max_reconnect_backoff_ms", backoff),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
    ]
    if settings.tls_ca is None:
        return grpc.aio.insecure_channel(settings.target, options)
    if settings.tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", settings.tls_server_name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem("tls_ca", settings.tls_ca),
        private_key=_pem("tls_key", settings.tls_key),
        certificate_chain=_pem("tls_certificate", settings.tls_certificate),
    )
    return grpc.aio.secure_channel(settings.target, credentials, options)


def _pem(field: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise Fatal("BAD_SETTINGS", f"rpc_client.{field}: {path} cannot be read ({error.strerror})") from None
