"""Rollouts: canaries, shadows, hot reload on the in-memory broker, replay of what was decided, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from seawall.aggregator.replay.decisions import remake, shadow_tallies
from seawall.aggregator.replay.records import Export, Stretch, from_file, from_topics
from seawall.aggregator.replay.run import Replay
from seawall.aggregator.replay.tally import Said
from seawall.api.decision.v1 import decision_pb2
from seawall.api.signal.v1 import signal_pb2
from seawall.core.errors import Fatal
from seawall.core.join import Position
from seawall.core.policy import Policy, Rollout
from seawall.core.policy.archive import Archive, find_bundle
from seawall.core.policy.reload import Reloader
from tests.support.records import CLASSIFICATION, PROMPT, generation, signal
from tests.support.stream import NAMES, Seen, Stream
from tests.unit.test_policy_bundle import A_HIGH, A_LOW, B, bundle, rule

ALLOW, HOLD, BLOCK = decision_pb2.OUTCOME_ALLOW, decision_pb2.OUTCOME_HOLD, decision_pb2.OUTCOME_BLOCK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two bundles: `strict` blocks what `mild` lets through."""
    bundle(tmp_path / "mild", rule("sure", A_HIGH), version="mild")
    bundle(tmp_path / "strict", rule("maybe", A_LOW), version="strict")
    return tmp_path


def rollout(folder: Path, **content: Any) -> Rollout:
    (folder / "rollout.yaml").write_text(yaml.safe_dump({"enforce": "mild", **content}))
    return Rollout.load(folder)


# ---- who judges ------------------------------------------------------------------------------------------------------


def test_a_share_is_the_same_in_every_attempt_and_keeps_whom_it_had(folder: Path) -> None:
    ids = [f"g-{n}" for n in range(2_000)]

    def chosen(percent: float) -> set[str]:
        by = rollout(folder, canary=[{"bundle": "strict", "percent": percent}])
        first = {one for one in ids if by.choose(generation(one)).policy.version == "strict"}
        assert first == {one for one in ids if by.choose(generation(one, attempt=2)).policy.version == "strict"}
        return first

    five, twenty = chosen(5), chosen(20)
    assert 60 <= len(five) <= 140
    assert 320 <= len(twenty) <= 480
    assert five < twenty
    assert chosen(0) == set()
    assert chosen(100) == set(ids)


def test_a_canary_by_tenant(folder: Path) -> None:
    by = rollout(folder, canary=[{"bundle": "strict", "tenants": ["tenant"]}])
    assert by.choose(generation()).policy.version == "strict"
    other = generation()
    other.tenant_id = "another"
    assert by.choose(other).policy.version == "mild"
    assert by.choose_by_id("g-1").policy.version == "mild"  # a record that cannot be read


async def test_a_late_signal_is_judged_by_its_tenants_bundle(folder: Path) -> None:
    """And by its tenant's rules: the tenant is what an amendment knows beside the signal."""
    own = rule("own", f'{B} && generation.tenant_id == "tenant"')
    bundle(folder / "strict", rule("maybe", A_LOW), own, version="strict")
    by = rollout(folder, canary=[{"bundle": "strict", "tenants": ["tenant"]}])
    stream = Stream(folder)
    ours, others = generation("ours"), generation("others")
    others.tenant_id = "another"
    for offset, g in enumerate((ours, others)):
        await stream.send(g)
        await stream.send_join(signal(g, PROMPT, offset=offset))
        await stream.send_join(signal(g, CLASSIFICATION, offset=offset, scores={"b": 0.9}))  # nobody waits for it
    async with stream.aggregator(Seen(), policy=folder):
        await stream.committed("aggregator", NAMES.signals, 4)
    joint, amended = (
        {d.generation_id: d for d in stream.decisions() if d.kind == kind}
        for kind in (decision_pb2.DECISION_KIND_JOINT, decision_pb2.DECISION_KIND_AMENDMENT)
    )
    assert {name: d.policy_version for name, d in joint.items()} == {"ours": "strict", "others": "mild"}
    assert list(amended) == ["ours"]
    assert (amended["ours"].policy_version, amended["ours"].rule_id, amended["ours"].tenant_id) == (
        "strict",
        "own",
        "tenant",
    )
    for record in stream.broker.records(NAMES.decisions):
        assert (await remake(stream.broker, record.value or b"", lambda digest: _loaded(by, digest))).same


def _loaded(by: Rollout, digest: str) -> Policy:
    return next(policy for policy in by.policies if policy.digest == digest)


def test_the_digest_covers_the_shadows(folder: Path) -> None:
    alone = rollout(folder).choose(generation())
    beside = rollout(folder, shadow=[{"bundle": "strict"}]).choose(generation())
    assert alone.digest == alone.policy.digest
    assert beside.policy.digest == alone.policy.digest
    assert beside.digest != alone.digest
    assert rollout(folder, disabled=["strict"]).choose(generation()).digest == alone.digest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"enforce": "none"}, "rollout.yaml line 1: enforce: there is no none"),
        ({"canary": [{"bundle": "strict"}]}, "say for whom"),
        ({"canary": [{"bundle": "strict", "percent": 101}]}, "less than or equal to 100"),
        ({"shadow": [{"bundle": "strict", "share": 5}]}, "unknown key"),
        ({"disabled": ["broken"]}, "policy.yaml"),
    ],
)
def test_rollouts_that_are_refused(folder: Path, content: dict[str, Any], said: str) -> None:
    bundle(folder / "broken", rule("r", "nonsense"))
    with pytest.raises(Fatal, match=said) as caught:
        rollout(folder, **content)
    assert caught.value.reason == "BAD_POLICY"


# ---- in the aggregator -----------------------------------------------------------------------------------------------


async def test_a_bundle_in_shadow_is_recorded_beside_and_compared(folder: Path) -> None:
    rollout(folder, shadow=[{"bundle": "strict"}])
    stream = Stream(folder)
    for n, score in enumerate((0.1, 0.5, 0.9)):
        g = generation(f"g-{n}")
        await stream.send(g)
        await stream.send_join(signal(g, PROMPT, offset=n, scores={"a": score}))
    seen = Seen()
    async with stream.aggregator(seen, policy=folder):
        await stream.written(NAMES.decisions, 3)
    decisions = {decision.generation_id: decision for decision in stream.decisions()}
    assert [decisions[f"g-{n}"].outcome for n in range(3)] == [ALLOW, ALLOW, BLOCK]
    assert [decisions[f"g-{n}"].shadows[0].outcome for n in range(3)] == [ALLOW, BLOCK, BLOCK]
    assert decisions["g-1"].policy_digest != decisions["g-1"].bundle_digest == Policy(folder / "mild").digest
    found = await shadow_tallies(stream.broker, NAMES.decisions, 0, 5)
    [tally] = found.bundles.values()
    assert tally.confusion() == {"ALLOW": {"ALLOW": 1, "BLOCK": 1}, "BLOCK": {"BLOCK": 1}}
    assert (tally.changed, tally.samples[Said(ALLOW, "engine/no-rule-matched"), Said(BLOCK, "maybe")]) == (1, ["g-1"])


async def test_a_reload_loses_nothing_and_who_opened_a_generation_decides_it(folder: Path) -> None:
    live = folder / "live"
    shutil.copytree(folder / "mild", live)
    stream = Stream(folder)
    seen = Seen()
    open_one, after = generation("open", media=1), generation("after", media=1)
    await stream.send(open_one)
    archive = Archive(folder / "archive")
    async with stream.aggregator(seen, policy=live) as aggregator:
        reloader = Reloader(live, Rollout.load(live), aggregator.use, seen.event, archive)
        await stream.send_join(signal(open_one, PROMPT, offset=0, scores={"a": 0.5}))
        await stream.committed("aggregator", NAMES.generations, 0)
        await seen.until(lambda: aggregator.stats.signals == 1)
        assert not await reloader.look()  # nothing has changed
        before = Policy(live).digest
        # A stage less is required, and more is blocked.
        bundle(live, rule("maybe", A_LOW), version="2", stages={"prompt": [PROMPT], "media": [PROMPT]})
        assert not await reloader.look()  # it must stand still first
        assert await reloader.look()
        assert not await reloader.look()
        await stream.send(after)
        await stream.send_join(signal(after, PROMPT, offset=1, scores={"a": 0.5}))
        await stream.send_join(signal(open_one, CLASSIFICATION, offset=0))
        await stream.written(NAMES.decisions, 2)
        decisions = {decision.generation_id: decision for decision in stream.decisions()}
        assert (decisions["open"].outcome, decisions["open"].policy_digest) == (ALLOW, before)
        assert len(decisions["open"].signals) == 2
        assert (decisions["after"].outcome, decisions["after"].policy_version) == (BLOCK, "2")

        # What cannot be loaded is refused; what decides goes on.
        (live / "policy.yaml").write_text("name: [")
        assert not await reloader.look()
        assert not await reloader.look()
        assert seen.named("policy_refused")[0]["reason"] == "BAD_POLICY"
        last = generation("last")
        await stream.send(last)
        await stream.send_join(signal(last, PROMPT, offset=2))
        await stream.written(NAMES.decisions, 3)

    # Each of them can be made again from the archive, bit for bit.
    for record in stream.broker.records(NAMES.decisions):
        again = await remake(stream.broker, record.value or b"", lambda digest: find_bundle(digest, archive, []))
        assert again.same


async def test_a_crash_across_a_reload_gives_one_decision_a_digest(folder: Path) -> None:
    """P2: replayed under the old policy the bytes are the same; under the new one they carry another digest."""
    stream = Stream(folder)
    for n in range(5):
        g = generation(f"g-{n}", media=n % 2)
        await stream.send(g)
        await stream.send_join(signal(g, PROMPT, offset=n, scores={"a": 0.5}))
        if n % 2:
            await stream.send_join(signal(g, CLASSIFICATION, offset=n))
    for count, policy in ((5, "mild"), (10, "strict"), (15, "mild")):
        stream.broker._groups.pop("aggregator", None)
        async with stream.aggregator(Seen(), policy=folder / policy, commit_seconds=1_000.0, recall=0):
            await stream.written(NAMES.decisions, count)
            stream.broker._groups["aggregator"].committed.clear()
        stream.broker._groups["aggregator"].committed.clear()
    records = [record.value for record in stream.broker.records(NAMES.decisions)]
    assert sorted(records[:5]) == sorted(records[10:])  # type: ignore[type-var]
    keys = {(d.generation_id, d.policy_digest) for d in stream.decisions()}
    assert len(set(records)) == len(keys) == 10


async def test_every_kind_of_decision_can_be_made_again(folder: Path) -> None:
    rollout(folder, shadow=[{"bundle": "strict"}])
    stream = Stream(folder)
    plain, late = generation("plain", media=1), generation("late")
    await stream.send(plain, late, b"\xff")
    await stream.send_join(signal(plain, PROMPT, offset=0, scores={"a": 0.5}), signal(plain, CLASSIFICATION, offset=0))
    await stream.send_join(signal(late, PROMPT, offset=1))
    quarantined = signal(late, CLASSIFICATION, offset=1)
    quarantined.items[0].held_matches.add(bank="b", disposition=signal_pb2.MATCH_DISPOSITION_QUARANTINED)
    await stream.send_join(quarantined, signal(late, "another", offset=1))
    archive = Archive(folder / "archive")
    for policy in Rollout.load(folder).policies:
        archive.keep(policy)
    async with stream.aggregator(Seen(), policy=folder):
        await stream.written(NAMES.decisions, 4)
    assert {decision.kind for decision in stream.decisions()} == {
        decision_pb2.DECISION_KIND_JOINT,
        decision_pb2.DECISION_KIND_AMENDMENT,
    }
    records = stream.broker.records(NAMES.decisions)
    for record in records:
        again = await remake(stream.broker, record.value or b"", lambda digest: find_bundle(digest, archive, []))
        assert again.same, again.decision
    # One bit of what was recorded is another decision.
    changed = next(one for one in stream.decisions() if one.generation_id == "plain")
    changed.comparisons[0].value += 0.001
    forged = changed.SerializeToString(deterministic=True)
    assert not (await remake(stream.broker, forged, lambda digest: find_bundle(digest, archive, []))).same


# ---- replay ----------------------------------------------------------------------------------------------------------


async def _traffic(folder: Path) -> Stream:
    stream = Stream(folder)
    for n, score in enumerate((0.1, 0.5, 0.9, 0.5)):
        g = generation(f"g-{n}", media=1)
        await stream.send(g)
        await stream.send_join(signal(g, PROMPT, offset=n, scores={"a": score}))
        if n != 3:  # the last stays open
            await stream.send_join(signal(g, CLASSIFICATION, offset=n))
    await stream.send(b"\xff")
    return stream


async def test_a_replay_says_what_would_change(folder: Path) -> None:
    stream = await _traffic(folder)
    run = Replay(Policy(folder / "mild"), Policy(folder / "strict"))
    with Export(folder / "export") as export:
        async for batch in from_topics(stream.broker, NAMES, Stretch(0, 1 << 50)):
            export.write(batch)
            run.feed(batch)
    tally = run.finish()
    assert (run.generations, run.signals, run.malformed, tally.total, tally.open) == (5, 7, 1, 3, 1)
    assert tally.by_outcome(0) == {"ALLOW": 2, "BLOCK": 1}
    assert tally.by_outcome(1) == {"ALLOW": 1, "BLOCK": 2}
    assert tally.confusion() == {"ALLOW": {"ALLOW": 1, "BLOCK": 1}, "BLOCK": {"BLOCK": 1}}
    [moved] = [one for one in tally.differences() if one[0].outcome != one[1].outcome]
    assert moved[2:] == (1, ["g-1"])

    # The exported file holds the same.
    again = Replay(Policy(folder / "mild"), Policy(folder / "strict"))
    for batch in from_file(folder / "export"):
        again.feed(batch)
    assert again.finish().document() == tally.document()


async def test_bundles_that_wait_for_other_stages_are_put_together(folder: Path) -> None:
    stream = await _traffic(folder)
    quick = Policy(bundle(folder / "quick", rule("sure", A_HIGH), stages={"prompt": [PROMPT], "media": []}))
    run = Replay(Policy(folder / "mild"), quick)
    async for batch in from_topics(stream.broker, NAMES, Stretch(0, 1 << 50)):
        run.feed(batch)
    assert run.finish().confusion() == {"ALLOW": {"ALLOW": 2}, "BLOCK": {"BLOCK": 1}}


async def test_signals_before_their_generations_and_of_earlier_ones(folder: Path) -> None:
    stream = await _traffic(folder)
    batches = [batch async for batch in from_topics(stream.broker, NAMES, Stretch(0, 1 << 50))]
    records = [record for batch in batches for record in batch]
    late_first = sorted(records, key=lambda record: -record[0])
    run = Replay(Policy(folder / "mild"))
    run.feed((kind, position, value) for kind, position, value in late_first if kind != 0 or position.offset != 0)
    tally = run.finish()
    # The stretch begins at the second generation: nothing is said of the first.
    assert (tally.total, tally.late[0]) == (2, {})


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"nothing", lambda data: data[:40]])
def test_exports_that_are_damaged(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "export"
    with Export(path) as export:
        export.write([(0, Position("", 0, n, 1_000_000), bytes(100)) for n in range(50)])
    assert sum(len(batch) for batch in from_file(path)) == 50
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Fatal) as caught:
        list(from_file(path))
    assert caught.value.reason == "BAD_EXPORT"
