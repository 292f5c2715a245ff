"""From a decision, as its record or the ledger's row tells it, to what the page *Decision* shows. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.api.signal.v1 import signal_pb2
from seawall.console.shapes import (
    ArtefactView,
    ComparisonView,
    DecisionView,
    Explained,
    HopView,
    ItemView,
    MatchView,
    OverrideView,
    ShadowView,
    SignalView,
    SpanView,
    StageView,
    instant,
    outcome_name,
)
from seawall.console.words import in_words
from seawall.local import verdict
from seawall.local.explain import Found
from seawall.local.waterfall import total_nanos, waterfall
from seawall.runtime.telemetry import TraceContext

_MILLI: Final = 1e6
_LATE: Final = decision_pb2.DECISION_KIND_AMENDMENT

Row = Mapping[Any, Any]


def explained(
    generation_id: str,
    found: Collection[Found],
    rows: Sequence[Row],
    said: Override | None = None,
    notes: Iterable[str] = (),
) -> Explained | None:
    """Every decision of a generation, the latest first; None if there is none.

    Args:
        found: the decisions' records, repeats included.
        rows: the ledger's rows; those whose record was found are told by that.
        said: a person's last word on it.
    """
    decisions = verdict.distinct(one.decision for one in found)
    views = [of_record(one, [at for at in found if at.decision.decision_id == one.decision_id]) for one in decisions]
    known = {one.decision_id for one in decisions}
    views += [of_row(row) for row in rows if row["decision_id"] not in known]
    if not views:
        return None
    # The rules of `verdict`, which speak of records, need no more of a row than this.
    everything = [*decisions, *(_stand_in(row) for row in rows if row["decision_id"] not in known)]
    counts, stands = verdict.effective(everything), verdict.outcome(everything, said)
    return Explained(
        generation_id=generation_id,
        outcome=outcome_name(stands) if stands else "",
        decided=outcome_name(counts.outcome) if counts else "",
        override=_override(said, stands) if said else None,
        settled=verdict.is_settled(everything) or (said is not None and bool(said.outcome)),
        counts=counts.decision_id if counts else "",
        decisions=sorted(views, key=lambda one: (one.decided, one.attempt), reverse=True),
        source="ledger" if rows else "kafka",
        notes=list(notes),
    )


def _stand_in(row: Row) -> decision_pb2.Decision:
    return decision_pb2.Decision(
        decision_id=row["decision_id"],
        outcome=row["outcome"],
        attempt=row["attempt"],
        rescanned=row["rescanned"],
        decided_unix_nano=row["decided_unix_nano"],
    )


def override_of(row: Row) -> Override:
    """From the ledger's row."""
    return Override(
        override_id=row["override_id"],
        generation_id=row["generation_id"],
        tenant_id=row["tenant_id"],
        outcome=row["outcome"],
        reason_code=row["reason_code"],
        by=row["made_by"],
        made_unix_nano=row["made_unix_nano"],
        decision_ids=row["decision_ids"],
        actor_id=row["actor_id"],
        outcome_before=row["outcome_before"],
        decision_id=row["decision_id"],
        decided_unix_nano=row["decided_unix_nano"],
    )


def _override(said: Override, stands: int | None) -> OverrideView:
    return OverrideView(
        outcome=outcome_name(said.outcome) if said.outcome else "",
        before=outcome_name(said.outcome_before) if said.outcome_before else "",
        by=said.by,
        made=instant(said.made_unix_nano),
        reason_code=said.reason_code,
        seen=list(said.decision_ids),
        surpassed=bool(said.outcome) and stands != said.outcome,
    )


def of_record(decision: decision_pb2.Decision, records: Sequence[Found]) -> DecisionView:
    """From the decision itself: everything."""
    trace = TraceContext.parse(decision.traceparent)
    signals = [_signal(joined.signal) for joined in decision.signals]
    comparisons = [
        ComparisonView(
            label=one.label,
            score=one.score if one.HasField("score") else None,
            threshold=one.value,
            reached=one.reached,
            name=one.threshold,
        )
        for one in decision.comparisons
    ]
    nexus = [_short(generation_pb2.Nexus.Name(one), "NEXUS_").lower().replace("_", " ") for one in decision.nexus]
    outcome, missing = outcome_name(decision.outcome), list(decision.missing_stages)
    model = decision.model
    return DecisionView(
        decision_id=decision.decision_id,
        kind="late signal" if decision.kind == _LATE else "joint",
        attempt=decision.attempt,
        outcome=outcome,
        rule_id=decision.rule_id,
        reason_code=decision.reason_code,
        words=in_words(
            outcome,
            decision.rule_id,
            decision.reason_code,
            comparisons=comparisons,
            matches=_matches(signals),
            missing=missing,
            nexus=nexus,
        ),
        decided=instant(decision.decided_unix_nano),
        took_ms=total_nanos(decision) / _MILLI,
        policy_name=decision.policy_name,
        policy_version=decision.policy_version,
        policy_digest=decision.policy_digest,
        bundle_digest=decision.bundle_digest,
        tenant_id=decision.tenant_id,
        actor_id=decision.actor_id,
        model=f"{model.name}@{model.version}" if model.name else "",
        trace_id=trace.trace_id if trace else None,
        nexus=nexus,
        missing_stages=missing,
        other_rules=[
            f"{hit.rule_id} ({outcome_name(hit.outcome)})"
            for hit in decision.rule_hits
            if hit.rule_id != decision.rule_id
        ],
        rule_errors=list(decision.rule_errors),
        shadows=_shadows(decision),
        rescanned=decision.rescanned,
        comparisons=_nearest_first(comparisons),
        signals=signals,
        stages=[
            StageView(
                stage=stage.stage,
                spans=[
                    SpanView(hop=span.hop, start_ms=span.start / _MILLI, end_ms=span.end / _MILLI)
                    for span in stage.spans
                ],
            )
            for stage in waterfall(decision)
        ],
        hops=_hops(decision, records),
        complete=True,
    )


def of_row(row: Row) -> DecisionView:
    """From the ledger's row: its summary, where the record is not to be had."""
    summary = row["summary"]
    signals = [_summed_up(stage, one) for stage, one in summary.get("signals", {}).items()]
    comparisons = [
        ComparisonView(label=label, score=score, threshold=value, reached=reached)
        for label, score, value, reached in summary.get("comparisons", ())
    ]
    outcome, missing = outcome_name(row["outcome"]), summary.get("missing", [])
    generated = row["generated_unix_nano"]
    return DecisionView(
        decision_id=row["decision_id"],
        kind="late signal" if row["kind"] == _LATE else "joint",
        attempt=row["attempt"],
        outcome=outcome,
        rule_id=row["rule_id"],
        reason_code=row["reason_code"],
        words=in_words(
            outcome,
            row["rule_id"],
            row["reason_code"],
            comparisons=comparisons,
            matches=_matches(signals),
            missing=missing,
            nexus=[],
        ),
        decided=instant(row["decided_unix_nano"]),
        took_ms=max(row["decided_unix_nano"] - generated, 0) / _MILLI if generated else None,
        policy_name=row["policy_name"],
        policy_version="",
        policy_digest=row["policy_digest"],
        bundle_digest="",
        tenant_id=row["tenant_id"],
        actor_id=row["actor_id"],
        model=row["model"],
        trace_id=row["trace_id"],
        missing_stages=missing,
        other_rules=[rule for rule in summary.get("rules", ()) if rule != row["rule_id"]],
        rescanned=row["rescanned"],
        comparisons=_nearest_first(comparisons),
        signals=signals,
        hops=[
            HopView(
                what="generation",
                topic="generations.v1",
                partition=row["generation_partition"],
                offset=row["generation_offset"],
            ),
            HopView(what="decision", topic="decisions.v1", partition=row["partition"], offset=row["offset"]),
        ],
        complete=False,
    )


def _summed_up(stage: str, summary: Row) -> SignalView:
    item = ItemView(
        item_id=f"all {summary['items']}",
        status=summary["status"],
        reason=", ".join(summary["reasons"]),
        labels=sorted(summary["scores"].items()),
        matches=[
            MatchView(bank=bank, entry_id=entry, hash_type=kind, distance=distance, variant=variant)
            for bank, entry, kind, distance, variant in summary["matches"]
        ],
    )
    return SignalView(
        stage=stage,
        items=[item],
        relay=summary["relay"],
        service=summary["service"],
        rpc_attempts=summary["rpc_attempts"],
    )


def _signal(signal: signal_pb2.Signal) -> SignalView:
    return SignalView(
        stage=signal.stage,
        items=[
            ItemView(
                item_id=item.item_id,
                status=_short(signal_pb2.ItemStatus.Name(item.status), "ITEM_STATUS_"),
                reason=item.reason,
                labels=[(label.label, label.score) for label in item.labels],
                matches=[_match(match) for match in (*item.matches, *item.held_matches)],
            )
            for item in signal.items
        ],
        artefacts=[
            ArtefactView(name=one.name, version=one.version, sha256=one.sha256.hex()) for one in signal.artefacts
        ],
        relay=signal.relay_instance,
        service=signal.service_instance,
        rpc_attempts=signal.rpc_attempts,
        batch_size=signal.batch_size,
        late=signal.HasField("caused_by"),
    )


def _match(match: signal_pb2.BankMatch) -> MatchView:
    held = match.disposition
    return MatchView(
        bank=match.bank,
        entry_id=match.entry_id,
        hash_type=match.hash_type,
        distance=match.distance,
        variant=match.variant,
        held=_short(signal_pb2.MatchDisposition.Name(held), "MATCH_DISPOSITION_").lower() if held else "",
    )


def _nearest_first(comparisons: Iterable[ComparisonView]) -> list[ComparisonView]:
    """Thresholds that were reached, then those that nearly were; what was not measured last."""
    return sorted(comparisons, key=lambda one: (not one.reached, one.score is None, one.threshold - (one.score or 0.0)))


def _matches(signals: Iterable[SignalView]) -> list[MatchView]:
    return [match for signal in signals for item in signal.items for match in item.matches]


def _shadows(decision: decision_pb2.Decision) -> list[ShadowView]:
    rules = [
        ShadowView(who="a rule in shadow", outcome=outcome_name(hit.outcome), rule_id=hit.rule_id)
        for hit in decision.shadow_hits
    ]
    bundles = [
        ShadowView(
            who=f"{one.policy_name} {one.policy_version}".strip(),
            outcome=outcome_name(one.outcome),
            rule_id=one.rule_id,
        )
        for one in decision.shadows
    ]
    return rules + bundles


def _hops(decision: decision_pb2.Decision, records: Sequence[Found]) -> list[HopView]:
    origin = decision.generation_log_unix_nano

    def hop(what: str, at: generation_pb2.RecordCoordinates, log_nanos: int, by: str = "") -> HopView:
        after = max(0, log_nanos - origin) / _MILLI if log_nanos and origin else None
        return HopView(what=what, topic=at.topic, partition=at.partition, offset=at.offset, after_ms=after, by=by)

    hops = [hop("generation", decision.generation_record, origin)]
    for joined in decision.signals:
        signal = joined.signal
        if signal.HasField("caused_by"):
            hops.append(hop("bank's change", signal.caused_by, 0))
        tries = f", {signal.rpc_attempts} tries" if signal.rpc_attempts > 1 else ""
        by = f"{signal.relay_instance} ⇄ {signal.service_instance or 'no service'}, batch of {signal.batch_size}{tries}"
        hops.append(hop(f"signal {signal.stage}", joined.record, joined.log_unix_nano, by))
    if decision.completed_by.topic:
        hops.append(hop("completed by", decision.completed_by, decision.decided_unix_nano))
    hops += [
        HopView(
            what=f"decision{f' (repeat {number})' if number else ''}",
            topic=one.topic,
            partition=one.partition,
            offset=one.offset,
        )
        for number, one in enumerate(records)
    ]
    return hops


def _short(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)
