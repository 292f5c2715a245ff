"""From records to rows: pure, and free of content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1 import override_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Poison
from seawall.ledger.counts import Verdict, verdicts
from seawall.ledger.text import fitting
from seawall.runtime.broker import Record
from seawall.runtime.telemetry import TraceContext

_NANOS: Final = 1_000_000_000
#: The worst status of a signal's items is the signal's; later in this order is worse.
_WORSE: Final = {
    signal_pb2.ITEM_STATUS_SKIPPED: 0,
    signal_pb2.ITEM_STATUS_OK: 1,
    signal_pb2.ITEM_STATUS_UNSCANNABLE: 2,
    signal_pb2.ITEM_STATUS_ERROR: 3,
}
_STATUS: Final = {number: name.removeprefix("ITEM_STATUS_") for name, number in signal_pb2.ItemStatus.items()}
#: Instants from the year 2000 to 2200, nanoseconds: outside, a record's time is no time.
_FIRST, _LAST = 946_684_800 * _NANOS, 7_258_118_400 * _NANOS
#: Matches of one signal that a summary names; the decision itself has them all.
_MOST_MATCHES: Final = 16

Row = dict[str, Any]
_Message = TypeVar("_Message")


@dataclass
class Rows:
    """Rows of one batch, by table."""

    decisions: list[Row] = field(default_factory=list)
    contents: list[Row] = field(default_factory=list)
    #: By artefact_set.
    artefact_sets: dict[str, list[Row]] = field(default_factory=dict)
    #: What every bundle said, by decision_id.
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    dead_letters: list[Row] = field(default_factory=list)
    #: What became of letters, in the order it was read: parameters of the writer's update.
    resolutions: list[Row] = field(default_factory=list)
    #: In the order they were read: of several about a generation the last counts.
    overrides: list[Row] = field(default_factory=list)
    unreadable: list[Row] = field(default_factory=list)
    #: Artefact sets by their artefacts as they came: most decisions of a batch rest on the same.
    _keys: dict[tuple[bytes, ...], str] = field(default_factory=dict)

    @property
    def records(self) -> int:
        """How many records they are of."""
        return sum(map(len, (self.decisions, self.dead_letters, self.resolutions, self.overrides, self.unreadable)))

    @property
    def days(self) -> set[date]:
        """The days that the partitioned tables need."""
        return {row["day"] for row in self.decisions}

    def add_decision(self, record: Record) -> None:
        """The rows of one record of decisions.v1; of one that cannot be read, where it stands."""
        if (decision := self._parsed(record, _decision_of)) is not None:
            self._decision(decision, record)

    def add_dead_letter(self, record: Record) -> None:
        """The row of one record of dead_letters.v1: a letter, or what became of one."""
        letter = self._parsed(record, _letter_of)
        if letter is None:
            return
        if letter.resolution:
            self.resolutions.append(
                {
                    "letter": fitting(letter.dead_letter_id, 32),
                    "became": letter.resolution,
                    "by": fitting(letter.resolved_by, 160),
                    "at": record.offset,
                }
            )
            return
        self.dead_letters.append(
            {
                "dead_letter_id": fitting(letter.dead_letter_id, 32),
                "room": fitting(letter.room, 160),
                "reason": fitting(letter.reason, 160),
                "detail": fitting(letter.detail),
                "error_class": letter.error_class,
                "source_topic": fitting(letter.source.topic),
                "source_partition": letter.source.partition,
                "source_offset": letter.source.offset,
                "partition": record.partition,
                "offset": record.offset,
                "create_unix_nano": min(letter.create_unix_nano, _LAST),
                "original_size_bytes": letter.original_size_bytes,
                "resolution": dead_letter_pb2.RESOLUTION_UNSPECIFIED,
                "resolved_by": "",
                "last_offset": record.offset,
            }
        )

    def add_override(self, record: Record) -> None:
        """The row of one record of overrides.v1."""
        said = self._parsed(record, _override_of)
        if said is None:
            return
        decided = min(said.decided_unix_nano or said.made_unix_nano, _LAST)
        self.overrides.append(
            {
                "generation_id": fitting(said.generation_id, 160),
                "override_id": fitting(said.override_id, 32),
                "tenant_id": fitting(said.tenant_id, 160),
                "actor_id": fitting(said.actor_id, 160),
                "outcome": said.outcome,
                "outcome_before": said.outcome_before,
                "reason_code": fitting(said.reason_code, 64),
                "made_by": fitting(said.by, 160),
                "made_unix_nano": min(said.made_unix_nano, _LAST),
                "day": datetime.fromtimestamp(decided // _NANOS, UTC).date(),
                "decision_id": fitting(said.decision_id, 32),
                "decided_unix_nano": decided,
                "decision_ids": [fitting(one, 32) for one in said.decision_ids],
                "partition": record.partition,
                "offset": record.offset,
            }
        )

    def _decision(self, decision: decision_pb2.Decision, record: Record) -> None:
        day = datetime.fromtimestamp(decision.decided_unix_nano // _NANOS, UTC).date()
        decision_id = decision.decision_id
        trace = TraceContext.parse(decision.traceparent)
        model, of = decision.model, decision.generation_record
        signals: Row = {}
        media: list[tuple[str, bytes]] = []
        artefacts: list[signal_pb2.Artefact] = []
        for joined in decision.signals:
            signal = joined.signal
            signals[signal.stage] = _signal(signal, media)
            artefacts.extend(signal.artefacts)
        self.decisions.append(
            {
                "day": day,
                "decision_id": fitting(decision_id, 32),
                "generation_id": fitting(decision.generation_id, 160),
                "attempt": decision.attempt,
                "kind": decision.kind,
                "outcome": decision.outcome,
                "rule_id": fitting(decision.rule_id),
                "reason_code": fitting(decision.reason_code),
                "severity": decision.severity,
                "policy_name": fitting(decision.policy_name),
                "policy_digest": fitting(decision.policy_digest, 64),
                "tenant_id": fitting(decision.tenant_id, 160),
                "actor_id": fitting(decision.actor_id, 160),
                "model": fitting(f"{model.name}@{model.version}") if model.name else "",
                "modality": decision.modality,
                "generated_unix_nano": min(decision.generation_log_unix_nano, _LAST),
                "decided_unix_nano": decision.decided_unix_nano,
                "trace_id": trace.trace_id if trace else None,
                "generation_partition": of.partition,
                "generation_offset": of.offset,
                "partition": record.partition,
                "offset": record.offset,
                "rescanned": decision.rescanned,
                "artefact_set": self._artefact_set(artefacts),
                "summary": _summary(decision, signals),
            }
        )
        self.verdicts[decision_id] = verdicts(decision)
        for item_id, sha256 in media:
            self.contents.append(
                {
                    "day": day,
                    "sha256": sha256.hex()[:64],
                    "decision_id": decision_id,
                    "item_id": fitting(item_id, 64),
                }
            )

    def _artefact_set(self, artefacts: Sequence[signal_pb2.Artefact]) -> str:
        """The digest of everything a decision rests on; its rows are noted."""
        as_they_came = tuple([one.SerializeToString() for one in artefacts])
        if (known := self._keys.get(as_they_came)) is not None:
            return known
        digest = hashlib.sha256()
        ordered = sorted({(one.kind, one.name, one.sha256, one.version) for one in artefacts})
        for kind, name, sha256, version in ordered:
            digest.update(f"{kind}\x1f{name}\x1f{sha256.hex()}\x1f{version}\x1e".encode())
        key = digest.hexdigest()[:32]
        if key not in self.artefact_sets:
            self.artefact_sets[key] = [
                {
                    "artefact_set": key,
                    "kind": kind,
                    "name": fitting(name, 160),
                    "sha256": sha256.hex()[:64],
                    "version": fitting(version),
                }
                for kind, name, sha256, version in ordered
            ]
        self._keys[as_they_came] = key
        return key

    def _parsed(self, record: Record, parse: Callable[[bytes], _Message]) -> _Message | None:
        """The record's message; None: it cannot be read, and where it stands is noted."""
        try:
            return parse(record.value or b"")
        except DecodeError:
            self._unreadable(record, "UNDECODABLE")
        except Poison as error:
            self._unreadable(record, error.reason)
        return None

    def _unreadable(self, record: Record, reason: str) -> None:
        self.unreadable.append(
            {"topic": record.topic, "partition": record.partition, "offset": record.offset, "reason": reason}
        )


def _decision_of(value: bytes) -> decision_pb2.Decision:
    decision = decision_pb2.Decision.FromString(value)
    if len(decision.decision_id) != 32 or not decision.generation_id:
        raise Poison("INCOMPLETE", "decision_id or generation_id is missing")
    if not _FIRST <= decision.decided_unix_nano < _LAST:
        raise Poison("BAD_TIME", "decided_unix_nano is no instant of this century or the next")
    return decision


def _letter_of(value: bytes) -> dead_letter_pb2.DeadLetter:
    letter = dead_letter_pb2.DeadLetter.FromString(value)
    if len(letter.dead_letter_id) != 32:
        raise Poison("INCOMPLETE", "dead_letter_id is missing")
    return letter


def _override_of(value: bytes) -> override_pb2.Override:
    said = override_pb2.Override.FromString(value)
    if len(said.override_id) != 32 or not said.generation_id:
        raise Poison("INCOMPLETE", "override_id or generation_id is missing")
    return said


def _summary(decision: decision_pb2.Decision, signals: Row) -> Row:
    return {
        "missing": list(decision.missing_stages),
        "rules": [hit.rule_id for hit in decision.rule_hits],
        "comparisons": [
            [one.label, round(one.score, 4) if one.HasField("score") else None, one.value, one.reached]
            for one in decision.comparisons
        ],
        "signals": signals,
    }


def _signal(signal: signal_pb2.Signal, media: list[tuple[str, bytes]]) -> Row:
    """What a stage measured, all items together. The media it saw are added to ``media``: item_id, SHA-256.

    One pass: each look into a message makes an object.
    """
    status, worst, count = 0, -1, 0
    reasons: set[str] = set()
    scores: dict[str, float] = {}
    matches: list[list[str | int]] = []
    for item in signal.items:
        count += 1
        grade = _WORSE.get(item.status, 4)
        if grade > worst:
            status, worst = item.status, grade
        if item.reason:
            reasons.add(item.reason)
        for label in item.labels:
            # Most labels of most items are 0, and say nothing by being named.
            if (score := label.score) > scores.get(label.label, 0.0):
                scores[label.label] = round(score, 4)
        for match in item.matches:
            if len(matches) < _MOST_MATCHES:
                matches.append([match.bank, match.entry_id, match.hash_type, match.distance, match.variant])
        for found in item.hashes:
            if found.hash_type == "sha256":
                media.append((item.item_id, found.value))
    timings = signal.timings
    return {
        "status": _STATUS.get(signal_pb2.ItemStatus.ValueType(status), "UNKNOWN"),
        "reasons": sorted(reasons),
        "items": count,
        "scores": scores,
        "matches": matches,
        "relay": signal.relay_instance,
        "service": signal.service_instance,
        "rpc_attempts": signal.rpc_attempts,
        "received_unix_nano": timings.received_unix_nano,
        "produced_unix_nano": timings.produced_unix_nano,
    }
