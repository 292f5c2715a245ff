"""Dead letters: what was set aside, and what a person does about it.

A letter's sealed original is never opened here. To redrive is to read the original again where it stood and to write it
once more, in the order of its topic:

* a generation that can be read goes as a *new attempt* of the same id, as a HOLD that is scanned again does: so no two
  decisions of one attempt can differ. Several letters of one generation are one new attempt; one that was decided
  meanwhile is left alone;
* anything else goes byte for byte, to the same partition, under the same key.

Then a record of the same id says what became of the letter, and it is listed no more. A crash between the two writes it
again: another attempt, or a repeat, which the join absorbs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from google.protobuf.message import DecodeError

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.core import identity
from seawall.core.clock import SystemClock
from seawall.core.errors import Fatal, Poison
from seawall.core.validate import parse_generation
from seawall.local import verdict
from seawall.oncall import decisions
from seawall.runtime.broker import Broker, Output, Record, TopicPartition
from seawall.runtime.scan import records_at, scan
from seawall.runtime.topics import TopicNames

#: The header of a redriven record: the letter's id.
REDRIVEN_HEADER = "seawall-redriven"


class Letter(NamedTuple):
    """A dead letter and where it stands."""

    message: dead_letter_pb2.DeadLetter
    partition: int
    offset: int

    @property
    def id(self) -> str:
        return self.message.dead_letter_id

    @property
    def place(self) -> tuple[str, int, int]:
        """Topic, partition and offset of the original: the order of a redrive."""
        source = self.message.source
        return source.topic, source.partition, source.offset

    @property
    def generation_id(self) -> str:
        """The key, if it is one of ours."""
        key = self.message.key.decode("ascii", "replace")
        return key if identity.is_id(key) else ""


async def unresolved(
    broker: Broker, topic: str, *, rooms: Collection[str] = (), reasons: Collection[str] = ()
) -> list[Letter]:
    """The dead letters that nobody has dealt with, in the order of their originals.

    Raises Retryable as the broker seam says.
    """
    found: dict[str, Letter] = {}
    async for record in scan(broker, [topic]):
        letter = _decode(record)
        if letter is None:
            continue
        if letter.message.resolution:
            found.pop(letter.id, None)
        elif (not rooms or letter.message.room in rooms) and (not reasons or letter.message.reason in reasons):
            # A repeat of the same letter stays where it was.
            found.setdefault(letter.id, letter)
    return sorted(found.values(), key=lambda one: (one.place, one.message.room))


async def history(broker: Broker, topic: str, start: str) -> list[Letter]:
    """Every record of the letters whose id begins so, in the order they were written: what became of one comes last.

    Raises Retryable as the broker seam says.
    """
    records = [_decode(record) async for record in scan(broker, [topic])]
    return [one for one in records if one is not None and one.id.startswith(start)]


def _decode(record: Record) -> Letter | None:
    try:
        message = dead_letter_pb2.DeadLetter.FromString(record.value or b"")
    except DecodeError:
        return None
    return Letter(message, record.partition, record.offset) if message.dead_letter_id else None


class Act(Enum):
    """What a redrive does with a letter."""

    #: Write the generation as a new attempt, or the record as it was.
    NEW_ATTEMPT = "new attempt"
    REPEAT = "repeat"
    #: Only mark it: another letter of the same generation carries the attempt, or it was decided meanwhile.
    WITH_ANOTHER = "with another"
    DECIDED = "decided meanwhile"
    #: Nothing can be done: the original is gone.
    GONE = "original is gone"


@dataclass(frozen=True)
class Step:
    """One letter's part of a redrive."""

    letter: Letter
    act: Act
    #: For a person: the new attempt's number, the outcome, where the original was.
    note: str
    output: Output | None = None


async def plan(broker: Broker, names: TopicNames, letters: Sequence[Letter]) -> list[Step]:
    """What a redrive of these letters would do, in order. Writes nothing.

    Raises Retryable as the broker seam says.
    """
    ordered = sorted(letters, key=lambda one: (one.place, one.message.room))
    originals = await _originals(broker, ordered)
    generations = {place: _generation(record) for place, record in originals.items() if place[0] == names.generations}
    ids = {one.generation_id for one in generations.values() if one is not None}
    decided = await decisions.of_generations(broker, names.decisions, ids)
    taken: set[str] = set()
    steps = []
    for letter in ordered:
        original = originals.get(letter.place)
        if original is None:
            topic, partition, offset = letter.place
            steps.append(
                Step(letter, Act.GONE, f"{topic}/{partition}/{offset} holds it no more: retention has taken it")
            )
        elif (generation := generations.get(letter.place)) is None:
            key = f"{original.topic}/{original.partition}/{original.offset}"
            if key in taken:
                steps.append(Step(letter, Act.WITH_ANOTHER, "another room's letter of the same record carries it"))
            else:
                taken.add(key)
                output = _output(original, original.value, letter)
                steps.append(Step(letter, Act.REPEAT, "the same bytes, to the same partition", output))
        else:
            steps.append(_attempt(letter, original, generation, decided[generation.generation_id], taken))
    return steps


def _attempt(
    letter: Letter,
    original: Record,
    generation: generation_pb2.Generation,
    known: Sequence[decisions.Decision],
    taken: set[str],
) -> Step:
    counts = verdict.effective(known)
    if counts is not None and counts.outcome > decision_pb2.OUTCOME_HOLD:
        return Step(letter, Act.DECIDED, f"{generation.generation_id} is {verdict.outcome_name(counts.outcome)}")
    if generation.generation_id in taken:
        return Step(letter, Act.WITH_ANOTHER, f"one new attempt of {generation.generation_id} carries it")
    taken.add(generation.generation_id)
    again = generation_pb2.Generation()
    again.CopyFrom(generation)
    # A record that never was decided (attempt 0: it could not be read) keeps its number.
    again.attempt = max([one.attempt + 1 for one in known if one.attempt] or [generation.attempt])
    if again.attempt > 1 and not again.HasField("rescan_of"):
        again.rescan_of.topic = original.topic
        again.rescan_of.partition = original.partition
        again.rescan_of.offset = original.offset
    # The platform's own deadline has passed; the new attempt has the policy's budget.
    again.ClearField("deadline_time")
    output = _output(original, again.SerializeToString(deterministic=True), letter)
    return Step(letter, Act.NEW_ATTEMPT, f"{generation.generation_id}, attempt {again.attempt}", output)


def _generation(record: Record) -> generation_pb2.Generation | None:
    """The generation, if this version can read it: perhaps the one that set it aside could not."""
    try:
        return parse_generation(record.value)
    except Poison:
        return None


def _output(original: Record, value: bytes | None, letter: Letter) -> Output:
    headers = [header for header in original.headers if header[0] != REDRIVEN_HEADER]
    headers.append((REDRIVEN_HEADER, letter.id.encode()))
    return Output(original.topic, original.partition, original.key, value, headers)


async def _originals(broker: Broker, letters: Iterable[Letter]) -> Mapping[tuple[str, int, int], Record]:
    """The originals by place, of those that still stand there."""
    left: dict[TopicPartition, list[Letter]] = {}
    for letter in letters:
        left.setdefault(TopicPartition(letter.message.source.topic, letter.message.source.partition), []).append(letter)
    found: dict[tuple[str, int, int], Record] = {}
    while left:
        # One of each partition at a time: they are few, and far between.
        wanted = {partition: waiting[0].message.source.offset for partition, waiting in left.items()}
        read = await records_at(broker, wanted)
        for partition, waiting in list(left.items()):
            letter = waiting.pop(0)
            record = read.get(partition)
            if record is not None and record.offset == letter.message.source.offset and _same(record, letter):
                found[letter.place] = record
            while waiting and waiting[0].place == letter.place:
                waiting.pop(0)  # another room's letter of the same record
            if not waiting:
                del left[partition]
    return found


def _same(record: Record, letter: Letter) -> bool:
    """Whether it is the record that was set aside: a topic that was made anew counts from 0 again."""
    message = letter.message
    return len(record.value or b"") == message.original_size_bytes and (not message.key or message.key == record.key)


async def redrive(broker: Broker, names: TopicNames, steps: Sequence[Step], by: str) -> int:
    """Do what `plan` said, one letter after another. Returns how many letters are resolved.

    Raises Retryable when the broker does not take one: what is done stays done, run it again for the rest.
    """
    doing = [(step.letter, step.output) for step in steps if step.act is not Act.GONE]
    return await _resolve(broker, names, doing, dead_letter_pb2.RESOLUTION_REDRIVEN, by)


async def discard(broker: Broker, names: TopicNames, letters: Sequence[Letter], by: str) -> int:
    """Mark letters as done with. Returns how many. Raises Retryable as `redrive`."""
    doing = [(letter, None) for letter in letters]
    return await _resolve(broker, names, doing, dead_letter_pb2.RESOLUTION_DISCARDED, by)


async def _resolve(
    broker: Broker,
    names: TopicNames,
    doing: Sequence[tuple[Letter, Output | None]],
    resolution: dead_letter_pb2.Resolution.ValueType,
    by: str,
) -> int:
    if not identity.is_id(by):
        raise Fatal("BAD_ID", "--by must match [A-Za-z0-9._:-]{1,128}: name yourself by account or pseudonym")
    producer = broker.producer()
    await producer.start()
    try:
        for letter, output in doing:
            if output is not None:
                # Acknowledged before the mark: a crash between the two repeats, and loses nothing.
                await producer.send([output])
            await producer.send([_mark(names.dead_letters, letter, resolution, by)])
    finally:
        await producer.stop()
    return len(doing)


def _mark(topic: str, letter: Letter, resolution: dead_letter_pb2.Resolution.ValueType, by: str) -> Output:
    """The record that says what became of a letter: to its own partition, so that who reads it has read the letter."""
    mark = dead_letter_pb2.DeadLetter(
        dead_letter_id=letter.id,
        room=letter.message.room,
        reason=letter.message.reason,
        source=letter.message.source,
        key=letter.message.key,
        create_unix_nano=SystemClock().now_nanos(),
        resolution=resolution,
        resolved_by=by,
    )
    return Output(topic, letter.partition, letter.message.key or None, mark.SerializeToString(deterministic=True))
