"""`seawall why`: what is drawn and what is printed as JSON, from decisions alone."""

from __future__ import annotations

import io
import json

from rich.console import Console

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.cli import why
from seawall.local import verdict
from seawall.local.explain import Found, explain
from seawall.local.waterfall import HOPS, total_nanos, waterfall

MS = 1_000_000
T0 = 1_700_000_000_000 * MS
DIGEST = "ab" * 32


def signal(stage: str, **timings: int) -> signal_pb2.Signal:
    made = signal_pb2.Signal(
        signal_id=f"s-{stage}",
        generation_id="gen-1",
        attempt=1,
        stage=stage,
        relay_instance=f"{stage}.relay-0",
        service_instance=f"{stage}-0",
        rpc_attempts=2,
        batch_size=17,
    )
    for name, value in timings.items():
        setattr(made.timings, f"{name}_unix_nano", T0 + value * MS)
    return made


def decision() -> decision_pb2.Decision:
    prompt = signal("prompt_scoring", received=2, batched=3, sent=4, inference_start=6, inference_end=16, produced=17)
    item = prompt.items.add(item_id="prompt", nexus=generation_pb2.NEXUS_ATTEMPT, status=signal_pb2.ITEM_STATUS_OK)
    item.labels.add(label="minor_sexual", score=0.93)
    prompt.artefacts.add(kind=signal_pb2.ARTEFACT_KIND_MODEL, name="minilm", version="1", sha256=bytes(range(32)))
    hashing = signal("perceptual_hashing", received=2, sent=4, inference_start=5, inference_end=8, produced=9)
    media = hashing.items.add(
        item_id="output/0", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, status=signal_pb2.ITEM_STATUS_UNSCANNABLE
    )
    media.reason = "TRUNCATED"
    media.matches.add(bank="demo", entry_id="e-7", distance=12, hash_type="pdq", category="stand-in", variant="mirror")
    made = decision_pb2.Decision(
        decision_id="d-1",
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id="gen-1",
        attempt=1,
        outcome=decision_pb2.OUTCOME_BLOCK,
        rule_id="attempt-in-prompt",
        reason_code="ATTEMPT",
        policy_name="default",
        policy_digest=DIGEST,
        nexus=[generation_pb2.NEXUS_ATTEMPT],
        generation_record=generation_pb2.RecordCoordinates(topic="generations.v1", partition=3, offset=41),
        generation_log_unix_nano=T0,
        completed_by=generation_pb2.RecordCoordinates(topic="signals.v1", partition=3, offset=99),
        decided_unix_nano=T0 + 20 * MS,
    )
    made.rule_hits.add(rule_id="attempt-in-prompt", outcome=decision_pb2.OUTCOME_BLOCK)
    made.rule_hits.add(rule_id="near-miss", outcome=decision_pb2.OUTCOME_REVIEW)
    made.comparisons.add(threshold="block", label="prompt_scoring.minor_sexual", value=0.8, score=0.93, reached=True)
    made.comparisons.add(threshold="explicit", label="classification.explicit", value=0.7)
    for number, one in enumerate((hashing, prompt)):
        made.signals.add(
            signal=one,
            record=generation_pb2.RecordCoordinates(topic="signals.v1", partition=3, offset=98 + number),
            log_unix_nano=T0 + (18 + number) * MS,
        )
    return made


def held(attempt: int, *, rescanned: bool) -> decision_pb2.Decision:
    return decision_pb2.Decision(
        decision_id=f"h-{attempt}",
        kind=decision_pb2.DECISION_KIND_JOINT,
        generation_id="gen-1",
        attempt=attempt,
        outcome=decision_pb2.OUTCOME_HOLD,
        rescanned=rescanned,
    )


def drawn(*found: Found) -> str:
    out = io.StringIO()
    why.draw(Console(file=out, width=200, markup=False, highlight=False), "gen-1", found)
    return out.getvalue()


def test_the_drawing_names_everything_an_engineer_asks_for() -> None:
    text = drawn(Found(decision(), "decisions.v1", 3, 12))
    for expected in (
        "BLOCK",
        "rule attempt-in-prompt (ATTEMPT)",
        f"policy default sha256:{DIGEST}",
        "also held: near-miss (REVIEW)",
        "rests on: attempt",
        "prompt_scoring.minor_sexual",
        "0.930",
        "≥ 0.8 block  reached",
        "not measured",
        "UNSCANNABLE (TRUNCATED)",
        "demo/e-7 pdq distance 12, mirror, stand-in",
        "minilm 1 000102030405",
        "20.0 ms from the generation's record to the decision",
        "prompt_scoring.relay-0 ⇄ prompt_scoring-0, batch of 17, 2 tries",
    ):
        assert expected in text, expected
    hops = {" ".join(line.split()[:5]) for line in text.splitlines()}
    assert "generation generations.v1 3 41 +0.0" in hops
    assert "signal prompt_scoring signals.v1 3 99" in hops
    assert "completed by signals.v1 3 99" in hops
    assert "decision decisions.v1 3 12" in hops


def test_the_frame_that_decided_and_the_models_on_trial_are_named() -> None:
    made = decision()
    item = made.signals[1].signal.items[0]
    item.labels.add(label="explicit", score=0.91, frame=17, model="explicit@1")
    item.shadows.add(model="explicit@2").labels.add(label="explicit", score=0.12, frame=3)
    item.shadows.add(model="explicit@3", reason="TRIAL_TIMEOUT")
    text = drawn(Found(made, "decisions.v1", 3, 12))
    assert "explicit 0.910 in frame 17" in text
    assert "on trial, explicit@2: explicit 0.120 in frame 3" in text
    assert "on trial, explicit@3: TRIAL_TIMEOUT" in text


def test_the_bar_fills_to_the_score_and_marks_the_threshold() -> None:
    assert why.bar(0.5, 0.75, 8).plain == "████──┃─"
    assert why.bar(1.0, 0.75, 8).plain == "██████┃█"
    assert why.bar(None, 0.0, 8).plain == "┃───────"
    assert why.bar(0.75, 0.75, 8).spans[0].style == "red"
    assert why.bar(0.7, 0.75, 8).spans[0].style == "green"


def test_the_waterfall_splits_the_time_by_hop() -> None:
    hashing, prompt = waterfall(decision())
    assert {hop: prompt.nanos(hop) / MS for hop in HOPS} == {
        "queue": 2,
        "batch": 2,
        "rpc": 3,
        "inference": 10,
        "join": 3,
    }
    assert hashing.nanos("join") == 11 * MS, "the wait for the slower stage counts as join"
    assert sum(span.nanos for span in prompt.spans) == total_nanos(decision())
    line = why.fall(prompt, 20 * MS, 20).plain
    assert line == "░░▒▒▓▓██████████▓···"


def test_a_stage_that_made_no_rpc_has_no_rpc_time() -> None:
    skipped = decision()
    del skipped.signals[1:]
    timings = skipped.signals[0].signal.timings
    timings.Clear()
    timings.received_unix_nano, timings.produced_unix_nano = T0 + 2 * MS, T0 + 3 * MS
    (stage,) = waterfall(skipped)
    assert [(span.hop, span.nanos / MS) for span in stage.spans] == [("queue", 2), ("batch", 1), ("join", 17)]


def test_clocks_that_disagree_never_make_negative_time() -> None:
    skewed = decision()
    skewed.signals[1].signal.timings.received_unix_nano = T0 - 5 * MS
    for stage in waterfall(skewed):
        assert all(span.end > span.start >= 0 for span in stage.spans)


def test_a_hold_that_was_scanned_again_is_superseded() -> None:
    first, last = held(1, rescanned=True), decision()
    last.attempt = 2
    decisions = [last, first]
    assert verdict.effective(decisions) is last
    assert verdict.is_settled(decisions)
    assert not verdict.is_settled([first])
    assert verdict.is_settled([first, held(2, rescanned=False)])
    assert not verdict.is_settled([])
    assert "2 attempts, 2 decisions" in drawn(*(Found(one, "decisions.v1", 0, 0) for one in decisions))
    assert "held, and will be scanned again" in drawn(Found(first, "decisions.v1", 0, 0))


def test_a_late_signal_may_escalate_and_never_lower() -> None:
    late = decision_pb2.Decision(
        decision_id="a-1",
        kind=decision_pb2.DECISION_KIND_AMENDMENT,
        generation_id="gen-1",
        attempt=1,
        outcome=decision_pb2.OUTCOME_REVIEW,
        rule_id="near-miss",
    )
    assert verdict.effective([decision(), late]).outcome == decision_pb2.OUTCOME_BLOCK  # type: ignore[union-attr]
    assert "1 late signal judged alone" in drawn(
        Found(decision(), "decisions.v1", 0, 0), Found(late, "decisions.v1", 0, 1)
    )


def test_a_picture_that_a_bank_listed_later_is_explained() -> None:
    late = signal("perceptual_hashing.retroactive", received=0)
    late.caused_by.topic, late.caused_by.offset = "bank_entries.v1", 7
    item = late.items.add(item_id="output/0", status=signal_pb2.ITEM_STATUS_OK)
    item.matches.add(bank="known", entry_id="e-1", distance=3, hash_type="pdq", category="stand-in", variant="original")
    amendment = decision_pb2.Decision(
        decision_id="a-1",
        kind=decision_pb2.DECISION_KIND_AMENDMENT,
        generation_id="gen-1",
        attempt=1,
        outcome=decision_pb2.OUTCOME_BLOCK_AND_REPORT,
        rule_id="known-hash",
        generation_record=generation_pb2.RecordCoordinates(topic="generations.v1", partition=3, offset=41),
        decided_unix_nano=T0 + 20 * MS,
    )
    amendment.signals.add(signal=late, log_unix_nano=T0 + 18 * MS)
    shown = drawn(Found(decision(), "decisions.v1", 0, 0), Found(amendment, "decisions.v1", 0, 1))
    assert "Late signal  BLOCK_AND_REPORT  known-hash" in shown
    assert "a bank listed it later (bank_entries.v1/0/7)" in shown
    assert "known/e-1 pdq distance 3, original, stand-in" in shown
    assert "20.0 ms from when the late signal was begun" in shown, "not since 1970"
    assert "bank's change" in shown


def test_a_repeat_is_no_conflict_and_a_difference_is() -> None:
    different = decision()
    different.outcome = decision_pb2.OUTCOME_ALLOW
    assert verdict.conflicts([decision(), decision()]) == []
    assert verdict.conflicts([decision(), different]) == [(1, DIGEST)]
    assert "Conflict: attempt 1" in drawn(
        Found(decision(), "decisions.v1", 0, 0), Found(different, "decisions.v1", 0, 1)
    )
    assert "decision (repeat 1)" in drawn(
        Found(decision(), "decisions.v1", 0, 0), Found(decision(), "decisions.v1", 0, 1)
    )


def test_json_holds_the_same_as_plain_data() -> None:
    document = json.loads(json.dumps(explain("gen-1", [Found(decision(), "decisions.v1", 3, 12)])))
    assert document["outcome"] == "BLOCK"
    assert document["rule_id"] == "attempt-in-prompt"
    assert document["policy"] == {"name": "default", "digest": DIGEST}
    assert document["settled"] is True
    (one,) = document["decisions"]
    assert one["records"] == [{"topic": "decisions.v1", "partition": 3, "offset": 12}]
    assert one["waterfall_ms"]["prompt_scoring"]["inference"] == 10.0
    assert one["comparisons"][0]["reached"] is True
    assert explain("absent", [])["outcome"] is None


def test_text_from_a_record_is_never_taken_for_markup() -> None:
    odd = decision()
    odd.signals[0].signal.items[0].reason = "[red]X[/red]"
    assert "[red]X[/red]" in drawn(Found(odd, "decisions.v1", 0, 0))


def test_a_match_is_named_by_bank_entry_distance_and_variant_and_says_when_it_is_held() -> None:
    from seawall.cli.why import _findings

    item = signal_pb2.ItemResult(item_id="output/0", status=signal_pb2.ITEM_STATUS_OK)
    item.matches.add(bank="known", entry_id="e1", hash_type="pdq", distance=12, variant="rot90", category="stand-in")
    item.held_matches.add(
        bank="known",
        entry_id="e2",
        hash_type="pdq",
        distance=20,
        disposition=signal_pb2.MATCH_DISPOSITION_SUPPRESSED,
        contested_by="benign/b",
    )
    item.held_matches.add(
        bank="films",
        entry_id="f",
        hash_type="vpdq",
        distance=4,
        variant="mirror/frame-37",
        query_percent=3,
        listed_percent=41,
        disposition=signal_pb2.MATCH_DISPOSITION_PARTIAL,
    )
    item.held_matches.add(bank="licensed", entry_id="p", hash_type="photodna", distance=512)
    assert _findings(item).plain.splitlines() == [
        "known/e1 pdq distance 12, rot90, stand-in",
        "known/e2 pdq distance 20, original, suppressed, contested by benign/b",
        "films/f vpdq distance 4, mirror/frame-37, 3 % of its frames, 41 % of the listed video's, partial",
        "licensed/p photodna distance 512, original",
    ]
