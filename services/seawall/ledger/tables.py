"""The ledger's tables. Instants are Unix nanoseconds, enumerations their protobuf numbers, digests lower-case hex.

`decisions` and `contents` are partitioned by `day` on PostgreSQL, so that old days are dropped, not deleted. A
decision's day is the UTC date of its own time, which a replay repeats: so (day, decision_id) is as unique as
decision_id.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

metadata: Final = MetaData()

_DIGEST: Final = 64
_ID: Final = 160


def _by_day() -> dict[str, Any]:
    return {"postgresql_partition_by": "RANGE (day)"}


decisions: Final = Table(
    "decisions",
    metadata,
    Column("day", Date, primary_key=True),
    Column("decision_id", String(32), primary_key=True),
    Column("generation_id", String(_ID), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("outcome", SmallInteger, nullable=False),
    Column("rule_id", Text, nullable=False),
    Column("reason_code", Text, nullable=False),
    Column("severity", SmallInteger, nullable=False),
    Column("policy_name", Text, nullable=False),
    Column("policy_digest", String(_DIGEST), nullable=False),
    Column("tenant_id", String(_ID), nullable=False),
    Column("actor_id", String(_ID), nullable=False),
    Column("model", Text, nullable=False),
    Column("modality", SmallInteger, nullable=False),
    Column("generated_unix_nano", BigInteger, nullable=False),
    Column("decided_unix_nano", BigInteger, nullable=False),
    Column("trace_id", String(32)),
    # Where the generation and the decision stand in their topics.
    Column("generation_partition", Integer, nullable=False),
    Column("generation_offset", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("rescanned", Boolean, nullable=False),
    # Which models, banks and packs took part: see artefact_sets.
    Column("artefact_set", String(32), nullable=False),
    # {"missing": [stage], "rules": [rule], "comparisons": [[label, score, threshold, reached]],
    #  "signals": {stage: {…}}}: see rows.py
    Column("summary", JSON, nullable=False),
    Index("decisions_by_generation", "generation_id"),
    Index("decisions_by_time", "decided_unix_nano"),
    Index("decisions_by_outcome", "outcome", "decided_unix_nano"),
    Index("decisions_by_rule", "rule_id", "decided_unix_nano"),
    Index("decisions_by_actor", "actor_id", "decided_unix_nano"),
    Index("decisions_by_tenant", "tenant_id", "decided_unix_nano"),
    Index("decisions_by_trace", "trace_id"),
    Index("decisions_by_artefacts", "artefact_set", "decided_unix_nano"),
    **_by_day(),
)

#: Which media a decision was about, by the SHA-256 of their bytes.
contents: Final = Table(
    "contents",
    metadata,
    Column("day", Date, primary_key=True),
    Column("sha256", String(_DIGEST), primary_key=True),
    Column("decision_id", String(32), primary_key=True),
    Column("item_id", String(64), primary_key=True),
    Index("contents_by_sha256", "sha256"),
    **_by_day(),
)

#: What decisions rested on. Few sets are shared by many decisions, so a decision names its set.
artefact_sets: Final = Table(
    "artefact_sets",
    metadata,
    Column("artefact_set", String(32), primary_key=True),
    Column("kind", SmallInteger, primary_key=True),
    Column("name", String(_ID), primary_key=True),
    Column("sha256", String(_DIGEST), primary_key=True),
    Column("version", Text, nullable=False),
    Index("artefact_sets_by_name", "name", "version"),
)

dead_letters: Final = Table(
    "dead_letters",
    metadata,
    Column("dead_letter_id", String(32), primary_key=True),
    Column("room", String(_ID), nullable=False),
    Column("reason", String(_ID), nullable=False),
    Column("detail", Text, nullable=False),
    Column("error_class", SmallInteger, nullable=False),
    Column("source_topic", Text, nullable=False),
    Column("source_partition", Integer, nullable=False),
    Column("source_offset", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("create_unix_nano", BigInteger, nullable=False),
    Column("original_size_bytes", BigInteger, nullable=False),
    # What became of it, a dead_letter.v1.Resolution: 0 while nobody has dealt with it; and who did.
    Column("resolution", SmallInteger, nullable=False, server_default="0"),
    Column("resolved_by", String(_ID), nullable=False, server_default=""),
    # Of the newest record about it: the letter, its repeat, or what became of it.
    Column("last_offset", BigInteger, nullable=False, server_default="-1"),
    Index("dead_letters_by_time", "resolution", "create_unix_nano"),
    Index("dead_letters_by_room", "room", "reason", "resolution", "create_unix_nano"),
)

#: The last word of a person on a generation, as overrides.v1 keeps it; outcome 0: withdrawn.
overrides: Final = Table(
    "overrides",
    metadata,
    Column("generation_id", String(_ID), primary_key=True),
    Column("override_id", String(32), nullable=False),
    Column("tenant_id", String(_ID), nullable=False),
    Column("actor_id", String(_ID), nullable=False),
    Column("outcome", SmallInteger, nullable=False),
    Column("outcome_before", SmallInteger, nullable=False),
    Column("reason_code", String(64), nullable=False),
    # An account or a pseudonym.
    Column("made_by", String(_ID), nullable=False),
    Column("made_unix_nano", BigInteger, nullable=False),
    # Of the decisions that the person had seen, the one that counted: the key of its row.
    Column("day", Date, nullable=False),
    Column("decision_id", String(32), nullable=False),
    Column("decided_unix_nano", BigInteger, nullable=False),
    # All of them, by their ids.
    Column("decision_ids", JSON, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Index("overrides_by_time", "decided_unix_nano", "decision_id"),
)

#: Records that could not be read: what a search cannot find must be visible.
unreadable: Final = Table(
    "unreadable",
    metadata,
    Column("topic", String(_ID), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("reason", Text, nullable=False),
)

#: The next record to read of each partition, written in the transaction that wrote the rows of those before it.
positions: Final = Table(
    "positions",
    metadata,
    Column("topic", String(_ID), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    # Log time of the last record, Unix nanoseconds: how far behind the ledger is.
    Column("log_unix_nano", BigInteger, nullable=False),
    # Records that the topic had dropped before they were read here.
    Column("missed", BigInteger, nullable=False),
)


def _by_minute() -> list[Column[Any]]:
    return [
        # Of the decision's own time, minutes since 1970.
        Column("minute", Integer, primary_key=True),
        Column("outcome", SmallInteger, primary_key=True),
        # From the generation's log time to the decision's: at most so many milliseconds, of counts.LATENCY_BOUNDS.
        Column("within_ms", Integer, primary_key=True),
        Column("decisions", BigInteger, nullable=False),
    ]


def _by_verdict() -> list[Column[Any]]:
    return [
        # Hours since 1970.
        Column("hour", Integer, primary_key=True),
        # A counts.Role: who said it.
        Column("role", SmallInteger, primary_key=True),
        Column("policy_name", String(_ID), primary_key=True),
        Column("policy_version", String(_ID), primary_key=True),
        Column("bundle_digest", String(_DIGEST), primary_key=True),
        Column("rule_id", String(_ID), primary_key=True),
        Column("outcome", SmallInteger, primary_key=True),
        Column("decided_outcome", SmallInteger, primary_key=True),
        Column("decisions", BigInteger, nullable=False),
    ]


def _tenant() -> Column[Any]:
    # First of the key: what is asked of one tenant lies together.
    return Column("tenant_id", String(_ID), primary_key=True)


_KEYED: Final[dict[str, Any]] = {"sqlite_with_rowid": False}
#: How many decisions there were, so that nobody counts rows: by minute, outcome and time taken; by tenant, and of all.
decision_counts: Final = Table("decision_counts", metadata, _tenant(), *_by_minute(), **_KEYED)
decision_totals: Final = Table("decision_totals", metadata, *_by_minute(), **_KEYED)
#: What each bundle, and each rule in shadow, said, beside what was decided; by hour; by tenant, and of all.
verdict_counts: Final = Table("verdict_counts", metadata, _tenant(), *_by_verdict(), **_KEYED)
verdict_totals: Final = Table("verdict_totals", metadata, *_by_verdict(), **_KEYED)

#: When each set was used, from first to last: where in time a search by artefact has to look.
artefact_set_uses: Final = Table(
    "artefact_set_uses",
    metadata,
    Column("artefact_set", String(32), primary_key=True),
    Column("first_unix_nano", BigInteger, nullable=False),
    Column("last_unix_nano", BigInteger, nullable=False),
)

#: Every version of a model, bank or term pack that decisions rested on, and from when to when.
artefacts: Final = Table(
    "artefacts",
    metadata,
    Column("kind", SmallInteger, primary_key=True),
    Column("name", String(_ID), primary_key=True),
    Column("version", String(_ID), primary_key=True),
    Column("sha256", String(_DIGEST), primary_key=True),
    Column("first_unix_nano", BigInteger, nullable=False),
    Column("last_unix_nano", BigInteger, nullable=False),
    Index("artefacts_by_last", "last_unix_nano"),
)

#: Searches that the console's users keep under a name. Not filled from topics.
saved_views: Final = Table(
    "saved_views",
    metadata,
    Column("owner", String(_ID), primary_key=True),
    Column("name", String(80), primary_key=True),
    # A query string of the console's search page.
    Column("query", Text, nullable=False),
)

#: Tables that are partitioned by day.
DAILY: Final = (decisions, contents)
#: Tables that the topics fill.
FILLED: Final = (
    decisions,
    contents,
    artefact_sets,
    artefact_set_uses,
    dead_letters,
    overrides,
    unreadable,
    positions,
    decision_counts,
    decision_totals,
    verdict_counts,
    verdict_totals,
    artefacts,
)
