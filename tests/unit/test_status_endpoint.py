"""A room's own endpoint, in a process of its own: instruments are bound to a process's first provider for good."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from seawall.oncall.rooms import Endpoint, ask
from seawall.runtime.prometheus import metric_name

#: A room that has decided twice, one of them traced, and then waits for its end.
ROOM = """
import sys
from pathlib import Path
from opentelemetry.trace import SpanKind
from seawall.runtime import metrics, telemetry
from seawall.runtime.readiness import ReadyFile
from seawall.runtime.room_status import status
from seawall.runtime.settings import TelemetrySettings

folder = Path(sys.argv[1])
settings = TelemetrySettings(
    http_listen="127.0.0.1:0", http_port_file=folder / "room.http", spans_file=folder / "spans.jsonl"
)
telemetry.setup(settings, "aggregator", "aggregator-7")
status.blocked("FUSE_TRIPPED: look at the newest dead letters")
status.about("policies", lambda: [{"name": "default", "version": "2", "sha256": "ab" * 32}])
trace = telemetry.TraceContext("ab" * 16, "cd" * 8)
root = telemetry.record_span("decide decisions.v1", SpanKind.CONSUMER, 1, 2, parent=trace)
metrics.DECISION_DURATION.record(0.03, {metrics.OUTCOME: "OUTCOME_BLOCK"}, telemetry.as_current(root))
metrics.DECISION_DURATION.record(0.04, {metrics.OUTCOME: "OUTCOME_ALLOW"})
metrics.DECISIONS.add(2, {metrics.OUTCOME: 'OUT"COME\\nX', metrics.RULE: "r"})
metrics.JOINS_OPEN.watch(lambda: [(3, {})])
print(root.span_id, flush=True)
for line in sys.stdin:
    ReadyFile().set(line.strip() == "ready")
    print("done", flush=True)
telemetry.shutdown()
"""


class Room:
    def __init__(self, folder: Path) -> None:
        self.port_file = folder / "room.http"
        self.process = subprocess.Popen(
            [sys.executable, "-c", ROOM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.span_id = self.process.stdout.readline().strip()
        self.address = self.port_file.read_text().strip()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)

    def get(self, path: str, accept: str = "*/*") -> str:
        request = urllib.request.Request(f"http://{self.address}{path}", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - its own endpoint
            return str(response.read().decode())


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = Room(tmp_path_factory.mktemp("room"))
    try:
        yield room
    finally:
        room.process.kill()
        room.process.wait()
        for pipe in (room.process.stdin, room.process.stdout):
            assert pipe is not None
            pipe.close()


def test_metrics_are_scraped_under_the_collectors_names(room: Room) -> None:
    families = {one.name: one for one in prometheus(room.get("/metrics"))}
    (counted,) = families["moderation_decisions"].samples
    assert (counted.name, counted.value) == ("moderation_decisions_total", 2)
    assert counted.labels == {
        "service_name": "aggregator",
        "service_instance_id": "aggregator-7",
        "moderation_outcome": 'OUT"COME\nX',
        "moderation_rule": "r",
    }
    assert [one.value for one in families["moderation_join_open"].samples] == [3]
    buckets = {
        (one.labels["le"], one.labels["moderation_outcome"]): one.value
        for one in families["moderation_decision_duration_seconds"].samples
        if one.name.endswith("_bucket")
    }
    assert buckets["0.025", "OUTCOME_BLOCK"] == 0
    assert buckets["0.05", "OUTCOME_BLOCK"] == buckets["+Inf", "OUTCOME_BLOCK"] == 1


def test_a_slow_bucket_leads_to_its_trace_for_every_scraper(room: Room) -> None:
    for _ in range(2):
        scraped = openmetrics(  # type: ignore[no-untyped-call]
            room.get("/metrics", "application/openmetrics-text; version=1.0.0")
        )
        found = [
            (sample.labels["le"], sample.labels["moderation_outcome"], sample.exemplar)
            for family in scraped
            for sample in family.samples
            if sample.exemplar is not None
        ]
        ((bound, outcome, exemplar),) = found
        assert (bound, outcome) == ("0.05", "OUTCOME_BLOCK")
        assert exemplar.value == 0.03
        assert exemplar.labels == {"trace_id": "ab" * 16, "span_id": room.span_id}


def test_a_room_says_why_it_is_not_ready(room: Room) -> None:
    document = json.loads(room.get("/status"))
    assert (document["room"], document["instance"], document["ready"]) == ("aggregator", "aggregator-7", False)
    assert document["why"].startswith("FUSE_TRIPPED")
    assert document["policies"][0]["name"] == "default"
    with pytest.raises(urllib.error.HTTPError, match="503"):
        room.get("/ready")
    room.say("ready")
    assert room.get("/ready") == "ready\n"
    assert json.loads(room.get("/status"))["why"] == ""
    (sample,) = next(one for one in prometheus(room.get("/metrics")) if one.name == "moderation_ready_ratio").samples
    assert sample.value == 1
    room.say("not ready")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        room.get("/ready")


def test_other_paths_are_not_there(room: Room) -> None:
    for path in ("/", "/metrics/../etc", "/debug"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            room.get(path)


@contextmanager
def trickling() -> Iterator[str]:
    """The address of what answers a letter at a time, and never ends, until it is left."""
    gone = threading.Event()

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while not gone.wait(0.05):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            gone.set()
            thread.join(10)


async def test_whoever_asks_all_rooms_learns_which_do_not_answer(room: Room) -> None:
    # Connections are taken by the kernel, and nobody ever reads: a process that is stopped.
    with socket.create_server(("127.0.0.1", 0)) as stopped, trickling() as drip:
        silent = f"127.0.0.1:{stopped.getsockname()[1]}"
        answers = await ask(
            [
                Endpoint("aggregator", room.address),
                Endpoint("gate", "", "it is not running"),
                Endpoint("ledger", "127.0.0.1:1"),
                Endpoint("classification", silent),
                Endpoint("prompt_scoring", drip),
                Endpoint("perceptual_hashing", ""),
                Endpoint("console", "no-such-host.invalid:80"),
            ],
            timeout=0.5,
        )
    by_room = {answer.room: answer for answer in answers}
    assert by_room["aggregator"].fault == ""
    assert by_room["aggregator"].value("moderation_decisions_total", service_name="aggregator") == 2
    assert abs(by_room["aggregator"].ahead) < 1
    assert by_room["gate"].fault == "it is not running"
    assert "it is gone" in by_room["ledger"].fault
    assert "it hangs, or is stopped" in by_room["classification"].fault
    assert "it hangs" in by_room["prompt_scoring"].fault
    assert "not known" in by_room["perceptual_hashing"].fault
    assert "has no address" in by_room["console"].fault


def test_the_endpoint_ends_with_its_room(tmp_path: Path) -> None:
    room = Room(tmp_path)
    assert room.port_file.exists()
    assert room.end() == 0
    assert room.process.stdout is not None
    room.process.stdout.close()
    assert not room.port_file.exists()


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "256.0.0.1:0", "127.0.0.1:99999"])
def test_an_address_that_cannot_be_had_is_refused_with_its_mend(listen: str, room: Room) -> None:
    taken = room.address if listen == "127.0.0.1:1" else listen
    program = (
        "import sys; from seawall.runtime import telemetry; from seawall.runtime.settings import TelemetrySettings;"
        "telemetry.setup(TelemetrySettings(http_listen=sys.argv[1]), 'room', 'room-0')"
    )
    done = subprocess.run([sys.executable, "-c", program, taken], capture_output=True, text=True)
    assert "telemetry.http_listen: cannot listen on" in done.stderr


@pytest.mark.parametrize(
    ("name", "kind", "unit", "expected"),
    [
        ("moderation.decision.duration", "histogram", "s", "moderation_decision_duration_seconds"),
        ("moderation.decisions", "counter", "{decision}", "moderation_decisions_total"),
        ("moderation.batch.active", "level", "{batch}", "moderation_batch_active"),
        ("moderation.model.score.stability", "gauge", "{index}", "moderation_model_score_stability"),
        ("moderation.model.score", "histogram", "1", "moderation_model_score"),
        ("moderation.share", "gauge", "1", "moderation_share_ratio"),
        ("rpc.server.call.duration", "histogram", "s", "rpc_server_call_duration_seconds"),
    ],
)
def test_names_are_the_collectors(name: str, kind: str, unit: str, expected: str) -> None:
    assert metric_name(name, kind, unit) == expected
