"""A room's own HTTP endpoint, beside its work: `/metrics` for Prometheus, `/status` for a person, `/ready` for a probe.

It runs in a thread of its own, so that it answers while the event loop hangs; a room that is stopped or gone does not,
and that is an answer too. It tells names, digests and counts, no content, and takes no orders.
"""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from seawall.core.errors import Fatal
from seawall.runtime.room_status import status

#: A client that says nothing for so long is cut off (seconds).
_PATIENCE = 5.0


class StatusServer:
    """Serves until `close`.

    Args:
        listen: "host:port"; port 0: any.
        port_file: the bound "host:port" is written here.

    Raises Fatal("BAD_SETTINGS") if it cannot listen or write.
    """

    def __init__(self, listen: str, port_file: Path | None, registry: CollectorRegistry) -> None:
        host, _, port = listen.rpartition(":")
        handler = type("Handler", (_Handler,), {"registry": registry})
        try:
            self._server = _Server((host.strip("[]"), int(port)), handler)
        except (OSError, ValueError, OverflowError) as error:
            raise Fatal(
                "BAD_SETTINGS",
                f"telemetry.http_listen: cannot listen on {listen} ({type(error).__name__}): "
                'write "host:port", with a port that is free, or 0 for any',
            ) from None
        self.address = f"{host}:{self._server.server_address[1]}"
        self._port_file = port_file
        if port_file is not None:
            try:
                port_file.parent.mkdir(parents=True, exist_ok=True)
                part = port_file.with_name(port_file.name + ".part")
                part.write_text(f"{self.address}\n", encoding="ascii")
                part.replace(port_file)
            except OSError as error:
                self._server.server_close()
                raise Fatal(
                    "BAD_SETTINGS", f"telemetry.http_port_file: {port_file} cannot be written ({error.strerror})"
                ) from None
        threading.Thread(target=self._server.serve_forever, name="status-server", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        if self._port_file is not None:
            self._port_file.unlink(missing_ok=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A scraper and a person or two: more would only hold threads.
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    registry: ClassVar[CollectorRegistry]
    timeout = _PATIENCE
    server_version = "seawall"
    sys_version = ""

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, content_type, encode(self.registry))
            case "/status":
                self._answer(HTTPStatus.OK, "application/json", json.dumps(status.document()).encode())
            case "/ready":
                ready = status.is_ready
                code = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(code, "text/plain", b"ready\n" if ready else b"not ready\n")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics, /status or /ready\n")

    def _answer(self, code: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""
