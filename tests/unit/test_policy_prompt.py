"""Policy as prompt against a local server that answers, fails, hangs and lies."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from seawall.core.errors import Fatal, Retryable
from seawall.prompt_scoring.detection import Detection
from seawall.prompt_scoring.policy_prompt import PolicyPrompt
from seawall.prompt_scoring.settings import PolicyPromptSettings
from seawall.prompt_scoring.text_scorer import Reading, Unscannable

SECRET = "zugzwang"  # noqa: S105 - a word to look for
Reply = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """An OpenAI-compatible endpoint on a loopback port, and what it was asked."""

    def __init__(self) -> None:
        self.reply: Reply = chat('{"score": 0.25}')
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        #: Ends a reply that hangs.
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append({"path": self.path, **json.loads(body)})
                outer.headers.append(dict(self.headers))
                try:
                    outer.reply(self)
                except OSError:
                    return  # The client has gone: it waited long enough.

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def send(data: bytes, status: int = 200, length: int | None = None) -> Reply:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def chat(content: object, finish: str = "stop", **message: object) -> Reply:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return send(json.dumps({"choices": [choice]}).encode())


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def provider(server: Server, tmp_path: Path, **changes: Any) -> PolicyPrompt:
    policy = tmp_path / "policy.txt"
    policy.write_text("No storms.", encoding="utf-8")
    options: dict[str, Any] = {"url": server.url, "model": "guard", "policy": policy, "ask": "always"}
    return PolicyPrompt(PolicyPromptSettings(**{**options, **changes}))


def read(text: str = SECRET, detected: float = 1.0, negative: str = "") -> Reading:
    return Reading(text, negative, (), Detection(minor_sexual=detected))


def test_the_operators_model_is_asked_by_the_operators_policy(server: Server, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k-1\n", encoding="utf-8")
    asked = provider(server, tmp_path, api_key_file=key)
    assert asked.score(read("a storm", negative="rain")) == {"policy_prompt": 0.25}
    (request,) = server.asked
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"]) == ("guard", 0)
    system, user = request["messages"]
    assert system["role"] == "system" and system["content"].startswith("No storms.")
    assert json.loads(user["content"]) == {"prompt": "a storm", "negative_prompt": "rain", "turns": []}
    assert server.headers[0]["Authorization"] == "Bearer k-1"


def test_only_what_terms_detect_is_asked_about_unless_said_otherwise(server: Server, tmp_path: Path) -> None:
    asked = provider(server, tmp_path, ask="detected")
    assert asked.score(read(detected=0.0)) == {}
    assert not server.asked
    assert asked.score(read(detected=0.5)) == {"policy_prompt": 0.25}


def test_the_same_prompt_is_asked_about_once_and_an_error_again(server: Server, tmp_path: Path) -> None:
    asked = provider(server, tmp_path)
    server.reply = send(b"", 500)
    for _ in range(2):
        with pytest.raises(Retryable, match="POLICY_PROMPT_STATUS"):
            asked.score(read())
    server.reply = chat('{"score": 1}')
    for _ in range(2):
        assert asked.score(read()) == {"policy_prompt": 1.0}
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (send(b"busy", 429), "STATUS"),
        (send(b"", 302), "STATUS"),
        (send(b"<html>"), "GARBAGE"),
        (send(b'{"choices": [{"message": {"content": "{\\"score'), "GARBAGE"),
        (send(b'{"choices": ', length=900), "GARBAGE"),
        (send(b'{"choices": []}'), "GARBAGE"),
        (send(b"[" * 40_000), "GARBAGE"),
        (send(b'{"a": "' + b"x" * 70_000 + b'"}'), "GARBAGE"),
        (chat(None), "GARBAGE"),
        (chat("I would say it is fine."), "GARBAGE"),
        (chat('{"score": 2}'), "GARBAGE"),
        (chat('{"score": true}'), "GARBAGE"),
        (chat('{"score": NaN}'), "GARBAGE"),
        (chat('{"score": "0"}'), "GARBAGE"),
        (chat("0"), "GARBAGE"),
        (chat('{"score": 0}', finish="length"), "GARBAGE"),
        (chat(None, refusal="I cannot help with that."), "REFUSED"),
        (chat('{"score": 0}', finish="content_filter"), "REFUSED"),
    ],
)
def test_whatever_is_no_score_is_an_error_and_tells_no_content(
    server: Server, tmp_path: Path, reply: Reply, reason: str
) -> None:
    server.reply = reply
    with pytest.raises(Retryable) as caught:
        provider(server, tmp_path).score(read())
    assert caught.value.reason == f"POLICY_PROMPT_{reason}"
    assert SECRET not in str(caught.value)


def test_a_server_that_hangs_or_drips_is_left_at_the_deadline(server: Server, tmp_path: Path) -> None:
    asked = provider(server, tmp_path, timeout_seconds=0.3)

    def hang(_handler: BaseHTTPRequestHandler) -> None:
        server.released.wait(60)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.released.wait(0.02):
            handler.wfile.write(b" ")

    for reply in (hang, drip):
        server.reply = reply
        with pytest.raises(Retryable, match="POLICY_PROMPT_TIMEOUT"):
            asked.score(read())


def test_no_more_requests_than_allowed_are_on_their_way(server: Server, tmp_path: Path) -> None:
    began = threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> None:
        began.set()
        server.released.wait(60)
        chat('{"score": 0.5}')(handler)

    server.reply = hang
    asked = provider(server, tmp_path, max_concurrency=1, timeout_seconds=30)
    found: list[float] = []
    first = threading.Thread(target=lambda: found.append(asked.score(read("one"))["policy_prompt"]))
    first.start()
    assert began.wait(30)
    second = threading.Thread(target=lambda: found.append(asked.score(read("two"))["policy_prompt"]))
    second.start()
    assert len(server.asked) == 1
    server.released.set()
    first.join(30)
    second.join(30)
    assert found == [0.5, 0.5]
    assert len(server.asked) == 2


def test_a_server_that_is_away_is_an_error(server: Server, tmp_path: Path) -> None:
    asked = provider(server, tmp_path)
    server.close()
    with pytest.raises(Retryable, match="POLICY_PROMPT_UNREACHABLE"):
        asked.score(read())


def test_a_long_prompt_is_not_sent(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Unscannable, match="TOO_LONG"):
        provider(server, tmp_path, max_prompt_bytes=64).score(read("x" * 64))
    assert not server.asked


def test_what_cannot_be_used_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"BAD_POLICY_PROMPT: policy_prompt\.policy"):
        provider(server, tmp_path, policy=tmp_path / "absent")
    (tmp_path / "empty").write_text(" ")
    with pytest.raises(Fatal, match=r"BAD_POLICY_PROMPT: policy_prompt\.api_key_file"):
        provider(server, tmp_path, api_key_file=tmp_path / "empty")
    with pytest.raises(Fatal, match="BAD_POLICY_PROMPT"):
        provider(server, tmp_path, url="http://127.0.0.1:99999/v1")
    one, other = provider(server, tmp_path), provider(server, tmp_path, model="other")
    assert one.artefacts[0].sha256 != other.artefacts[0].sha256
