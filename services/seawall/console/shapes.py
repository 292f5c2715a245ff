"""What pages show and the JSON interface returns: one set of types for both. Ids, names, numbers and digests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from seawall.api.decision.v1 import decision_pb2

OUTCOMES: tuple[str, ...] = tuple(name.removeprefix("OUTCOME_") for name in decision_pb2.Outcome.keys()[1:])


def outcome_name(number: int) -> str:
    """``ALLOW`` for 2; ``OUTCOME_7`` for one that this version does not know."""
    return OUTCOMES[number - 1] if 0 < number <= len(OUTCOMES) else f"OUTCOME_{number}"


def instant(unix_nano: int) -> datetime:
    """The UTC instant, to the microsecond. What no calendar holds is the last instant that one does."""
    return datetime.fromtimestamp(min(max(unix_nano // 1_000, 0) / 1e6, 253_402_300_799), UTC)


class Shape(BaseModel):
    """Frozen, and no field more than it says."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---- now -------------------------------------------------------------------------------------------------------------


class Problem(Shape):
    """Something that is wrong."""

    level: Literal["critical", "warning"]
    #: What is wrong, with its figures.
    text: str
    #: What it means, or what to do.
    meaning: str
    #: A command to begin with.
    command: str = ""
    #: A page of the console.
    link: str = ""


class OutcomeShare(Shape):
    """Decisions of one outcome in the last hour."""

    outcome: str
    decisions: int
    share: float
    by_minute: list[int]


class RoomNow(Shape):
    """A room, as its own endpoint tells."""

    room: str
    instance: str = ""
    #: None: it did not answer.
    ready: bool | None
    #: Why it is not ready, or did not answer.
    why: str = ""
    lag_seconds: float | None = None
    watermark_seconds: float | None = None
    #: Seconds that its clock is ahead of the console's, where they differ by more than an answer's time can explain.
    clock_ahead_seconds: float | None = None
    #: Why it stands still until a person has looked; empty: it does not.
    halted: str = ""


class Artefact(Shape):
    """A version of a model, bank or term pack, as decisions name it."""

    kind: Literal["model", "list", "term pack", "other"]
    name: str
    version: str
    sha256: str
    first_seen: datetime
    last_seen: datetime
    #: The newest version of its name.
    current: bool
    #: Days since the name's content changed.
    age_days: float


class Now(Shape):
    """The state of everything, one look."""

    at: datetime
    problems: list[Problem]
    decisions_by_minute: list[int]
    p99_ms_by_minute: list[float | None]
    #: Of the last five whole minutes.
    p99_ms: float | None
    p50_ms: float | None
    decisions_per_minute: float
    outcomes: list[OutcomeShare]
    open_holds: int | None
    oldest_hold: datetime | None
    #: None: not for whoever sees one tenant only.
    dead_letters: int | None
    dead_letters_truncated: bool = False
    ledger_lag_seconds: float | None
    #: Whether Kafka said so; else it is the age of the last record written, which says nothing while nothing comes.
    ledger_lag_known: bool
    rooms: list[RoomNow]
    artefacts: list[Artefact]


# ---- decisions -------------------------------------------------------------------------------------------------------


class DecisionRow(Shape):
    """A decision in a list."""

    decided: datetime
    outcome: str
    generation_id: str
    attempt: int
    late: bool
    rule_id: str
    reason_code: str
    severity: int
    tenant_id: str
    actor_id: str
    model: str
    trace_id: str | None
    took_ms: float | None
    decision_id: str
    #: What a person said of the generation, and who; empty where nobody has, or took it back.
    override: str = ""
    override_by: str = ""


class DecisionPage(Shape):
    """One page of a search, newest first."""

    decisions: list[DecisionRow]
    #: Give it back as `after` for the next page; null: this is the last.
    after: str | None


class ComparisonView(Shape):
    """A score beside its threshold."""

    label: str
    score: float | None
    threshold: float
    reached: bool
    name: str = ""


class MatchView(Shape):
    """A bank's entry that matched."""

    bank: str
    entry_id: str
    hash_type: str
    distance: int
    variant: str = ""
    held: str = ""


class ItemView(Shape):
    """What a stage measured of one item; of a summary, of all items together."""

    item_id: str
    status: str
    reason: str = ""
    labels: list[tuple[str, float]] = Field(default_factory=list)
    matches: list[MatchView] = Field(default_factory=list)


class ArtefactView(Shape):
    """What a signal rests on."""

    name: str
    version: str
    sha256: str


class SignalView(Shape):
    """One stage's signal."""

    stage: str
    items: list[ItemView]
    artefacts: list[ArtefactView] = Field(default_factory=list)
    relay: str = ""
    service: str = ""
    rpc_attempts: int = 0
    batch_size: int = 0
    late: bool = False


class HopView(Shape):
    """A record in Kafka."""

    what: str
    topic: str
    partition: int
    offset: int
    after_ms: float | None = None
    by: str = ""


class SpanView(Shape):
    """A piece of a stage's time, milliseconds since the generation was logged."""

    hop: str
    start_ms: float
    end_ms: float


class StageView(Shape):
    """Where one stage's time went."""

    stage: str
    spans: list[SpanView]


class ShadowView(Shape):
    """What a bundle or rule in shadow said."""

    who: str
    outcome: str
    rule_id: str


class DecisionView(Shape):
    """One decision, explained."""

    decision_id: str
    kind: Literal["joint", "late signal"]
    attempt: int
    outcome: str
    rule_id: str
    reason_code: str
    words: str
    decided: datetime
    took_ms: float | None
    policy_name: str
    policy_version: str
    policy_digest: str
    bundle_digest: str
    tenant_id: str
    actor_id: str
    model: str
    trace_id: str | None
    nexus: list[str] = Field(default_factory=list)
    missing_stages: list[str] = Field(default_factory=list)
    other_rules: list[str] = Field(default_factory=list)
    rule_errors: list[str] = Field(default_factory=list)
    shadows: list[ShadowView] = Field(default_factory=list)
    rescanned: bool = False
    comparisons: list[ComparisonView] = Field(default_factory=list)
    signals: list[SignalView] = Field(default_factory=list)
    stages: list[StageView] = Field(default_factory=list)
    hops: list[HopView] = Field(default_factory=list)
    #: From the decision's own record; else from the ledger's summary, which has no waterfall and fewer hops.
    complete: bool


class OverrideView(Shape):
    """A person's last word on a generation."""

    #: What is to count; empty: an earlier word was taken back.
    outcome: str
    #: What counted before, an earlier word included.
    before: str
    #: An account or a pseudonym.
    by: str
    made: datetime
    reason_code: str
    #: The decisions that the person had seen, by their ids.
    seen: list[str]
    #: Something higher was decided since, and counts.
    surpassed: bool


class Explained(Shape):
    """Why a generation was decided as it was."""

    generation_id: str
    #: What counts now: a person's word, and whatever was decided besides what that person had seen.
    outcome: str
    #: What counts of the decisions alone.
    decided: str
    override: OverrideView | None
    settled: bool
    #: The decision that counts, by its id.
    counts: str
    decisions: list[DecisionView]
    #: ledger: found there, records from Kafka; kafka: the topic was searched, because the ledger could not say.
    source: Literal["ledger", "kafka"]
    notes: list[str] = Field(default_factory=list)


# ---- the other pages -------------------------------------------------------------------------------------------------


class DeadLetterRow(Shape):
    """A record that a room set aside."""

    dead_letter_id: str
    created: datetime
    room: str
    reason: str
    detail: str
    error_class: str
    source: str
    record: str
    original_size_bytes: int
    #: redriven, discarded; empty: nobody has dealt with it.
    became: str = ""
    by: str = ""


class DeadLetterCountView(Shape):
    """Dead letters of one room and reason in the last day, of those that nobody has dealt with."""

    room: str
    reason: str
    letters: int
    newest: datetime


class DeadLetterPage(Shape):
    """The newest dead letters that nobody has dealt with, or that somebody has; and the kinds of those left."""

    counts: list[DeadLetterCountView]
    truncated: bool
    letters: list[DeadLetterRow]


class ShadowCount(Shape):
    """What was said in shadow, beside what was decided."""

    rule_id: str
    outcome: str
    decided_outcome: str
    decisions: int


class RuleCount(Shape):
    """How often a rule decided, or held in shadow."""

    rule_id: str
    outcome: str
    decisions: int
    share: float


class BundleView(Shape):
    """A bundle that decided in the window asked for."""

    name: str
    version: str
    digest: str
    decisions: int
    rules: list[RuleCount]
    #: Rules of it in shadow that held, and what was decided instead.
    shadow_rules: list[ShadowCount]


class ShadowBundleView(Shape):
    """A bundle in shadow."""

    name: str
    version: str
    digest: str
    decisions: int
    #: Share of generations for which it says what was decided.
    agreement: float
    differences: list[ShadowCount]


class Policies(Shape):
    """What decided in the last hours, and what was tried beside it."""

    hours: int
    bundles: list[BundleView]
    shadows: list[ShadowBundleView]


class Artefacts(Shape):
    """Models and lists, newest use first."""

    artefacts: list[Artefact]


class Failure(Shape):
    """Why a question was not answered."""

    reason: str
    detail: str
