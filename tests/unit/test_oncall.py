"""What on-call commands find and do, on the in-memory broker: dead letters, holds, handles, lag, findings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.samples import Sample

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core import identity
from seawall.core.clock import ManualClock
from seawall.core.errors import Fatal, Poison, Retryable
from seawall.oncall import dead_letters, decisions, doctor, handles, lag
from seawall.oncall.dead_letters import REDRIVEN_HEADER, Act
from seawall.oncall.handles import Handle, Kind
from seawall.oncall.rooms import Answer, Endpoint
from seawall.oncall.status import NO_ANSWER, NOT_READY, READY, RoomLine
from seawall.relay.dead_letters import DeadLetters
from seawall.runtime import topics
from seawall.runtime.broker import Output, Replicas, TopicPartition
from seawall.runtime.memory import InMemoryBroker, InMemoryRecord
from seawall.runtime.sealing import Sealer
from seawall.runtime.settings import KafkaSettings
from seawall.runtime.topics import Problem, TopicNames, TopicSettings

NAMES = TopicNames()
HOLD, ALLOW, BLOCK = decision_pb2.OUTCOME_HOLD, decision_pb2.OUTCOME_ALLOW, decision_pb2.OUTCOME_BLOCK
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECOND = 1_000_000_000
SECRET = b"sealed prompt of somebody"


class Desk:
    """A broker with topics, and what an engineer at a desk does with it."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.broker = InMemoryBroker(self.clock)
        self.sealer = Sealer.load_or_create(folder / "sealing.json")

    async def start(self) -> Desk:
        await topics.apply(self.broker, KafkaSettings(), TopicSettings(partitions=2))
        return self

    async def write(self, *outputs: Output) -> None:
        producer = self.broker.producer()
        await producer.start()
        await producer.send(outputs)
        await producer.stop()

    async def generation(self, generation_id: str, *, partition: int = 0, attempt: int = 1) -> InMemoryRecord:
        made = generation_pb2.Generation(
            generation_id=generation_id, attempt=attempt, modality=generation_pb2.MODALITY_IMAGE
        )
        made.prompt.CopyFrom(generation_pb2.SealedText(key_id="1", ciphertext=SECRET))
        made.deadline_time.FromSeconds(1)
        return await self.raw(generation_id.encode(), made.SerializeToString(), partition=partition)

    async def raw(
        self, key: bytes | None, value: bytes, *, partition: int = 0, topic: str = NAMES.generations
    ) -> InMemoryRecord:
        headers = [("traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode()), (REDRIVEN_HEADER, b"an earlier one")]
        await self.write(Output(topic, partition, key, value, headers))
        return self.broker.records(topic, partition)[-1]

    async def set_aside(self, record: InMemoryRecord, *, room: str = "classification", reason: str = "BAD") -> str:
        maker = DeadLetters(
            room=room, instance=f"{room}-0", topic=NAMES.dead_letters, sealer=self.sealer, clock=self.clock
        )
        await self.write(maker.output(record, Poison(reason, "mend it")))
        return identity.dead_letter_id(room, record.topic, record.partition, record.offset)

    async def decide(
        self, generation_id: str, outcome: decision_pb2.Outcome.ValueType, *, attempt: int = 1, **fields: Any
    ) -> decision_pb2.Decision:
        decision = decision_pb2.Decision(
            decision_id=identity.decision_id(generation_id, attempt, f"{outcome}"),
            kind=decision_pb2.DECISION_KIND_JOINT,
            generation_id=generation_id,
            attempt=attempt,
            outcome=outcome,
            rule_id="engine/required-stage-missing",
            reason_code="NO_SIGNAL",
            decided_unix_nano=self.clock.now_nanos(),
            traceparent=f"00-{TRACE}-b7ad6b7169203331-01",
        )
        for name, value in fields.items():
            if isinstance(value, list):
                getattr(decision, name).extend(value)
            else:
                setattr(decision, name, value)
        await self.write(Output(NAMES.decisions, 0, generation_id.encode(), decision.SerializeToString()))
        return decision

    async def letters(self, **chosen: Any) -> list[dead_letters.Letter]:
        return await dead_letters.unresolved(self.broker, NAMES.dead_letters, **chosen)

    async def redrive(self, letters: Sequence[dead_letters.Letter] | None = None) -> list[dead_letters.Step]:
        steps = await dead_letters.plan(self.broker, NAMES, await self.letters() if letters is None else letters)
        await dead_letters.redrive(self.broker, NAMES, steps, "ada")
        return steps


@pytest.fixture
async def desk(tmp_path: Path) -> Desk:
    return await Desk(tmp_path).start()


# ---- dead letters ----------------------------------------------------------------------------------------------------


async def test_letters_are_listed_in_the_order_of_their_originals(desk: Desk) -> None:
    first, second = await desk.generation("a"), await desk.generation("b")
    third = await desk.generation("c", partition=1)
    for record in (third, second, first):
        await desk.set_aside(record)
    await desk.set_aside(first, room="aggregator", reason="WORSE")
    await desk.set_aside(second)
    found = await desk.letters()
    assert [(one.generation_id, one.message.room) for one in found] == [
        ("a", "aggregator"),
        ("a", "classification"),
        ("b", "classification"),
        ("c", "classification"),
    ]
    assert [one.generation_id for one in await desk.letters(rooms=["aggregator"])] == ["a"]
    assert [one.generation_id for one in await desk.letters(reasons=["BAD"])] == ["a", "b", "c"]


async def test_a_redrive_scans_held_generations_again_as_new_attempts_in_order(desk: Desk) -> None:
    records = [await desk.generation(name) for name in ("a", "b")]
    for record in reversed(records):
        await desk.set_aside(record)
        await desk.set_aside(record, room="aggregator")
    await desk.decide("a", HOLD, attempt=1)
    await desk.decide("a", HOLD, attempt=3)
    before = len(desk.broker.records(NAMES.generations))
    steps = await desk.redrive()
    assert [(step.act, step.letter.generation_id) for step in steps] == [
        (Act.NEW_ATTEMPT, "a"),
        (Act.WITH_ANOTHER, "a"),
        (Act.NEW_ATTEMPT, "b"),
        (Act.WITH_ANOTHER, "b"),
    ]
    written = desk.broker.records(NAMES.generations, 0)[before:]
    attempts = [generation_pb2.Generation.FromString(record.value or b"") for record in written]
    assert [(one.generation_id, one.attempt) for one in attempts] == [("a", 4), ("b", 1)]
    assert attempts[0].rescan_of.offset == records[0].offset
    assert not attempts[0].HasField("deadline_time"), "the platform's own deadline has passed"
    assert [record.key for record in written] == [b"a", b"b"]
    for record, step in zip(written, (steps[0], steps[2]), strict=True):
        headers = dict(record.headers)
        assert headers[REDRIVEN_HEADER] == step.letter.id.encode()
        assert headers["traceparent"].decode()[3:35] == TRACE, "the trace goes on"


async def test_what_was_redriven_is_listed_no_more_unless_it_fails_again(desk: Desk) -> None:
    await desk.set_aside(await desk.generation("a"))
    await desk.redrive()
    assert await desk.letters() == []
    assert len(desk.broker.records(NAMES.dead_letters)) == 2
    again = desk.broker.records(NAMES.generations, 0)[-1]
    await desk.set_aside(again)
    (letter,) = await desk.letters()
    assert letter.message.source.offset == again.offset
    first, *_ = await dead_letters.history(desk.broker, NAMES.dead_letters, "")
    marks = await dead_letters.history(desk.broker, NAMES.dead_letters, first.id)
    assert [one.message.resolved_by for one in marks] == ["", "ada"]
    assert marks[1].message.resolution == dead_letter_pb2.RESOLUTION_REDRIVEN
    assert not marks[1].message.sealed_value


async def test_what_was_decided_meanwhile_is_left_alone_and_marked(desk: Desk) -> None:
    await desk.set_aside(await desk.generation("a"))
    await desk.decide("a", HOLD)
    await desk.decide("a", BLOCK, attempt=2)
    before = len(desk.broker.records(NAMES.generations))
    (step,) = await desk.redrive()
    assert (step.act, step.note) == (Act.DECIDED, "a is BLOCK")
    assert len(desk.broker.records(NAMES.generations)) == before
    assert await desk.letters() == []


async def test_what_cannot_be_read_goes_byte_for_byte_to_its_partition(desk: Desk) -> None:
    broken = await desk.raw(b"\xff no id", b"\xff\xfe no generation", partition=1)
    keyless = await desk.raw(None, b"\xff again", partition=1)
    signal = await desk.raw(b"a", b"\xff no signal", topic=NAMES.signals)
    for record in (broken, keyless, signal):
        await desk.set_aside(record, room="aggregator")
    await desk.set_aside(broken, room="classification")
    steps = await desk.redrive()
    assert [step.act for step in steps] == [Act.REPEAT, Act.WITH_ANOTHER, Act.REPEAT, Act.REPEAT]
    repeated = desk.broker.records(NAMES.generations, 1)[2:]
    assert [(one.key, one.value) for one in repeated] == [(broken.key, broken.value), (None, keyless.value)]
    assert [one.value for one in desk.broker.records(NAMES.signals, 0)] == [signal.value, signal.value]
    assert await desk.letters() == []


async def test_an_original_that_is_gone_or_another_is_not_redriven(desk: Desk) -> None:
    record = await desk.generation("a")
    await desk.set_aside(record._replace(offset=17))
    await desk.set_aside(record._replace(value=b"of another length"), room="aggregator")
    steps = await desk.redrive()
    assert {step.act for step in steps} == {Act.GONE}
    assert len(await desk.letters()) == 2, "they stay listed: only a person can discard them"
    assert await dead_letters.discard(desk.broker, NAMES, await desk.letters(), "ada") == 2
    assert await desk.letters() == []


async def test_a_plan_writes_nothing_and_no_step_shows_content(desk: Desk) -> None:
    await desk.set_aside(await desk.generation("a"))
    steps = await dead_letters.plan(desk.broker, NAMES, await desk.letters())
    assert len(desk.broker.records(NAMES.generations)) == 1
    assert len(desk.broker.records(NAMES.dead_letters)) == 1
    assert SECRET.decode() not in " ".join(step.note for step in steps)


async def test_a_redrive_that_the_broker_stops_goes_on_where_it_was(desk: Desk) -> None:
    for name in ("a", "b", "c"):
        await desk.set_aside(await desk.generation(name))
    steps = await dead_letters.plan(desk.broker, NAMES, await desk.letters())
    desk.broker.fail_next_sends(1, written=True)  # only the acknowledgement is lost
    with pytest.raises(Retryable):
        await dead_letters.redrive(desk.broker, NAMES, steps, "ada")
    assert [one.generation_id for one in await desk.letters()] == ["a", "b", "c"]
    await desk.redrive()
    assert await desk.letters() == []
    ids = [record.key for record in desk.broker.records(NAMES.generations, 0)[3:]]
    assert ids == [b"a", b"a", b"b", b"c"], "in order; the one in doubt twice"


async def test_a_name_that_could_hold_anything_is_refused(desk: Desk) -> None:
    await desk.set_aside(await desk.generation("a"))
    with pytest.raises(Fatal, match="--by must match"):
        await dead_letters.discard(desk.broker, NAMES, await desk.letters(), "two words")
    assert len(await desk.letters()) == 1


# ---- holds, tail, handles --------------------------------------------------------------------------------------------


async def test_what_is_held_is_listed_with_why_the_longest_first(desk: Desk) -> None:
    await desk.decide("waits", HOLD, rescanned=True)
    begin = desk.clock.now_nanos() / 1e9
    desk.clock.advance(10 * SECOND)
    await desk.decide("released", HOLD, rescanned=True)
    await desk.decide("stays", HOLD, attempt=3, missing_stages=["classification"])
    desk.clock.advance(5 * SECOND)
    await desk.decide("waits", HOLD, attempt=2, rescanned=True)
    await desk.decide("released", ALLOW, attempt=2)
    amendment = decision_pb2.DECISION_KIND_AMENDMENT
    await desk.decide("released", HOLD, attempt=2, kind=amendment)
    found = await decisions.held(desk.broker, NAMES.decisions)
    assert [(one.generation_id, one.attempts, one.rescanned) for one in found] == [
        ("waits", 2, True),
        ("stays", 3, False),
    ]
    assert found[0].since == begin
    assert found[1].why == "engine/required-stage-missing (NO_SIGNAL): classification MISSING"


async def test_a_tail_shows_what_passes_its_filter(desk: Desk) -> None:
    failed = signal_pb2.Signal(stage="prompt_scoring")
    failed.items.add(item_id="prompt", status=signal_pb2.ITEM_STATUS_ERROR, reason="DEADLINE_EXCEEDED")
    await desk.decide("blocked", BLOCK, tenant_id="t1", rule_id="r1")
    await desk.decide("held", HOLD, tenant_id="t2", signals=[decision_pb2.JoinedSignal(signal=failed)])
    await desk.write(Output(NAMES.decisions, 0, b"x", b"\xff no decision"))
    await desk.decide("missing", HOLD, missing_stages=["classification"])

    async def shown(count: int, **wanted: list[str]) -> list[str]:
        chosen = decisions.Filter(**{name: frozenset(values) for name, values in wanted.items()})
        found = []
        async with (
            asyncio.timeout(10),
            aclosing(decisions.tail(desk.broker, NAMES.decisions, chosen, since_unix_ms=0)) as passing,
        ):
            async for seen in passing:
                found.append(seen.decision.generation_id)
                if len(found) == count:
                    break
        return found

    assert await shown(3) == ["blocked", "held", "missing"]
    assert await shown(1, outcomes=["BLOCK"]) == ["blocked"]
    assert await shown(1, rules=["r1"]) == ["blocked"]
    assert await shown(1, tenants=["t2"]) == ["held"]
    assert await shown(2, stage_errors=["any"]) == ["held", "missing"]
    assert await shown(1, stage_errors=["classification"]) == ["missing"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("submit-1", [Kind.GENERATION]),
        ("ab" * 32, [Kind.GENERATION, Kind.CONTENT]),
        ("sha256:" + "AB" * 32, [Kind.CONTENT]),
        (TRACE, [Kind.GENERATION, Kind.TRACE]),
        (f"00-{TRACE}-b7ad6b7169203331-01", [Kind.GENERATION, Kind.TRACE]),
        ("generations.v1/0/17", [Kind.PLACE]),
        ("bulk.decisions.v1/11/0", [Kind.PLACE]),
    ],
)
def test_a_handle_is_read_as_what_it_may_be(given: str, expected: list[Kind]) -> None:
    assert [one.kind for one in handles.readings(given)] == expected


@pytest.mark.parametrize("given", ["", "two words", "a/b/c", "x/1", "x/1/-1", "../../etc", "a" * 129, "sha256:xyz"])
def test_what_is_no_handle_is_refused(given: str) -> None:
    with pytest.raises(Fatal, match="BAD_HANDLE"):
        handles.readings(given)


async def test_a_place_in_kafka_leads_to_its_generation(desk: Desk) -> None:
    await desk.generation("a")
    await desk.raw(b"\xff", b"\xff", partition=1)
    await desk.decide("b", BLOCK)
    assert await handles.generation_at(desk.broker, NAMES, "generations.v1/0/0") == ["a"]
    assert await handles.generation_at(desk.broker, NAMES, "decisions.v1/0/0") == ["b"]
    assert await handles.generation_at(desk.broker, NAMES, "generations.v1/1/0") == ["undecodable:generations.v1:1:0"]
    absent = ("generations.v1/0/9", "generations.v1/7/0")
    for place, said in (*((one, "no record") for one in absent), ("bank_entries.v1/0/0", "about no generation")):
        with pytest.raises(Fatal, match=said):
            await handles.generation_at(desk.broker, NAMES, place)


async def test_traces_and_digests_are_found_without_a_ledger(desk: Desk) -> None:
    measured = signal_pb2.Signal(stage="perceptual_hashing")
    measured.items.add(item_id="output/0").hashes.add(hash_type="sha256", value=bytes(range(32)))
    await desk.decide("a", BLOCK, signals=[decision_pb2.JoinedSignal(signal=measured)])
    await desk.decide("b", BLOCK, traceparent="")
    content, trace = Handle(Kind.CONTENT, bytes(range(32)).hex()), Handle(Kind.TRACE, TRACE)
    assert await handles.generations_in_kafka(desk.broker, NAMES.decisions, content) == ["a"]
    assert await handles.generations_in_kafka(desk.broker, NAMES.decisions, trace) == ["a"]
    unknown = Handle(Kind.TRACE, "0" * 32)
    assert await handles.generations_in_kafka(desk.broker, NAMES.decisions, unknown) == []


async def test_the_lag_of_a_group_is_the_age_of_its_oldest_record(desk: Desk) -> None:
    group = lag.Group("classification.relay", "classification", (NAMES.generations,))
    consumer = desk.broker.consumer(group.name, [NAMES.generations])
    await consumer.start()
    for name in ("a", "b"):
        await desk.generation(name)
        desk.clock.advance(30 * SECOND)
    now = desk.clock.now_nanos() / 1e9
    (before,) = await lag.lags(desk.broker, [group], now)
    assert (before.known, before.records) == (False, 2)
    await consumer.commit({TopicPartition(NAMES.generations, 0): 1})
    (after,) = await lag.lags(desk.broker, [group], now)
    assert (after.known, after.records, round(after.seconds)) == (True, 1, 30)
    await consumer.commit({TopicPartition(NAMES.generations, 0): 2})
    (settled,) = await lag.lags(desk.broker, [group], now)
    assert (settled.records, settled.seconds) == (0, 0.0)


# ---- doctor ----------------------------------------------------------------------------------------------------------

NOW = 1_800_000_000.0
FINE = doctor.Gathered(
    rooms=[RoomLine("aggregator", "aggregator-0", READY, "", lag_seconds=0.2, lag_records=1, version="0.1.0")],
    disks={"/home": 0.5},
    certificates={"kafka.ssl_certfile": NOW + 90 * 86_400},
    now=NOW,
)


def answer(metric: str, value: float, label: str, name: str) -> Answer:
    return Answer(Endpoint("perceptual_hashing", "host:1"), samples=[Sample(metric, {label: name}, value)])


def reload_refused() -> Answer:
    samples = [
        Sample("moderation_model_reloads_total", {"moderation_model_reload_result": result}, count)
        for result, count in (("swapped", 5.0), ("refused", 2.0))
    ]
    return Answer(Endpoint("classification", "host:1"), samples=samples)


def event(name: str) -> Answer:
    return answer("moderation_stream_events_total", 1.0, "moderation_event", name)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert doctor.examine(FINE) == []


@pytest.mark.parametrize(
    ("changed", "level", "check", "what"),
    [
        ({"kafka_fault": "BROKER_UNAVAILABLE: away"}, "broken", "kafka", "away"),
        (
            {"problems": [Problem("TOPIC_MISSING", "signals.v1", "is missing", "apply")]},
            "broken",
            "topics",
            "is missing",
        ),
        ({"replicas": {TopicPartition("signals.v1", 1): Replicas(3, 1)}}, "broken", "replicas", "signals.v1/1"),
        ({"rooms": [RoomLine("gate", "", NO_ANSWER, "refused: it is gone")]}, "broken", "rooms", "does not answer"),
        ({"rooms": [RoomLine("gate", "g-0", NOT_READY, "NO_BANKS: none")]}, "broken", "rooms", "not ready: NO_BANKS"),
        ({"rooms": [RoomLine("gate", "g-0", READY, "", lag_seconds=90.0)]}, "broken", "lag", "90 s late"),
        ({"rooms": [RoomLine("gate", "g-0", READY, "", version="0.0.9")]}, "soon", "versions", "gate 0.0.9"),
        ({"rooms": [RoomLine("gate", "g-0", READY, "", spans_dropped=7.0)]}, "soon", "telemetry", "dropped 7 spans"),
        (
            {
                "rooms": [
                    RoomLine("s", f"s-{n}", READY, "", rests_on=[{"kind": "model", "name": "m", "sha256": f"{n}"}])
                    for n in range(2)
                ]
            },
            "soon",
            "digests",
            "2 versions of the model m",
        ),
        ({"answers": [Answer(Endpoint("gate", "h:1"), ahead=-9.0, took=0.1)]}, "soon", "clocks", "9.0 s behind"),
        (
            {"answers": [answer("moderation_bank_expires_time_seconds", NOW - 1, "moderation_bank", "ncmec")]},
            "broken",
            "lists",
            "ncmec has expired",
        ),
        (
            {"answers": [answer("moderation_bank_expires_time_seconds", NOW + 86_400, "moderation_bank", "ncmec")]},
            "soon",
            "lists",
            "expires in 1.0 days",
        ),
        (
            {"answers": [answer("moderation_bank_changed_time_seconds", NOW - 9 * 86_400, "moderation_bank", "ncmec")]},
            "soon",
            "lists",
            "has not changed for 9 days",
        ),
        (
            {"answers": [answer("moderation_model_loaded_time_seconds", NOW - 2e7, "moderation_model", "m@1")]},
            "soon",
            "models",
            "m@1 was loaded 231 days ago",
        ),
        ({"answers": [reload_refused()]}, "soon", "refused", "refused a changed model, rollout or pack 2 times"),
        ({"answers": [event("policy_refused")]}, "soon", "refused", "met policy_refused"),
        ({"certificates": {"kafka.ssl_certfile": NOW - 1.0}}, "broken", "certificates", "kafka.ssl_certfile ended"),
        ({"certificates": {"kafka.ssl_certfile": NOW + 86_400.0}}, "soon", "certificates", "ends on 2027-01-16"),
        ({"certificates": {"kafka.ssl_certfile": "cannot be read"}}, "broken", "certificates", "cannot be read"),
        ({"disks": {"/home": 0.05}}, "soon", "disk", "5% of the disk"),
        ({"disks": {"/home": 0.01}}, "broken", "disk", "1% of the disk"),
    ],
)
def test_each_fault_is_found_and_has_a_mend(changed: dict[str, Any], level: str, check: str, what: str) -> None:
    (finding,) = doctor.examine(replace(FINE, **changed))
    assert (finding.level.value, finding.check) == (level, check)
    assert what in finding.what
    assert finding.mend


def test_a_certificates_end_is_read_from_its_file(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "seawall.test")])
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    pems = []
    for days in (40, 10):
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(days)
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(days=days))
            .sign(key, hashes.SHA256())
        )
        pems.append(made.public_bytes(serialization.Encoding.PEM))
    path = tmp_path / "chain.pem"
    path.write_bytes(b"".join(pems))
    assert doctor.certificate_ends(path) == (begins + timedelta(days=10)).timestamp(), "the first of the chain to end"
    path.write_text("nothing")
    assert doctor.certificate_ends(path) == f"{path} holds no PEM certificate"
    assert "cannot be read" in str(doctor.certificate_ends(tmp_path / "absent.pem"))
