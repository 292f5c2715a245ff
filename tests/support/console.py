"""A console of a test's own: a real ledger in a file, a broker in memory, and, for browsers, a real server in a thread.

Nothing in it is content: made-up ids, scores and digests.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.api.signal.v1 import signal_pb2
from seawall.console.app import application
from seawall.console.lookup import LookUp
from seawall.console.records import DecisionRecords, Ends
from seawall.console.settings import ConsoleSettings
from seawall.console.shapes import RoomNow
from seawall.console.sign_in import OneTimeToken
from seawall.console.state import State
from seawall.console.watch import Watch
from seawall.core import identity
from seawall.ledger import database
from seawall.ledger.rows import Rows
from seawall.ledger.settings import DatabaseSettings
from seawall.ledger.writer import Position, Writer
from seawall.runtime.broker import Output, TopicPartition, TopicSpec
from seawall.runtime.memory import InMemoryBroker
from tests.support import ledger_rows
from tests.support.ledger_rows import ALLOW, BLOCK, HOLD, NANOS, REVIEW
from tests.support.records import CLASSIFICATION, DECISIONS, HASHING, OVERRIDES

DEAD_LETTERS = "dead_letters.v1"
REPORT = decision_pb2.OUTCOME_BLOCK_AND_REPORT
PARTITIONS = 2
MS = 1_000_000


@dataclass
class Rooms:
    """A `watch.Rooms` that says what it is told to."""

    rooms: list[RoomNow] = field(default_factory=list)

    async def look(self) -> list[RoomNow]:
        return self.rooms


@dataclass
class Console:
    """The application and what stands behind it."""

    app: FastAPI
    state: State
    broker: InMemoryBroker
    rooms: Rooms
    token: OneTimeToken | None

    async def close(self) -> None:
        self.state.db.dispose()

    def client(self) -> httpx2.AsyncClient:
        """A browser without a screen: keeps cookies, follows nothing."""
        return httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://127.0.0.1")

    async def signed_in(self) -> httpx2.AsyncClient:
        """One that has redeemed the token."""
        client = self.client()
        assert self.token is not None
        page = await client.get("/login")
        form = {"csrf": csrf_of(page.text), "token": self.token.link.partition("token=")[2]}
        answer = await client.post("/login", data=form)
        assert answer.status_code == 303, answer.text
        return client


def csrf_of(html: str) -> str:
    """The token in a page's first form."""
    return html.partition('name="csrf" value="')[2].partition('"')[0]


def settings(folder: Path, **fields: Any) -> ConsoleSettings:
    """Settings of a console whose ledger is a file in the folder."""
    made = {
        "database": DatabaseSettings(url=SecretStr(f"sqlite:///{folder / 'ledger.db'}"), timeout_seconds=5.0),
        "scan_seconds": 5.0,
        **fields,
    }
    return ConsoleSettings(**made)


async def open_console(
    folder: Path,
    decisions: Sequence[decision_pb2.Decision] = (),
    letters: Iterable[dead_letter_pb2.DeadLetter] = (),
    words: Sequence[Override] = (),
    *,
    in_ledger: int | None = None,
    address: str = "http://127.0.0.1",
    **fields: Any,
) -> Console:
    """A console over these records.

    Args:
        in_ledger: the ledger has read so many of the decisions; None: all.
    """
    made = settings(folder, **fields)
    broker = InMemoryBroker()
    admin = broker.admin()
    await admin.start()
    await admin.create([TopicSpec(name, PARTITIONS, {}) for name in (DECISIONS, DEAD_LETTERS, OVERRIDES)], 1)
    database.migrate(owner := database.connect(made.database))
    owner.dispose()
    db = database.connect(made.database, bound_statements=True)
    await _fill(db, broker, decisions, list(letters), words, len(decisions) if in_ledger is None else in_ledger)
    records = DecisionRecords(broker, DECISIONS, OVERRIDES, record_seconds=2.0, scan_seconds=made.scan_seconds)
    rooms = Rooms()
    watch = Watch(rooms, Ends(broker, (DECISIONS, DEAD_LETTERS, OVERRIDES)), every=600.0, timeout=2.0)
    await watch.look()
    state = State(made, db, watch, LookUp(db, records))
    token = None if made.oidc else OneTimeToken(address, folder / "console.link")
    return Console(application(state, token=token), state, broker, rooms, token)


async def _fill(
    db: Any,
    broker: InMemoryBroker,
    decisions: Sequence[decision_pb2.Decision],
    letters: Sequence[dead_letter_pb2.DeadLetter],
    words: Sequence[Override],
    in_ledger: int,
) -> None:
    producer = broker.producer()
    await producer.start()
    values = [(one.generation_id.encode(), one.SerializeToString()) for one in decisions]
    await producer.send([Output(DECISIONS, n % PARTITIONS, key, value) for n, (key, value) in enumerate(values)])
    await producer.send([Output(DEAD_LETTERS, 0, b"k", one.SerializeToString()) for one in letters])
    await producer.send([Output(OVERRIDES, 0, one.generation_id.encode(), one.SerializeToString()) for one in words])
    rows, read = Rows(), {}
    for number, (one, (_, value)) in enumerate(list(zip(decisions, values, strict=True))[:in_ledger]):
        partition, offset = number % PARTITIONS, number // PARTITIONS
        rows.add_decision(ledger_rows.record(offset, value, partition=partition))
        read[TopicPartition(DECISIONS, partition)] = Position(offset + 1, one.decided_unix_nano)
    for offset, letter in enumerate(letters):
        rows.add_dead_letter(ledger_rows.record(offset, letter.SerializeToString(), topic=DEAD_LETTERS))
        read[TopicPartition(DEAD_LETTERS, 0)] = Position(offset + 1, letter.create_unix_nano)
    for offset, said in enumerate(words):
        rows.add_override(ledger_rows.record(offset, said.SerializeToString(), topic=OVERRIDES))
        read[TopicPartition(OVERRIDES, 0)] = Position(offset + 1, said.made_unix_nano)
    Writer(db).write(rows, read)


def recent(
    number: int, *, ago: float, outcome: decision_pb2.Outcome.ValueType = ALLOW, took_ms: int = 120, **fields: Any
) -> decision_pb2.Decision:
    """A whole decision of ``ago`` seconds before now, with timings, comparisons and artefacts."""
    made = ledger_rows.decision(number, outcome=outcome, **fields)
    decided = time.time_ns() - int(ago * NANOS)
    begin = decided - took_ms * MS
    made.decided_unix_nano, made.generation_log_unix_nano = decided, begin
    made.policy_version, made.bundle_digest = "2", "b" * 64
    made.generation_record.topic, made.generation_record.partition = "generations.v1", number % PARTITIONS
    del made.comparisons[:]
    _RULES.get(outcome, _allow)(made)
    for place, joined in enumerate(made.signals):
        signal = joined.signal
        signal.relay_instance, signal.service_instance = f"{signal.stage}.relay-0", f"{signal.stage}-0"
        signal.rpc_attempts, signal.batch_size = 1, 16
        step = took_ms * MS // 12
        times = signal.timings
        times.received_unix_nano = begin + step
        times.batched_unix_nano = begin + 2 * step
        times.sent_unix_nano = begin + 2 * step
        times.inference_start_unix_nano = begin + (3 + place) * step
        times.inference_end_unix_nano = begin + (6 + 2 * place) * step
        times.produced_unix_nano = begin + (7 + 2 * place) * step
        joined.log_unix_nano = begin + (7 + 2 * place) * step
        joined.record.topic, joined.record.partition, joined.record.offset = (
            "signals.v1",
            number % 2,
            3 * number + place,
        )
    made.completed_by.topic, made.completed_by.partition, made.completed_by.offset = (
        "signals.v1",
        number % 2,
        3 * number,
    )
    return made


def _compare(made: decision_pb2.Decision, threshold: str, label: str, value: float, score: float) -> None:
    made.comparisons.add(threshold=threshold, label=label, value=value, score=score, reached=score >= value)


def _allow(made: decision_pb2.Decision) -> None:
    made.rule_id, made.reason_code = "engine/no-rule-matched", ""
    _compare(made, "prompt_block", "prompt_scoring.minor_sexual_semantic", 0.55, 0.02)
    _compare(made, "explicit", "classification.explicit", 0.8, 0.11)


def _hold(made: decision_pb2.Decision) -> None:
    made.rule_id, made.reason_code, made.rescanned = "engine/incomplete-evidence", "INCOMPLETE_EVIDENCE", True
    made.missing_stages.append(CLASSIFICATION)
    del made.signals[2]


def _review(made: decision_pb2.Decision) -> None:
    made.rule_id, made.reason_code = "prompt-needs-review", "POSSIBLE_ATTEMPT"
    _compare(made, "prompt_review", "prompt_scoring.minor_sexual_semantic", 0.05, 0.31)
    _compare(made, "prompt_block", "prompt_scoring.minor_sexual_semantic", 0.55, 0.31)
    made.rule_hits.add(rule_id="prompt-needs-review", outcome=REVIEW)
    made.shadows.add(
        policy_name="next", policy_version="3", bundle_digest="c" * 64, outcome=BLOCK, rule_id="attempt-in-prompt"
    )


def _block(made: decision_pb2.Decision) -> None:
    made.rule_id, made.reason_code = "attempt-in-prompt", "ATTEMPT_IN_PROMPT"
    _compare(made, "prompt_review", "prompt_scoring.minor_sexual_semantic", 0.05, 0.91)
    _compare(made, "prompt_block", "prompt_scoring.minor_sexual_semantic", 0.55, 0.91)
    _compare(made, "explicit", "classification.explicit", 0.8, 0.64)
    made.rule_hits.add(rule_id="attempt-in-prompt", outcome=BLOCK)
    made.rule_hits.add(rule_id="prompt-needs-review", outcome=REVIEW)
    label = made.signals[0].signal.items[0].labels.add()
    label.label, label.score = "minor_sexual_semantic", 0.91
    made.nexus.append(generation_pb2.NEXUS_ATTEMPT)


def _report(made: decision_pb2.Decision) -> None:
    made.rule_id, made.reason_code = "known-hash", "KNOWN_MATCH"
    hashing = next(joined.signal for joined in made.signals if joined.signal.stage == HASHING)
    hashing.items[0].matches.add(
        bank="demo", entry_id="stand-in-017", distance=6, hash_type="pdq", variant="mirror", category="stand-in"
    )
    hashing.artefacts.add(kind=signal_pb2.ARTEFACT_KIND_BANK, name="demo", version="17", sha256=bytes([7]) * 32)
    made.nexus.append(generation_pb2.NEXUS_MODEL_OUTPUT)


_RULES = {HOLD: _hold, REVIEW: _review, BLOCK: _block, REPORT: _report}


def letter(number: int, *, ago: float, room: str = "classification.relay") -> dead_letter_pb2.DeadLetter:
    """A dead letter of ``ago`` seconds before now."""
    made = dead_letter_pb2.DeadLetter(
        dead_letter_id=identity.dead_letter_id(room, "generations.v1", 0, number),
        room=room,
        reason="UNDECODABLE",
        detail="the record's value is no Generation: send protobuf as docs/data-flow.md shows",
        error_class=dead_letter_pb2.ERROR_CLASS_POISON,
        sealed_value=b"sealed original",
        create_unix_nano=time.time_ns() - int(ago * NANOS),
        original_size_bytes=312,
    )
    made.source.topic, made.source.offset = "generations.v1", number
    return made


def an_hour(count: int = 600) -> list[decision_pb2.Decision]:
    """An hour of decisions of every outcome, the oldest first."""
    made = []
    for number in range(count):
        kind = {5: HOLD, 11: REVIEW, 17: BLOCK, 23: REPORT}.get(number % 40, ALLOW)
        ago = 3_500.0 * (1 - number / count) + 20
        made.append(recent(number, ago=ago, outcome=kind, took_ms=60 + 37 * (number % 13)))
    return made


@dataclass
class Served:
    """A console on a port of its own, in a thread with a loop of its own."""

    address: str
    console: Console
    loop: asyncio.AbstractEventLoop

    def look(self, *rooms: RoomNow) -> None:
        """The console learns that its rooms are so."""
        self.console.rooms.rooms = list(rooms)
        asyncio.run_coroutine_threadsafe(self.console.state.watch.look(), self.loop).result(10)

    @property
    def link(self) -> str:
        """Signs in."""
        assert self.console.token is not None
        return self.console.token.link


@contextmanager
def served(folder: Path, **arguments: Any) -> Iterator[Served]:
    """A console for a browser; ``arguments`` as `open_console`'s."""
    begun: Future[Served] = Future()
    server: list[uvicorn.Server] = []

    async def serve() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            console = await open_console(folder, address=address, **arguments)
            running = uvicorn.Server(uvicorn.Config(console.app, log_config=None, access_log=False))
            server.append(running)
            serving = asyncio.create_task(running.serve([listening]))
            begun.set_result(Served(address, console, asyncio.get_running_loop()))
            await serving
            console.state.db.dispose()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if begun.done():
                raise
            begun.set_exception(error)

    thread = threading.Thread(target=run, name="console")
    thread.start()
    try:
        yield begun.result(30)
    finally:
        for one in server:
            one.should_exit = True
        thread.join(20)
