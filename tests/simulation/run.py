"""One seed: a stream, its rooms, and what befalls them; then quiet, until everything is decided; then the checks.

Everything that is random comes from the seed, and time is virtual: a seed does the same each time, on any machine.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from seawall.aggregator.engine import Engine as Aggregator
from seawall.aggregator.settings import JoinSettings
from seawall.api.control.v1 import control_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Retryable
from seawall.core.policy import Policy, Rollout
from seawall.relay.dead_letters import DeadLetters
from seawall.relay.engine import Engine as Relay
from seawall.relay.settings import EngineSettings
from seawall.runtime.broker import Output, TopicPartition
from seawall.runtime.memory import InMemoryBroker
from seawall.runtime.sealing import Sealer
from seawall.runtime.topics import TopicNames, plan
from tests.simulation.checks import Checks, Violation
from tests.simulation.cluster import Cluster, Connection, Faults
from tests.simulation.rooms import Listening, Room
from tests.simulation.scorer import Scorer, ScorerFaults
from tests.simulation.virtual_time import EPOCH, NothingLeftError, SimulatedClock, VirtualTimeLoop
from tests.support.mesh import policy_text
from tests.support.stages import AGGREGATOR, PICTURES, WORDS, TestStage

NAMES = TopicNames("")
PARTITIONS = 2
_STAGES = (WORDS, PICTURES)
#: Virtual seconds: how long things go wrong, and how long everything may take to be decided afterwards.
CHAOS_SECONDS = 20.0
QUIET_SECONDS = 900.0
_NANOS = 1_000_000_000
#: Seconds that a generation may wait for its signals.
_BUDGETS = (4, 8)


class Story(NamedTuple):
    """What a seed did."""

    seed: int
    lines: list[str]
    #: Every record of generations.v1, signals.v1 and decisions.v1, to be compared with another run's.
    log: list[tuple[object, ...]]
    decisions: int
    virtual_seconds: float
    #: What broke, if anything did.
    broken: str


def simulate(seed: int, *, tell: bool = False) -> Story:
    """Run a seed. ``tell``: keep what happened, line by line, with its virtual time."""
    # What is made once a process is made before anything is drawn.
    _sealer()
    for budget in _BUDGETS:
        _policy(budget, 1)
        _policy(budget, 2)
    simulation = _Simulation(seed, tell)
    # The engines' own jitter draws from here.
    random.seed(seed)
    broken = ""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = runner.get_loop()
        try:
            runner.run(simulation.run())
        except (Violation, NothingLeftError) as error:
            broken = f"{type(error).__name__}: {error}"
        seconds = loop.time()
    topics = (NAMES.generations, NAMES.signals, NAMES.decisions)
    log: list[tuple[object, ...]] = [tuple(record) for topic in topics for record in simulation.broker.records(topic)]
    return Story(seed, simulation.lines, log, len(simulation.checks.ledger.decisions), seconds, broken)


@cache
def _policy(budget: int, version: int) -> Policy:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(policy_text(budget=budget, max_attempts=3, version=version), "utf-8")
        return Policy(path)


@cache
def _sealer() -> Sealer:
    with tempfile.TemporaryDirectory() as folder:
        return Sealer.load_or_create(Path(folder) / "sealing.json")


@dataclass
class _Simulation:
    seed: int
    tell: bool
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.broker = InMemoryBroker()
        self.checks = Checks(self.broker, NAMES)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        draw = self.random
        self.broker = InMemoryBroker(SimulatedClock(loop))
        self.broker.create([spec._replace(partitions=PARTITIONS) for spec in plan(NAMES)])
        self.checks = Checks(self.broker, NAMES)
        self.cluster = Cluster(self.broker, NAMES, self.checks, draw)
        self.clocks: list[SimulatedClock] = []
        self.scorers = {name: Scorer(draw, self._clock().now_nanos) for name in _STAGES}
        self.policy = _policy(draw.choice(_BUDGETS), 1)
        self.sent: list[generation_pb2.Generation] = []
        self._choose_settings()
        self.rooms = [self._room(name, f"{name}-{number}") for name in (*_STAGES, AGGREGATOR) for number in range(2)]
        for room in self.rooms:
            # The second of each is there from the start, comes later, or never.
            if room.name.endswith("-0") or draw.random() < 0.3:
                room.start()
        platform = loop.create_task(self._send_all())
        try:
            await self._chaos()
            await platform
            await self._settle()
        finally:
            platform.cancel()
            for room in self.rooms:
                await room.stop()
            await self.cluster.end()
        self.checks.read_new()
        self.checks.check()

    def say(self, what: str) -> None:
        if self.tell:
            self.lines.append(f"{asyncio.get_running_loop().time():9.3f} s  {what}")

    # ---- rooms -------------------------------------------------------------------------------------------------------

    def _clock(self) -> SimulatedClock:
        clock = SimulatedClock(asyncio.get_running_loop(), strobe=self.random.random() < 0.1)
        self.clocks.append(clock)
        return clock

    def _choose_settings(self) -> None:
        draw = self.random
        self.engine_settings = EngineSettings(
            batch_size=draw.choice((1, 4, 16)),
            max_rpcs=draw.choice((1, 2, 3)),
            linger_seconds=draw.choice((0.0, 0.05)),
            max_in_flight=draw.choice((2, 6, 24)),
            budget_seconds=draw.choice((3.0, 10.0)),
            max_attempts=draw.choice((3, 9)),
            poll_seconds=1.0,
            commit_seconds=draw.choice((0.2, 1.0)),
            revoke_seconds=draw.choice((0.2, 3.0)),
            max_retry_seconds=1.0,
            fuse_minimum=1_000,
        )
        self.join_settings = JoinSettings(
            max_open=draw.choice((3, 1_000)),
            max_early=draw.choice((6, 1_000)),
            max_poll=draw.choice((5, 50)),
            max_sends=draw.choice((1, 8)),
            deadline_check_seconds=1.0,
            rescan_seconds=draw.choice((0.2, 2.0)),
            commit_seconds=draw.choice((0.2, 1.0)),
            revoke_seconds=draw.choice((0.2, 3.0)),
            fuse_minimum=1_000,
        )

    def _room(self, group: str, name: str) -> Room:
        member = name if self.random.random() < 0.5 else None
        build = self._aggregator if group == AGGREGATOR else self._relay

        def built(connection: Connection, listening: Listening) -> Relay | Aggregator:
            return build(connection, listening, group, member)

        return Room(self.cluster, name, group, built, self.say)

    def _dead_letters(self, room: str, clock: SimulatedClock) -> DeadLetters:
        return DeadLetters(room=room, instance=room, topic=NAMES.dead_letters, sealer=_sealer(), clock=clock)

    def _relay(self, connection: Connection, listening: Listening, group: str, member: str | None) -> Relay:
        clock = self._clock()
        return Relay(
            stage=TestStage(group),
            broker=connection,
            call=_Wire(connection, self.scorers[group]),
            dead_letters=self._dead_letters(group, clock),
            generations_topic=NAMES.generations,
            signals_topic=NAMES.signals,
            group=group,
            instance=group,
            member=member,
            settings=self.engine_settings,
            observer=listening,
            clock=clock,
            monotonic=asyncio.get_running_loop().time,
        )

    def _aggregator(self, connection: Connection, listening: Listening, group: str, member: str | None) -> Aggregator:
        clock = self._clock()
        return Aggregator(
            broker=connection,
            rollout=Rollout(self.policy),
            dead_letters=self._dead_letters(group, clock),
            generations_topic=NAMES.generations,
            signals_topic=NAMES.signals,
            decisions_topic=NAMES.decisions,
            group=group,
            member=member,
            settings=self.join_settings,
            observer=listening,
            clock=clock,
            monotonic=asyncio.get_running_loop().time,
        )

    # ---- the platform, and those who write what they should not ------------------------------------------------------

    async def _send_all(self) -> None:
        draw = self.random
        self._producer = self.broker.producer()
        await self._producer.start()
        for number in range(draw.randint(15, 40)):
            await asyncio.sleep(draw.expovariate(3.0))
            chance = draw.random()
            if chance < 0.06:
                await self._send_hostile(number)
            elif chance < 0.14 and self.sent:
                await self._send(draw.choice(self.sent))
            elif chance < 0.22 and self.sent:
                await self._send_stray()
            else:
                self.sent.append(self._generation(number))
                await self._send(self.sent[-1])

    def _generation(self, number: int) -> generation_pb2.Generation:
        draw = self.random
        order = draw.choices(("plain", "block", "poison"), (12, 3, 1))[0]
        made = generation_pb2.Generation(
            generation_id=f"{order}:{number}", attempt=1, modality=generation_pb2.MODALITY_IMAGE
        )
        media = draw.choice((0, 0, 1, 2))
        if not media or draw.random() < 0.7:
            made.prompt.CopyFrom(generation_pb2.SealedText(key_id="1", ciphertext=b"sealed"))
        for item in range(media):
            content = generation_pb2.ContentRef(uri=f"file:///content/{item}", sha256=bytes(32))
            made.media.add(item_id=f"output/{item}", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, content=content)
        if draw.random() < 0.1:
            made.required_stages[:] = _STAGES
        if draw.random() < 0.1:
            at = EPOCH + int((asyncio.get_running_loop().time() + draw.uniform(-1.0, 6.0)) * _NANOS)
            made.deadline_time.FromNanoseconds(at)
        return made

    async def _send(self, generation: generation_pb2.Generation) -> None:
        key = generation.generation_id
        await self._write(Output(NAMES.generations, None, key.encode(), generation.SerializeToString()), key)

    async def _send_hostile(self, number: int) -> None:
        draw = self.random
        key = f"hostile:{number}"
        value = draw.choice(
            (
                b"\xff\xff",
                b"",
                None,
                generation_pb2.Generation(generation_id=key, attempt=0).SerializeToString(),
                # A modality that this version does not know, 99, as it stands in the wire format.
                generation_pb2.Generation(generation_id=key, attempt=1).SerializeToString() + b"\x38\x63",
                generation_pb2.Generation(generation_id="not an id", attempt=1).SerializeToString(),
            )
        )
        await self._write(Output(NAMES.generations, None, key.encode(), value), key)

    async def _send_stray(self) -> None:
        """A record of signals.v1 that no working room would write there, or not now."""
        draw = self.random
        partition = draw.randrange(PARTITIONS)
        end = self.broker.end_offset(TopicPartition(NAMES.generations, partition))
        if not end:
            return
        record = self.broker.read(TopicPartition(NAMES.generations, partition), draw.randrange(end), 1)[0]
        at = generation_pb2.RecordCoordinates(topic=record.topic, partition=partition, offset=record.offset)
        kind = draw.randrange(4)
        key = record.key or b""
        if kind == 0:
            value = b"\xff\xff"
        elif kind == 1:
            # Too soon, or for one that is decided.
            deadline = control_pb2.Deadline(generation_id=key.decode(), attempt=1, generation_record=at)
            value = control_pb2.JoinRecord(deadline=deadline).SerializeToString()
        else:
            stranger = signal_pb2.Signal(signal_id="s", generation_id="stranger", attempt=1, stage=WORDS)
            stranger.generation_record.CopyFrom(at)
            if kind == 2:
                stranger.generation_record.partition = partition + 1
            stranger.items.add(item_id="prompt", status=signal_pb2.ITEM_STATUS_OK).labels.add(label="score", score=0.2)
            value = control_pb2.JoinRecord(signal=stranger).SerializeToString()
        await self._write(Output(NAMES.signals, partition, key, value), "")

    async def _write(self, output: Output, generation_id: str) -> None:
        if generation_id:
            self.checks.ledger.sent[generation_id] += 1
        while True:
            try:
                await self._producer.send([output])
                break
            except Retryable:
                # The broker is away.
                await asyncio.sleep(0.5)
        if generation_id:
            self.checks.ledger.acknowledged[generation_id] += 1
        self.checks.read_new()

    # ---- what befalls them -------------------------------------------------------------------------------------------

    async def _chaos(self) -> None:
        draw = self.random
        acts: Sequence[tuple[Callable[[], Awaitable[None]], int]] = (
            (self._kill, 4),
            (self._freeze, 3),
            (self._scale, 3),
            (self._outage, 1),
            (self._set_clocks, 2),
            (self._spoil, 4),
            (self._new_policy, 1),
        )
        await self._spoil()
        end = asyncio.get_running_loop().time() + CHAOS_SECONDS
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(draw.expovariate(0.7))
            await draw.choices([act for act, _ in acts], [weight for _, weight in acts])[0]()
            self._check_bounds()

    def _any_room(self) -> Room | None:
        running = [room for room in self.rooms if room.runs]
        return self.random.choice(running) if running else None

    async def _kill(self) -> None:
        if (room := self._any_room()) is not None:
            self.say(f"kill -9 {room.name}")
            await room.kill()

    async def _freeze(self) -> None:
        if (room := self._any_room()) is not None:
            seconds = self.random.choice((1.0, 4.0, 9.0))
            self.say(f"SIGSTOP {room.name} for {seconds:g} s")
            await room.freeze(seconds)

    async def _scale(self) -> None:
        second = self.random.choice([room for room in self.rooms if room.name.endswith("-1")])
        if second.wanted:
            self.say(f"SIGTERM {second.name}")
            self.cluster.spawn(second.stop())
        elif second.is_gone:
            self.say(f"start {second.name}")
            second.start()

    async def _outage(self) -> None:
        seconds = self.random.uniform(0.5, 8.0)
        self.say(f"the broker is away for {seconds:.1f} s")
        self.broker.unavailable = True
        await asyncio.sleep(seconds)
        self.broker.unavailable = False

    async def _set_clocks(self) -> None:
        for clock in self.clocks:
            clock.error = self.random.uniform(-300.0, 300.0)
        self.say("every wall clock is set")

    async def _spoil(self) -> None:
        """Change what goes wrong, and how often."""
        draw = self.random

        def often(share: float) -> float:
            return share * draw.random() if draw.random() < 0.5 else 0.0

        self.cluster.faults = Faults(
            slow=often(0.3),
            refused=often(0.3),
            lost_ack=often(0.3),
            partial=often(0.2),
            commit_refused=often(0.3),
            commit_lost_ack=often(0.3),
            signal_lost=often(0.1),
            signal_late=often(0.2),
            signal_twice=often(0.3),
        )
        for scorer in self.scorers.values():
            scorer.faults = ScorerFaults(
                slow=often(0.4),
                hang=often(0.3),
                unavailable=often(0.5),
                overloaded=often(0.5),
                refused=often(0.1),
                bad_reply=often(0.2),
            )
        self.say(f"{self.cluster.faults} {self.scorers}" if self.tell else "")

    async def _new_policy(self) -> None:
        """Aggregators that start from now on decide by it."""
        self.policy = _policy(self.random.choice(_BUDGETS), 2)
        self.say("a new policy")

    # ---- quiet -------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Everything works again: wait until every group has committed all there is."""
        self.say("quiet")
        self.broker.unavailable = False
        self.cluster.faults = Faults()
        for scorer in self.scorers.values():
            scorer.faults = ScorerFaults()
        for room in self.rooms:
            if room.name.endswith("-0") and not room.wanted:
                room.start()
        end = asyncio.get_running_loop().time() + QUIET_SECONDS
        while waiting := self._uncommitted() + self._held():
            if self.checks.violation is not None:
                return
            if asyncio.get_running_loop().time() > end:
                raise Violation(f"after {QUIET_SECONDS:.0f} quiet seconds this is not done (P1, P5): {waiting}")
            await asyncio.sleep(1.0)

    def _uncommitted(self) -> list[str]:
        groups = {WORDS: (NAMES.generations,), PICTURES: (NAMES.generations,)}
        groups[AGGREGATOR] = (NAMES.generations, NAMES.signals)  # type: ignore[assignment]
        return [
            f"{group}: {topic} {number}"
            for group, topics in groups.items()
            for topic in topics
            for number in range(PARTITIONS)
            if self.broker.end_offset(TopicPartition(topic, number))
            > (self.broker.committed_offset(group, TopicPartition(topic, number)) or 0)
        ]

    def _check_bounds(self) -> None:
        """P5: what is held in memory."""
        for room in self.rooms:
            if isinstance(room.engine, Relay) and room.engine._in_flight > self.engine_settings.max_in_flight + 4:
                self.checks.fail(f"{room.name} holds {room.engine._in_flight} generations (P5)")
            if isinstance(room.engine, Aggregator):
                for state in room.engine._partitions.values():
                    if state.join.early_count > self.join_settings.max_early + self.join_settings.max_poll:
                        self.checks.fail(f"{room.name} holds {state.join.early_count} early signals (P5)")

    def _held(self) -> list[str]:
        """P5: what is left in memory. When all is done, nothing may be."""
        held = []
        for room in self.rooms:
            engine = room.engine
            if not room.runs:
                continue
            if isinstance(engine, Relay) and (engine._in_flight or engine._pending or engine._rpcs):
                held.append(f"{room.name} holds {engine._in_flight}")
            elif isinstance(engine, Aggregator):
                for state in engine._partitions.values():
                    if state.join.open_count or state.rescans:
                        held.append(f"{room.name} holds {state.join.open_count} and {len(state.rescans)}")
        return held


class _Wire:
    """An RPC from a process that may be stopped or dead."""

    def __init__(self, connection: Connection, scorer: Scorer) -> None:
        self._connection = connection
        self._scorer = scorer

    async def __call__(self, request, *, timeout, wait_for_ready, context):  # type: ignore[no-untyped-def]
        await self._connection.turn()
        reply = await self._scorer(request, timeout=timeout, wait_for_ready=wait_for_ready, context=context)
        await self._connection.turn()
        return reply
