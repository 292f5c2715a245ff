"""An object store over HTTP that can be away: answers GET as S3 would."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ObjectStore:
    """Objects below ``s3://bucket/``, served at a port of the system's choice, and at the same again."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread = threading.Thread()

    @property
    def environment(self) -> dict[str, str]:
        """Settings of a room that reads media from it, for ``Lane.run``."""
        options = {"endpoint": f"http://127.0.0.1:{self._port}", "region": "local", "skip_signature": "true"}
        return {
            "CONTENT__ALLOWED_PREFIXES": json.dumps(["s3://bucket/"]),
            "CONTENT__STORE_OPTIONS": json.dumps(options),
            "CONTENT__TIMEOUT_SECONDS": "2",
        }

    def start(self) -> None:
        """Answer."""
        objects = self.objects

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = objects.get(self.path.removeprefix("/bucket/"))
                self.send_response(404 if body is None else 200)
                self.send_header("ETag", '"1"')
                self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
                self.send_header("Content-Length", str(len(body or b"")))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body or b"")
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Be away: connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None
