"""The pages *Dead letters* and *Policies*: rows and counts of the ledger in their shapes."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, Final

from sqlalchemy import Engine, RowMapping

from seawall.api.dead_letter.v1 import dead_letter_pb2
from seawall.console.shapes import (
    BundleView,
    DeadLetterCountView,
    DeadLetterPage,
    DeadLetterRow,
    Policies,
    RuleCount,
    ShadowBundleView,
    ShadowCount,
    instant,
    outcome_name,
)
from seawall.ledger import figures, queries
from seawall.ledger.counts import Role

_HOUR: Final = 3_600 * 1_000_000_000
_DAY: Final = 24 * _HOUR


def dead_letters(
    db: Engine, room: str | None, reason: str | None, limit: int, *, resolved: bool = False
) -> DeadLetterPage:
    """The newest, and how many of which kind are left of the last day. Raises as `ledger.database.retryable`."""
    counts = figures.dead_letters_since(db, time.time_ns() - _DAY)
    rows = queries.find_dead_letters(db, room=room, reason=reason, resolved=resolved, limit=limit)
    return DeadLetterPage(
        counts=[
            DeadLetterCountView(
                room=one.room, reason=one.reason, letters=one.letters, newest=instant(one.newest_unix_nano)
            )
            for one in counts
        ],
        truncated=sum(one.letters for one in counts) >= figures.MAX_DEAD_LETTERS,
        letters=[_letter(row) for row in rows],
    )


def by_reason(found: DeadLetterPage) -> list[tuple[str, list[DeadLetterCountView]]]:
    """The kinds by reason, the most frequent first: a bad record is set aside by every room that reads it."""
    reasons: dict[str, list[DeadLetterCountView]] = defaultdict(list)
    for one in found.counts:
        reasons[one.reason].append(one)
    return sorted(reasons.items(), key=lambda kind: (-sum(one.letters for one in kind[1]), kind[0]))


def _letter(row: RowMapping) -> DeadLetterRow:
    names = dead_letter_pb2.ErrorClass.DESCRIPTOR.values_by_number
    known = names.get(row["error_class"])
    return DeadLetterRow(
        dead_letter_id=row["dead_letter_id"],
        created=instant(row["create_unix_nano"]),
        room=row["room"],
        reason=row["reason"],
        detail=row["detail"],
        error_class=known.name.removeprefix("ERROR_CLASS_").lower() if known else str(row["error_class"]),
        source=f"{row['source_topic']}/{row['source_partition']}/{row['source_offset']}",
        record=f"dead_letters.v1/{row['partition']}/{row['offset']}",
        original_size_bytes=row["original_size_bytes"],
        became=_became(row["resolution"]),
        by=row["resolved_by"],
    )


def _became(resolution: int) -> str:
    if resolution == queries.UNRESOLVED:
        return ""
    known = dead_letter_pb2.Resolution.DESCRIPTOR.values_by_number.get(resolution)
    return known.name.removeprefix("RESOLUTION_").lower() if known else str(resolution)


def policies(db: Engine, hours: int, tenant_id: str | None) -> Policies:
    """What decided in the last hours, and what was said in shadow. Raises as `ledger.database.retryable`."""
    rows = figures.verdicts(db, time.time_ns() - hours * _HOUR, tenant_id)
    by_role: dict[int, dict[tuple[str, str, str], list[RowMapping]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_role[row["role"]][row["policy_name"], row["policy_version"], row["bundle_digest"]].append(row)
    bundles = []
    for key, said in by_role[Role.DECIDED].items():
        total = sum(int(row["decisions"]) for row in said)
        bundles.append(
            BundleView(
                **_bundle(key, total),
                rules=[
                    RuleCount(
                        rule_id=row["rule_id"],
                        outcome=outcome_name(row["outcome"]),
                        decisions=int(row["decisions"]),
                        share=int(row["decisions"]) / total,
                    )
                    for row in said
                ],
                shadow_rules=[_count(row) for row in by_role[Role.SHADOW_RULE].get(key, ())],
            )
        )
    shadows = []
    for key, said in by_role[Role.SHADOW_BUNDLE].items():
        total = sum(int(row["decisions"]) for row in said)
        differences = [row for row in said if row["outcome"] != row["decided_outcome"]]
        shadows.append(
            ShadowBundleView(
                **_bundle(key, total),
                agreement=1 - sum(int(row["decisions"]) for row in differences) / total,
                differences=[_count(row) for row in differences],
            )
        )
    return Policies(
        hours=hours,
        bundles=sorted(bundles, key=lambda one: -one.decisions),
        shadows=sorted(shadows, key=lambda one: -one.decisions),
    )


def _bundle(key: tuple[str, str, str], decisions: int) -> dict[str, Any]:
    name, version, digest = key
    return {"name": name, "version": version, "digest": digest, "decisions": decisions}


def _count(row: RowMapping) -> ShadowCount:
    return ShadowCount(
        rule_id=row["rule_id"],
        outcome=outcome_name(row["outcome"]),
        decided_outcome=outcome_name(row["decided_outcome"]),
        decisions=int(row["decisions"]),
    )
