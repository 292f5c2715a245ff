"""What two bundles said of the same generations, counted: by outcome, by rule, against each other, with samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from seawall.api.decision.v1 import decision_pb2

OUTCOMES = (
    decision_pb2.OUTCOME_ALLOW,
    decision_pb2.OUTCOME_HOLD,
    decision_pb2.OUTCOME_REVIEW,
    decision_pb2.OUTCOME_BLOCK,
    decision_pb2.OUTCOME_BLOCK_AND_REPORT,
)


class Said(NamedTuple):
    """A verdict in short."""

    outcome: decision_pb2.Outcome.ValueType
    rule_id: str


class Tally:
    """Counts of one bundle, or of two side by side.

    Args:
        names: the bundles', base first.
        samples: generation ids kept of each change.
    """

    def __init__(self, names: Sequence[str], samples: int = 5) -> None:
        self.names = list(names)
        self._samples = samples
        self.total = 0
        self.by_rule: list[Counter[Said]] = [Counter() for _ in names]
        self.late: list[Counter[Said]] = [Counter() for _ in names]
        #: (base, candidate) → how many; those that say the same included.
        self.moves: Counter[tuple[Said, Said]] = Counter()
        self.samples: dict[tuple[Said, Said], list[str]] = {}
        #: Generations that nothing completed before the records ended.
        self.open = 0

    def add(self, generation_id: str, said: Sequence[Said]) -> None:
        """One attempt, and what each bundle said of it."""
        self.total += 1
        self.by_rule[0][said[0]] += 1
        if len(said) == 2:
            self.by_rule[1][said[1]] += 1
            move = (said[0], said[1])
            self.moves[move] += 1
            if said[0] != said[1]:
                kept = self.samples.setdefault(move, [])
                if len(kept) < self._samples:
                    kept.append(generation_id)

    def by_outcome(self, side: int) -> dict[str, int]:
        """Outcome → attempts."""
        counts: Counter[str] = Counter()
        for said, count in self.by_rule[side].items():
            counts[outcome_name(said.outcome)] += count
        return dict(counts)

    @property
    def changed(self) -> int:
        """Attempts whose outcome differs."""
        return sum(count for (a, b), count in self.moves.items() if a.outcome != b.outcome)

    def confusion(self) -> dict[str, dict[str, int]]:
        """Base's outcome → candidate's outcome → attempts."""
        table: dict[str, dict[str, int]] = {}
        for (a, b), count in self.moves.items():
            row = table.setdefault(outcome_name(a.outcome), {})
            row[outcome_name(b.outcome)] = row.get(outcome_name(b.outcome), 0) + count
        return table

    def differences(self) -> list[tuple[Said, Said, int, list[str]]]:
        """What differs, outcomes or rules: base, candidate, attempts, sampled ids; the most frequent first."""
        found = [(a, b, count, self.samples.get((a, b), [])) for (a, b), count in self.moves.items() if a != b]
        return sorted(found, key=lambda one: (-one[2], one[0], one[1]))

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        document: dict[str, Any] = {
            "attempts": self.total,
            "open": self.open,
            "bundles": [
                {
                    "name": name,
                    "by_outcome": self.by_outcome(side),
                    "by_rule": _rules(self.by_rule[side]),
                    "late_signals": _rules(self.late[side]),
                }
                for side, name in enumerate(self.names)
            ],
        }
        if len(self.names) == 2:
            document["outcome_changes"] = self.changed
            document["confusion"] = self.confusion()
            document["differences"] = [
                {
                    "base": {"outcome": outcome_name(a.outcome), "rule": a.rule_id},
                    "candidate": {"outcome": outcome_name(b.outcome), "rule": b.rule_id},
                    "attempts": count,
                    "samples": samples,
                }
                for a, b, count, samples in self.differences()
            ]
        return document


def outcome_name(outcome: decision_pb2.Outcome.ValueType) -> str:
    """Without its prefix."""
    return decision_pb2.Outcome.Name(outcome).removeprefix("OUTCOME_")


def _rules(counter: Counter[Said]) -> list[dict[str, Any]]:
    ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return [{"outcome": outcome_name(said.outcome), "rule": said.rule_id, "attempts": count} for said, count in ordered]
