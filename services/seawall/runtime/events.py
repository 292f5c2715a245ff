"""The catalogue of events: what a room of the stream path meets, counts and logs, each with an operator's sentence.

An event is a log line's ``event`` and an attribute of ``moderation.stream.events``.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple


class Level(Enum):
    """How grave: ordinary life, worth a look, or somebody must act."""

    CALM = "calm"
    WARNING = "warning"
    ALARM = "alarm"


class Event(NamedTuple):
    """An event as the operator meets it."""

    level: Level
    meaning: str


_CALM, _WARNING, _ALARM = Level.CALM, Level.WARNING, Level.ALARM

EVENTS: Final[dict[str, Event]] = {
    "ready": Event(_CALM, "The room has begun to do its work."),
    "not_ready": Event(_CALM, "It has stopped doing so; its status says why."),
    "policy_reloaded": Event(_CALM, "A changed policy is in force."),
    "days_forgotten": Event(_CALM, "The ledger has deleted days beyond its retention."),
    "late_signals": Event(_CALM, "A list's new entries match pictures that were decided before."),
    "poll_failed": Event(_WARNING, "The broker did not answer a poll: the room waits for it, not ready."),
    "produce_failed": Event(_WARNING, "The broker did not acknowledge a write: it is tried until it does, not ready."),
    "commit_refused": Event(
        _WARNING, "Offsets were not taken: a rebalance, or the broker is away. They are offered again."
    ),
    "take_over_failed": Event(_WARNING, "A partition could not be taken over yet: the broker or the database is away."),
    "write_failed": Event(_WARNING, "The database did not take a batch: the same batch is written when it is back."),
    "forget_failed": Event(_WARNING, "Days beyond retention could not be deleted; tried again in an hour."),
    "rpc_failed": Event(_WARNING, "A batch's RPC failed and is tried again within its budget."),
    "gave_up": Event(
        _WARNING, "A generation's budget or attempts are spent: an ERROR signal is written, so a HOLD follows."
    ),
    "diverted": Event(_WARNING, "A record was set aside as a dead letter: `seawall dlq list`."),
    "decision_truncated": Event(_WARNING, "A decision was too large and was written without its items."),
    "records_missed": Event(_WARNING, "The topic had dropped records before the ledger read them."),
    "policy_not_archived": Event(_WARNING, "A bundle could not be kept: a replay of its decisions needs it named."),
    "bank_change_undecodable": Event(
        _WARNING, "A record of bank_entries.v1 cannot be read; retroactive matching goes on."
    ),
    "entry_flood": Event(
        _WARNING, "A new entry matches far too many recent pictures: none of them is escalated by it."
    ),
    "entries_shortened": Event(_WARNING, "More new entries than retroactive matching holds: the oldest are left out."),
    "window_shortened": Event(
        _WARNING, "More recent pictures than retroactive matching holds: it looks back less far."
    ),
    "kind_not_measured": Event(_WARNING, "A list has hashes of a kind that no signal of the window carries."),
    "positions_not_kept": Event(
        _WARNING, "actor_history could not note how far its changelog is: a start would read more of it again."
    ),
    "turn_failed": Event(_WARNING, "Retroactive matching could not do its turn and tries again."),
    "halted": Event(
        _ALARM, "The room stands still until a person has looked: the fuse tripped, or it cannot go on safely."
    ),
    "crashed": Event(_ALARM, "A fault of ours: the frames are in the line. The room stops rather than lose count."),
    "policy_refused": Event(_ALARM, "A changed policy cannot be loaded; what was in force decides on."),
    "policy_reload_crashed": Event(_ALARM, "Policies are no longer taken up; the work goes on. Restart the room."),
}


def level(name: str) -> Level:
    """How grave an event is; one that the catalogue does not know is worth a look."""
    known = EVENTS.get(name)
    return known.level if known else Level.WARNING
