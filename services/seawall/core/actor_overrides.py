"""A person's word in an actor's history: what is overturned counts no longer, what is raised counts as raised.

Pure, and the same whichever comes first, the word or the decisions that it names: what each decision adds by itself is
kept beside the counts, and each word that is in force.
"""

from __future__ import annotations

import hashlib
from typing import Final

from seawall.api.actor_standing.v1 import actor_standing_pb2 as pb
from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.core.actor_counts import HOUR_NANOS, NO_WORD, count_decision, count_word, move_on, short

#: Bounds of what is kept of one actor: words that are in force, and decisions that one of them names.
MAX_WORDS: Final = 64
MAX_NAMED: Final = 16


def event_of(said: Override, topic: str, partition: int, offset: int) -> pb.ActorEvent | None:
    """What a person's word means for the history of the actor; None where it names none."""
    if not said.actor_id:
        return None
    event = pb.ActorEvent(tenant_id=said.tenant_id, actor_id=said.actor_id, decided_unix_nano=said.decided_unix_nano)
    word = event.override
    word.generation = int.from_bytes(hashlib.sha256(said.generation_id.encode()).digest()[:8], "big")
    word.outcome = said.outcome
    word.decisions.extend(short(decision_id) for decision_id in said.decision_ids[-MAX_NAMED:])
    word.record.topic, word.record.partition, word.record.offset = topic, partition, offset
    return event


def word_on(history: pb.ActorHistory, decision: int) -> decision_pb2.Outcome.ValueType:
    """The word in force on a decision, by its short id; UNSPECIFIED if there is none."""
    return next((word.outcome for word in history.overrides if decision in word.decisions), NO_WORD)


def apply(history: pb.ActorHistory, event: pb.ActorEvent, window_hours: int) -> bool:
    """Let a word count, in place. True if something that counted may do so no longer."""
    said, source = event.override, event.override.record
    if source.offset <= history.overrides_applied.get(source.partition, -1):
        return False
    history.overrides_applied[source.partition] = source.offset
    oldest = move_on(history, event.decided_unix_nano, window_hours)
    earlier = _take_out(history, said.generation)
    # Histories of an earlier version do not know of their first decisions what these have added.
    unknown = len(history.decisions) - len(history.counted)
    named = {*earlier.decisions, *said.decisions}
    seen = [
        (decision, one)
        for decision, one in zip(history.decisions[unknown:], history.counted, strict=True)
        if decision in named
    ]
    for decision, one in seen:
        count_decision(history, one, earlier.outcome if decision in earlier.decisions else NO_WORD, oldest, -1)
    count_word(history, earlier, oldest, -1)
    if said.outcome != NO_WORD:
        hour = event.decided_unix_nano // HOUR_NANOS
        history.overrides.add(generation=said.generation, outcome=said.outcome, decisions=said.decisions, hour=hour)
        count_word(history, history.overrides[-1], oldest)
        if len(history.overrides) > MAX_WORDS:
            del history.overrides[0]
    for decision, one in seen:
        count_decision(history, one, said.outcome if decision in said.decisions else NO_WORD, oldest)
    return bool(seen) or earlier.outcome > decision_pb2.OUTCOME_ALLOW


def _take_out(history: pb.ActorHistory, generation: int) -> pb.KeptOverride:
    """The word in force on a generation, which is in force no longer; an empty one if there is none."""
    taken = pb.KeptOverride()
    for place, word in enumerate(history.overrides):
        if word.generation == generation:
            taken.CopyFrom(word)
            del history.overrides[place]
            break
    return taken
