"""A local fake of NCMEC's Hash Sharing API v2, with the faults that a real one has. Its lists are benign stand-ins.

Written after the public documentation's shapes: a range of time is answered in pages of any order, each with a cursor;
deleted entries stay as tombstones; feedback is a PUT.
"""

from __future__ import annotations

import base64
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape, quoteattr

NAMESPACE = "https://hashsharing.ncmec.org/hashsharing/v2"
PREFIX = "/hashsharing"
USER, PASSWORD = "stand-in-user", "correct-horse-battery"


@dataclass
class Entry:
    """One entry of the fake's list."""

    entry_id: str
    at: int
    fingerprints: Mapping[str, str]
    member: int = 42
    kind: str = "image"
    classification: str = "A1"
    deleted: bool = False
    #: Instead of all of the above, as it stands.
    raw: str = ""

    def xml(self) -> str:
        if self.raw:
            return self.raw
        tag = f"deleted{self.kind.capitalize()}" if self.deleted else self.kind
        prints = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in self.fingerprints.items())
        body = "" if self.deleted else f"<classification>{self.classification}</classification>"
        body += "" if self.deleted else f"<fingerprints>{prints}</fingerprints>"
        return (
            f"<{tag}><member id={quoteattr(str(self.member))}>Member</member><timestamp>{utc(self.at)}</timestamp>"
            f"<id>{escape(self.entry_id)}</id>{body}</{tag}>"
        )


@dataclass
class Answer:
    """A scripted answer in place of the real one."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Changes the body that would have been sent.
    spoil: Callable[[bytes], bytes] = lambda body: body
    #: Headers claim this many bytes more than come.
    short_by: int = 0
    #: Wait on this before answering; the client has given up by then.
    hold: threading.Event | None = None


@dataclass
class Request:
    """What the fake was asked."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    at: float


class FakeNcmec:
    """Use `fake_ncmec`."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.entries: list[Entry] = []
        self.requests: list[Request] = []
        #: (member, entry, fingerprint) -> "affirmative" or the reason's id.
        self.votes: dict[tuple[str, str, str], str] = {}
        self.reasons = {"guid-1": "Not illegal", "guid-2": "Wrong hash"}
        #: Answers for requests to come, by number from now on.
        self.script: list[Answer] = []
        #: Bad for as long as it stands: the answer for a request, or None.
        self.fault: Callable[[Request], Answer | None] = lambda request: None
        self.password = PASSWORD
        self.lock = threading.Lock()
        self.base_url = ""

    def entry_requests(self) -> list[Request]:
        """Requests for pages of entries."""
        return [request for request in self.requests if request.path.endswith("/v2/entries")]

    # ---- answers -----------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> tuple[int, bytes]:
        path = request.path.removeprefix(f"{PREFIX}/v2/")
        if request.method == "GET" and path == "entries":
            return 200, self._page(request.query)
        if request.method == "GET" and path.startswith("feedback/") and path.endswith("/reasons"):
            reasons = "".join(f"<reason guid={quoteattr(g)} name={quoteattr(n)}/>" for g, n in self.reasons.items())
            return 200, _document("availableFeedbackReasons", reasons)
        if request.method == "PUT" and path.startswith("entries/") and path.endswith("/feedback"):
            _, member, entry, fingerprint, _ = path.split("/")
            root = ET.fromstring(request.body)  # noqa: S314 (what our own client sent)
            guid = next((element.text or "" for element in root.iter() if element.tag.endswith("guid")), "affirmative")
            self.votes[member, urllib.parse.unquote(entry), fingerprint] = guid
            return 200, _document("submissionResult", "")
        return 404, b""

    def _page(self, query: Mapping[str, str]) -> bytes:
        start, stop = _seconds(query["from"]), _seconds(query["to"])
        inside = [entry for entry in self.entries if start <= entry.at <= stop]
        first = int(query.get("start", "0"))
        page = inside[first : first + self.page_size]
        groups = ""
        for kind in ("image", "video"):
            members = [entry for entry in page if entry.kind == kind]
            if members:
                newest = utc(max(entry.at for entry in members))
                groups += f'<{kind}s count="{len(members)}" maxTimestamp="{newest}">'
                groups += "".join(entry.xml() for entry in members) + f"</{kind}s>"
        following = first + self.page_size
        if following < len(inside):
            cursor = {"from": query["from"], "to": query["to"], "start": following, "size": self.page_size}
            link = "/v2/entries?" + urllib.parse.urlencode({**cursor, "max": len(inside)})
            groups += f"<paging><next>{escape(link)}</next></paging>"
        return _document("queryResult", groups)


@contextmanager
def fake_ncmec(page_size: int = 10) -> Iterator[FakeNcmec]:
    """The fake on a port of this machine, ended with the context."""
    fake = FakeNcmec(page_size)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def _answer(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(parts.query))
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            request = Request(self.command, parts.path, query, body, time.monotonic())
            with fake.lock:
                fake.requests.append(request)
                scripted = fake.script.pop(0) if fake.script else fake.fault(request)
            wanted = "Basic " + base64.b64encode(f"{USER}:{fake.password}".encode()).decode()
            if self.headers.get("Authorization") != wanted:
                self._send(Answer(401), b"")
                return
            with fake.lock:
                status, content = fake.answer(request)
            reply = scripted or Answer(status)
            if reply.hold is not None:
                reply.hold.wait(10)
            self._send(reply, reply.spoil(content) if reply.status == 200 else b"")

        def _send(self, reply: Answer, content: bytes) -> None:
            try:
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(content) + reply.short_by))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                if reply.short_by:
                    self.close_connection = True
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has gone: that is what some tests are about

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.base_url = f"http://127.0.0.1:{server.server_address[1]}{PREFIX}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def utc(seconds: int) -> str:
    """The API's form of a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())


def _document(root: str, body: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{root} xmlns="{NAMESPACE}">{body}</{root}>'.encode()
