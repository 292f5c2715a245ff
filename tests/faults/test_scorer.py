"""Faults of a scorer: killed, hung, overloaded, or answering what it should not."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from seawall.api.generation.v1 import generation_pb2
from seawall.api.prompt_scoring.v1 import prompt_scoring_pb2
from seawall.classification.stage import STAGE as CLASSIFICATION
from tests.faults.sending import ERROR, OK, expected, ids, measured_right, send, statuses
from tests.support import model_packs
from tests.support.mesh import Lane, Room, environment_of
from tests.support.otlp import Stoppable, exporting
from tests.support.stages import AGGREGATOR, SERVICE, WORDS, TestStage

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.timeout(300)]


async def two_services(lane: Lane, **settings: str) -> tuple[dict[str, Room], str]:
    """Two scorers on ports of their own, and the target that names both."""
    names = ("service-a", "service-b")
    files = {name: lane.home / f"{name}.port" for name in names}
    rooms = {name: lane.start(SERVICE, name=name, RPC_SERVER__PORT_FILE=str(files[name]), **settings) for name in names}
    await lane.ready(rooms.values())
    return rooms, "ipv4:" + ",".join(f"127.0.0.1:{file.read_text().strip()}" for file in files.values())


async def test_a_scorer_is_killed_in_the_middle_of_a_batch(lane: Lane) -> None:
    """F15: the batch is scored by another, inside the generation's budget."""
    services, target = await two_services(lane)
    await lane.ready([lane.start(AGGREGATOR), lane.start(WORDS, RPC_CLIENT__TARGET=target)])
    sent = [*ids("plain", 30), "die:0", *ids("plain", 30, first=30)]
    await send(lane, sent, partition=0)
    await lane.finish()
    (died,) = [name for name, room in services.items() if room.deaths]
    assert lane.killed
    assert "SIGKILL" in services[died].deaths[0]
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert lane.ledger.deadlines == []
    for one in sent:
        assert statuses(lane.ledger, one, WORDS) == {(OK, "")}
        assert measured_right(lane.ledger, one, WORDS)
    (signal,) = lane.ledger.signals_of("die:0", WORDS)
    assert signal.service_instance in set(services) - {died}


async def test_an_item_that_kills_every_scorer(lane: Lane) -> None:
    """F18: only it errs, and its 63 neighbours are scored, however often it takes the service with it."""
    lane.policy(max_attempts=1)
    service = lane.start(SERVICE)
    # Long enough for the supervisor's back-off, which grows with each death.
    words = lane.start(WORDS, RPC_CLIENT__TIMEOUT_SECONDS="30", ENGINE__BUDGET_SECONDS="100")
    await lane.ready([lane.start(AGGREGATOR), service, words])
    sent = [*ids("plain", 31), "die-always:0", *ids("plain", 32, first=31)]
    await send(lane, sent, partition=0)
    await lane.finish()
    assert 2 <= len(service.deaths) <= 4, "at most twice with its neighbours, and twice alone"
    assert lane.ledger.outcomes(sent) == expected(sent, **{"die-always": "REVIEW"})
    assert statuses(lane.ledger, "die-always:0", WORDS) == {(ERROR, "UNAVAILABLE")}
    assert all(statuses(lane.ledger, one, WORDS) == {(OK, "")} for one in sent if one.startswith("plain"))


async def test_an_item_that_the_model_fails_on(lane: Lane) -> None:
    """F18: only it errs; its 63 neighbours are scored."""
    lane.policy(max_attempts=1)
    await lane.start_all()
    sent = [*ids("plain", 31), "raise:0", *ids("plain", 32, first=31)]
    await send(lane, sent, partition=0)
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent, **{"raise": "REVIEW"})
    assert statuses(lane.ledger, "raise:0", WORDS) == {(ERROR, "INTERNAL")}
    assert all(statuses(lane.ledger, one, WORDS) == {(OK, "")} for one in sent if one.startswith("plain"))


async def test_an_item_that_hangs(lane: Lane) -> None:
    """F16: an ERROR signal at the call's deadline, held, scanned again, and then a person looks; never ALLOW."""
    lane.policy(max_attempts=2)
    service, aggregator = lane.start(SERVICE), lane.start(AGGREGATOR)
    await lane.ready([service, aggregator, lane.start(WORDS, RPC_CLIENT__TIMEOUT_SECONDS="1")])
    # The neighbours go first: what is behind an item that hangs may well be late on a busy machine.
    sent = [*ids("plain", 20), "hang:0"]
    await send(lane, sent, partition=0)
    await lane.finish()
    assert lane.ledger.outcome("hang:0") == "REVIEW"
    assert statuses(lane.ledger, "hang:0", WORDS) == {(ERROR, "DEADLINE_EXCEEDED")}
    assert [one.attempt for one in lane.ledger.joint_of("hang:0")] == [1, 2]
    assert lane.ledger.outcomes(ids("plain", 20)) == expected(ids("plain", 20))


async def test_a_scorer_that_hangs_is_left_out(lane: Lane) -> None:
    """F16: with all its workers stuck it is NOT_SERVING, and the other one has the work."""
    lane.policy(max_attempts=1)
    services, target = await two_services(lane, RPC_SERVER__WORKERS="1", RPC_SERVER__STUCK_SECONDS="0.5")
    words = lane.start(WORDS, RPC_CLIENT__TARGET=target, RPC_CLIENT__TIMEOUT_SECONDS="1")
    await lane.ready([lane.start(AGGREGATOR), words])
    await send(lane, ["hang:0"], partition=0)
    await lane.settled()
    (signal,) = lane.ledger.signals_of("hang:0", WORDS)
    hung = services.pop(signal.service_instance)
    (healthy,) = services
    await hung.unready()
    sent = ids("plain", 40)
    for one in sent:
        await send(lane, [one], partition=0)
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert lane.ledger.outcome("hang:0") == "REVIEW"
    answered = [one for one in sent if {s.service_instance for s in lane.ledger.signals_of(one, WORDS)} == {healthy}]
    # The client may learn of NOT_SERVING a moment later; what it sent there meanwhile was answered by the other, too.
    assert answered == sent


async def test_replies_that_are_wrong(lane: Lane) -> None:
    """F17: short, repeated, out of order, not a number, of strangers: matched by id, or ERROR."""
    lane.policy(max_attempts=2)
    await lane.start_all()
    orders = ("plain", "short", "twice", "nan", "above", "stranger")
    sent = [f"{order}:{number}" for number in range(10) for order in orders]
    await send(lane, sent, partition=0, media=1)
    await lane.finish()
    reasons = {"short": "NO_REPLY", "twice": "DUPLICATE_REPLY", "nan": "BAD_SCORE", "above": "BAD_SCORE"}
    assert lane.ledger.outcomes(sent) == expected(sent, **dict.fromkeys(reasons, "REVIEW"))
    for one in sent:
        reason = reasons.get(one.partition(":")[0])
        assert statuses(lane.ledger, one, WORDS) == {(ERROR, reason) if reason else (OK, "")}
        assert measured_right(lane.ledger, one, WORDS) == (reason is None), "the reply of another item"


async def test_three_times_the_capacity(lane: Lane) -> None:
    """F19: RESOURCE_EXHAUSTED and a lag that grows, in flat memory; nothing is lost, nothing given up."""
    service = lane.start(SERVICE, RPC_SERVER__WORKERS="1", RPC_SERVER__MAX_CONCURRENT_RPCS="1")
    bounded = {"ENGINE__MAX_RPCS": "4", "ENGINE__BATCH_SIZE": "2", "ENGINE__BUDGET_SECONDS": "100"}
    # What is fetched and not yet taken is bounded, too.
    fetching = {"KAFKA__FETCH_MAX_BYTES": str(1 << 20), "KAFKA__MAX_PARTITION_FETCH_BYTES": str(1 << 19)}
    words = lane.start(WORDS, ENGINE__MAX_IN_FLIGHT="8", **bounded, **fetching)
    await lane.ready([lane.start(AGGREGATOR), service, words])
    lags: list[int] = []
    memory: list[int] = []
    sent: list[str] = []
    # What a relay that takes all it is offered would hold: 400 kB for each of three times 150. It may hold eight.
    size = 400_000
    for _ in range(3):
        more = ids("slow", 150, first=len(sent))
        sent += more
        answered = len(lane.ledger.signals)
        await lane.send(*(padded(lane, one, size) for one in more))
        await lane.until(lambda: len(lane.ledger.signals) >= answered + 50, "it works at its own pace")  # noqa: B023
        lags.append(await lane.lag(WORDS))
        memory.append(words.memory)
    await lane.finish()
    assert any(event["reason"] == "RESOURCE_EXHAUSTED" for event in words.events("rpc_failed"))
    assert lags == sorted(lags)
    assert lags[-1] > lags[0] + 64, "more waits in the log than a relay may hold"
    assert memory[-1] - memory[0] < (lags[-1] - lags[0]) * size / 8, f"memory does not follow the lag: {memory}, {lags}"
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert lane.ledger.deadlines == []


def padded(lane: Lane, generation_id: str, size: int) -> generation_pb2.Generation:
    """A generation with a prompt of so many bytes that no compression makes smaller."""
    made = lane.generation(generation_id)
    made.prompt.ciphertext = random.Random(generation_id).randbytes(size)
    return made


async def test_the_caller_cancels(lane: Lane) -> None:
    """F21: once the server has heard of it, it begins no further item."""
    request = prompt_scoring_pb2.ScorePromptsRequest()
    for number in range(64):
        request.items.add(id=number, generation_id=f"gated:{number}")
    begun, gate = lane.home / "begun", lane.home / "gate"
    with Stoppable() as collector:
        service = lane.start(SERVICE, RPC_SERVER__WORKERS="2", **exporting(collector.endpoint))
        await service.ready()
        async with grpc.aio.insecure_channel(f"unix:{lane.sockets / 'service.sock'}") as channel:
            ask = channel.unary_unary(
                TestStage.method,
                request_serializer=TestStage.request_type.SerializeToString,
                response_deserializer=TestStage.response_type.FromString,
            )
            call = ask(request, timeout=60)
            while not begun.exists() or begun.stat().st_size < 2:  # noqa: ASYNC110  another process writes it
                await asyncio.sleep(0.01)
            call.cancel()
            cancelled = partial(
                collector.received.total, SERVICE, "rpc.server.call.duration", rpc__status_code="CANCELLED"
            )
            await asyncio.to_thread(collector.received.until, cancelled, "a call that ended CANCELLED")
            gate.touch()
            del request.items[1:]
            # Behind what was begun before: when it is answered, whatever else would have begun has.
            reply = await ask(request, timeout=60)
    assert reply.replies[0].result.status == OK
    assert begun.stat().st_size == 3, "of 64 items the two that were begun, and the one of the second call"


async def test_a_rolling_deploy_of_a_scorer(lane: Lane) -> None:
    """F20: NOT_SERVING, drain, stop, one after the other: no item errs and no decision waits for another attempt."""
    services, target = await two_services(lane)
    # Small batches, so that both have work all the time.
    words = lane.start(WORDS, RPC_CLIENT__TARGET=target, ENGINE__BATCH_SIZE="4")
    await lane.ready([lane.start(AGGREGATOR), words])
    ports = dict(zip(services, (address.rpartition(":")[2] for address in target.split(",")), strict=True))
    sent: list[str] = []
    for name, room in services.items():
        more = ids("slow", 150, first=len(sent))
        sent += more
        await send(lane, more)
        await lane.until(lambda: any(one.service_instance == name for one in lane.ledger.signals), "it has work")  # noqa: B023
        await room.stop()
        port_file = str(lane.home / f"{name}-again.port")
        again = lane.start(SERVICE, name=f"{name}-again", RPC_SERVER__PORT_FILE=port_file, RPC_SERVER__PORT=ports[name])
        await again.ready()
    await lane.finish()
    assert lane.ledger.outcomes(sent) == expected(sent)
    assert lane.ledger.deadlines == []
    assert all(statuses(lane.ledger, one, WORDS) == {(OK, "")} for one in sent)


@pytest.mark.parametrize("fault", ["missing", "corrupt", "another"])
async def test_a_model_that_is_not_what_it_should_be(lane: Lane, fault: str) -> None:
    """F22: never ready, with the mend; what served goes on serving."""
    good, bad = lane.home / "good" / "red", lane.home / "bad" / "red"
    model_packs.write_pack(good)
    shutil.copytree(good, bad)
    model = bad / "model.onnx"
    if fault == "missing":
        model.unlink()
    elif fault == "corrupt":
        model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    else:
        model.write_bytes(model.read_bytes() + b"\x00")
    sockets = {name: lane.sockets / f"{name}.sock" for name in ("good", "bad")}
    argv = [sys.executable, "-m", "seawall.cli", "run", "classification"]

    def environment(name: str, pack: Path) -> dict[str, str]:
        changes = {"SEAWALL_RPC_SERVER__UDS": str(sockets[name]), "SEAWALL_CLASSIFIERS": json.dumps([str(pack)])}
        return {**environment_of(lane), **changes, "SEAWALL_READY_FILE": str(lane.home / f"{name}.ready")}

    serving = Room(lane, "classification", argv, environment("good", good))
    lane.rooms.append(serving)
    await serving.ready()
    # A rolling deploy brings the bad one.
    bad_one = subprocess.run(  # noqa: ASYNC221  nothing else runs here meanwhile
        argv, env=environment("bad", bad), capture_output=True, text=True, timeout=60, check=False
    )
    assert bad_one.returncode not in (0, -9)
    assert not (lane.home / "bad.ready").exists()
    assert "model.onnx" in bad_one.stderr
    assert "Traceback" not in bad_one.stderr
    async with grpc.aio.insecure_channel(f"unix:{sockets['good']}") as channel:
        service = CLASSIFICATION.method.removeprefix("/").rpartition("/")[0]
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=30
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert serving.deaths == []
