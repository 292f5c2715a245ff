"""Counts that are kept as decisions are written, so that no page ever counts rows. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

from seawall.api.decision.v1 import decision_pb2
from seawall.ledger.text import fitting

Row = dict[str, Any]

_MILLI: Final = 1_000_000
MINUTE_NANOS: Final = 60 * 1_000_000_000
HOUR_NANOS: Final = 60 * MINUTE_NANOS
#: Upper bounds of a decision's latency, milliseconds; the last stands for everything longer.
LATENCY_BOUNDS: Final = (
    *(1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 350, 500, 750),
    *(1_000, 1_500, 2_000, 3_500, 5_000, 10_000, 20_000, 60_000, 300_000, 2_147_483_647),
)
#: Of a decision whose generation's log time is not known: a late signal's.
NO_LATENCY: Final = 0


class Role(IntEnum):
    """Who said what a row of verdict_counts counts."""

    #: The bundle that decided.
    DECIDED = 1
    #: A whole bundle in shadow.
    SHADOW_BUNDLE = 2
    #: One rule in shadow, of the bundle that decided.
    SHADOW_RULE = 3


class Verdict(NamedTuple):
    """The key of a row of verdict_counts, but for hour and tenant."""

    role: Role
    policy_name: str
    policy_version: str
    bundle_digest: str
    rule_id: str
    outcome: int
    decided_outcome: int


def verdicts(decision: decision_pb2.Decision) -> list[Verdict]:
    """What every bundle and every rule in shadow said of one generation."""
    name, version = fitting(decision.policy_name, 160), fitting(decision.policy_version, 160)
    digest, decided = fitting(decision.bundle_digest or decision.policy_digest, 64), decision.outcome
    said = [Verdict(Role.DECIDED, name, version, digest, fitting(decision.rule_id, 160), decided, decided)]
    for hit in decision.shadow_hits:
        said.append(Verdict(Role.SHADOW_RULE, name, version, digest, fitting(hit.rule_id, 160), hit.outcome, decided))
    for shadow in decision.shadows:
        said.append(
            Verdict(
                Role.SHADOW_BUNDLE,
                fitting(shadow.policy_name, 160),
                fitting(shadow.policy_version, 160),
                fitting(shadow.bundle_digest, 64),
                fitting(shadow.rule_id, 160),
                shadow.outcome,
                decided,
            )
        )
    return said


def within_ms(generated_unix_nano: int, decided_unix_nano: int) -> int:
    """The bound of LATENCY_BOUNDS that holds a decision's latency; NO_LATENCY if it has none."""
    if not generated_unix_nano:
        return NO_LATENCY
    took = max(0, decided_unix_nano - generated_unix_nano) / _MILLI
    return LATENCY_BOUNDS[min(bisect_left(LATENCY_BOUNDS, took), len(LATENCY_BOUNDS) - 1)]


def decision_count_rows(decisions: Iterable[Row]) -> list[Row]:
    """Rows of decision_counts for rows of decisions, in the order of their keys: two writers never wait in a circle."""
    counted = Counter(
        (
            row["tenant_id"],
            row["decided_unix_nano"] // MINUTE_NANOS,
            row["outcome"],
            within_ms(row["generated_unix_nano"], row["decided_unix_nano"]),
        )
        for row in decisions
    )
    return _rows(("tenant_id", "minute", "outcome", "within_ms"), counted)


def verdict_count_rows(decisions: Iterable[Row], said: Mapping[str, Sequence[Verdict]]) -> list[Row]:
    """Rows of verdict_counts for rows of decisions, ordered; ``said`` has the verdicts by decision_id."""
    counted = Counter(
        (row["tenant_id"], row["decided_unix_nano"] // HOUR_NANOS, *verdict)
        for row in decisions
        for verdict in said.get(row["decision_id"], ())
    )
    return _rows(("tenant_id", "hour", *Verdict._fields), counted)


def total_rows(counts: Iterable[Row]) -> list[Row]:
    """Rows of decision_totals or verdict_totals for rows of decision_counts or verdict_counts, ordered."""
    totals: Counter[tuple[Any, ...]] = Counter()
    names: list[str] = []
    for row in counts:
        names = names or [name for name in row if name not in ("tenant_id", "decisions")]
        totals[tuple([row[name] for name in names])] += row["decisions"]
    return _rows(names, totals)


def _rows(names: Sequence[str], counted: Mapping[tuple[Any, ...], int]) -> list[Row]:
    return [{**dict(zip(names, key, strict=True)), "decisions": count} for key, count in sorted(counted.items())]


def use_rows(decisions: Iterable[Row]) -> list[Row]:
    """Rows of artefact_set_uses for rows of decisions, ordered."""
    used: dict[str, tuple[int, int]] = {}
    for row in decisions:
        _widen(used, row["artefact_set"], row["decided_unix_nano"], row["decided_unix_nano"])
    return [
        {"artefact_set": key, "first_unix_nano": first, "last_unix_nano": last}
        for key, (first, last) in sorted(used.items())
    ]


def artefact_rows(uses: Iterable[Row], sets: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Rows of artefacts for rows of artefact_set_uses, ordered; ``sets`` has the rows of artefact_sets by set."""
    spans: dict[tuple[Any, ...], tuple[int, int]] = {}
    for use in uses:
        for one in sets.get(use["artefact_set"], ()):
            key = one["kind"], one["name"], fitting(one["version"], 160), one["sha256"]
            _widen(spans, key, use["first_unix_nano"], use["last_unix_nano"])
    return [
        {"kind": kind, "name": name, "version": version, "sha256": sha256, "first_unix_nano": a, "last_unix_nano": b}
        for (kind, name, version, sha256), (a, b) in sorted(spans.items())
    ]


def _widen(spans: dict[Any, tuple[int, int]], key: Any, first: int, last: int) -> None:
    before = spans.get(key, (first, last))
    spans[key] = (min(before[0], first), max(before[1], last))
