"""The console's pure parts: pictures, words, what a room's endpoint says, how long something took."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.samples import Sample

from seawall.api.signal.v1 import signal_pb2
from seawall.console import drawing, explaining, search
from seawall.console.problems import duration
from seawall.console.records import DecisionRecords, Place
from seawall.console.rendering import PAGES, STATIC, environment
from seawall.console.shapes import ComparisonView, RoomNow, SpanView, StageView
from seawall.console.watch import AskedRooms, room_of
from seawall.console.words import in_words
from seawall.core.errors import Fatal, Retryable
from seawall.core.policy import bundle
from seawall.ledger.instants import instant
from seawall.ledger.queries import Cursor
from seawall.local.explain import Found
from seawall.oncall.rooms import Answer, Endpoint
from seawall.runtime.broker import Output, TopicSpec
from seawall.runtime.memory import InMemoryBroker
from tests.support.console import recent
from tests.support.ledger_rows import BLOCK, HOLD
from tests.support.records import DECISIONS, OVERRIDES

# ---- rooms -----------------------------------------------------------------------------------------------------------


def answered(document: dict[str, Any], *samples: tuple[str, float, dict[str, str]]) -> Answer:
    return Answer(
        Endpoint("relay", "host:1"),
        document={"instance": "relay-0", **document},
        samples=[Sample(name, labels, value) for name, value, labels in samples],
    )


def test_a_rooms_answer_is_understood() -> None:
    lag, watermark = "moderation_stream_lag_seconds", "moderation_stream_watermark_age_seconds"
    topics = [{"messaging_destination_name": name} for name in "ab"]
    late = answered(
        {"ready": False, "why": "FUSE_TRIPPED: 20 in a row"},
        (lag, 3.5, topics[0]),
        (lag, 0.5, topics[1]),
        (watermark, 1.25, {}),
        ("moderation_stream_halted_ratio", 1, {"error_type": "FUSE_TRIPPED"}),
    )
    assert room_of(late) == RoomNow(
        room="relay",
        instance="relay-0",
        ready=False,
        why="FUSE_TRIPPED: 20 in a row",
        lag_seconds=3.5,
        watermark_seconds=1.25,
        halted="FUSE_TRIPPED",
    )
    assert room_of(answered({"ready": True})) == RoomNow(room="relay", instance="relay-0", ready=True)
    fast = answered({"ready": True})
    # What an answer's own time may explain is no difference of clocks.
    fast.ahead, fast.took = 9.0, 14.2
    assert room_of(fast).clock_ahead_seconds is None
    fast.took = 0.2
    assert room_of(fast).clock_ahead_seconds == 9.0
    gone = Answer(Endpoint("relay", "host:1"), fault="refused: it is gone")
    assert room_of(gone) == RoomNow(room="relay", ready=None, why="refused: it is gone")


async def test_rooms_of_this_machine_and_named_ones_are_asked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (tmp_path / "aggregator.http").write_text(f"127.0.0.1:{port}\n")
    (tmp_path / "ledger.http").write_text(f"127.0.0.1:{port}\n")
    # What is named counts: each of its addresses is an instance.
    rooms = AskedRooms({"ledger": [f"127.0.0.1:{port}", "no-such-host.invalid:1"]}, tmp_path, timeout=1.0)
    said = [(room.room, room.ready) for room in await rooms.look()]
    assert said == [("aggregator", None), ("ledger", None), ("ledger", None)]


# ---- records ---------------------------------------------------------------------------------------------------------


async def test_a_record_is_read_by_its_coordinates_again_and_again() -> None:
    broker = InMemoryBroker()
    admin = broker.admin()
    await admin.start()
    await admin.create([TopicSpec(DECISIONS, 2, {})], 1)
    producer = broker.producer()
    await producer.start()
    made = [recent(n, ago=1) for n in range(6)]
    await producer.send([Output(DECISIONS, n % 2, b"k", one.SerializeToString()) for n, one in enumerate(made)])
    await producer.send([Output(DECISIONS, 0, b"k", b"\xff")])
    records = DecisionRecords(broker, DECISIONS, OVERRIDES, record_seconds=2.0, scan_seconds=2.0)

    async def found(*places: tuple[int, int]) -> list[str]:
        return [one.decision.generation_id for one in await records.at([Place(*place) for place in places])]

    assert await found((0, 2), (1, 0)) == ["g-4", "g-1"]
    assert await found((0, 0)) == ["g-0"]
    # Beyond the end, no such partition, no decision.
    assert await found((1, 3), (7, 0), (0, 3)) == []
    broker.unavailable = True
    with pytest.raises(Retryable, match="RECORDS_UNAVAILABLE"):
        await found((0, 0))
    broker.unavailable = False
    assert await found((0, 1)) == ["g-2"]
    await records.close()


# ---- words and views -------------------------------------------------------------------------------------------------


def test_a_rule_is_told_in_words() -> None:
    reached = ComparisonView(label="prompt_scoring.x", score=0.91, threshold=0.55, reached=True)
    below = ComparisonView(label="classification.y", score=0.1, threshold=0.8, reached=False)
    said = in_words(
        "BLOCK", "attempt-in-prompt", "ATTEMPT", comparisons=[reached, below], matches=[], missing=[], nexus=["attempt"]
    )
    assert said == (
        "Blocked, because the policy's rule “attempt-in-prompt” held (attempt). "
        "It rests on prompt_scoring.x 0.91 ≥ 0.55. What it concerns: attempt."
    )
    held = in_words(
        "HOLD", "engine/incomplete-evidence", "", comparisons=[], matches=[], missing=["classification"], nexus=[]
    )
    assert held.endswith("No signal came from classification.")


def test_every_rule_of_the_engine_has_words() -> None:
    rules = [value for name, value in vars(bundle).items() if name.startswith("RULE_")]
    assert len(rules) >= 7
    for rule in rules:
        said = in_words("REVIEW", rule, "", comparisons=[], matches=[], missing=[], nexus=[])
        assert "of the engine's rule" not in said, rule


def test_several_attempts_come_latest_first_and_one_counts() -> None:
    first = recent(1, ago=60, outcome=HOLD)
    second = recent(1, ago=30, outcome=BLOCK, attempt=2)
    records = [Found(one, DECISIONS, 0, offset) for offset, one in enumerate((first, second, second))]
    told = explaining.explained("g-1", records, [])
    assert told is not None
    assert [(one.attempt, one.outcome) for one in told.decisions] == [(2, "BLOCK"), (1, "HOLD")]
    assert (told.outcome, told.settled, told.counts) == ("BLOCK", True, second.decision_id)
    assert [hop.what for hop in told.decisions[0].hops][-2:] == ["decision", "decision (repeat 1)"]
    assert explaining.explained("g-1", [], []) is None


def test_what_does_not_count_is_told_as_such() -> None:
    made = recent(1, ago=1)
    held = made.signals[1].signal.items[0].held_matches.add(bank="demo", entry_id="e", hash_type="pdq", distance=30)
    held.disposition = signal_pb2.MATCH_DISPOSITION_SUPPRESSED
    (match,) = explaining.of_record(made, []).signals[1].items[0].matches
    assert match.held == "suppressed"
    assert "e" not in explaining.of_record(made, []).words.split()


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_sparkline_is_interrupted_where_nothing_was_measured() -> None:
    drawn = drawing.sparkline([1.0, None, 3.0, 4.0], "p99")
    assert drawn.count("<polyline") == 2
    assert drawing.sparkline([], "nothing").count("<polyline") == 0
    assert 'class="limit"' in drawing.sparkline([5.0, 9.0], "p99", limit=8.0)
    assert 'class="limit"' not in drawing.sparkline([5.0, 9.0], "p99", limit=900.0)


def test_pictures_say_what_they_show_and_escape_it() -> None:
    stages = [StageView(stage='<b>"x"', spans=[SpanView(hop="rpc", start_ms=1.0, end_ms=3.5)])]
    drawn = drawing.waterfall(stages, 5.0)
    assert "<b>" not in drawn and '"x"' not in drawn
    assert "rpc 2.5 ms" in drawn
    assert re.search(r'style=|<script|on\w+="', drawn) is None


@pytest.mark.parametrize("total", [0.0, 0.4, 3.0, 47.0, 999.0, 1_000.0, 123_456.0, 5e9])
def test_a_waterfalls_axis_has_few_round_ticks(total: float) -> None:
    ticks = drawing._ticks(total or 1.0)
    assert 2 <= len(ticks) <= drawing._TICKS
    assert ticks[-1] <= (total or 1.0)


# ---- small things ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0, "0 ms"), (0.85, "850 ms"), (4.2, "4.2 s"), (42, "42 s"), (600, "10 min"), (3_900, "1 h 5 min"),
     (7_200, "2 h"), (180_000, "2 d 2 h"), (90 * 86_400, "90 d")],
)  # fmt: skip
def test_durations_are_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("given", ["yesterday", "1w", "9999999m", "2300-01-01", "0001-01-01", "2026-13-01", "", "1e9s"])
def test_what_is_no_instant_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(Fatal) as error:
        instant(given)
    assert error.value.reason == "BAD_TIME"
    assert not given or given not in error.value.detail


def test_instants_are_utc_where_they_name_no_zone() -> None:
    assert instant("2026-01-31T12:00:00") == instant("2026-01-31T13:00:00+01:00") == 1_769_860_800_000_000_000


def test_cursors_that_are_none_mean_the_first_page() -> None:
    told = search.told_cursor(Cursor(5, "a" * 32))
    assert told is not None
    assert search.cursor_of(told) == (5, "a" * 32)
    for text in ("", "x", f"99999999999999999999.{'a' * 32}", f"9999999999999999999.{'a' * 32}", "5.zz"):
        assert search.cursor_of(text) is None


def test_a_page_of_everything_vendored_says_whose_it_is() -> None:
    assert "Zero-Clause BSD" in (STATIC / "htmx-LICENSE.txt").read_text("utf-8")
    assert {key for _, _, key, _ in PAGES}.isdisjoint({"g", "j", "k", "t", "?", "/"})
    for name in environment().list_templates():
        environment().get_template(name)


def test_outcomes_have_a_colour_each() -> None:
    sheet = (STATIC / "console.css").read_text("utf-8")
    for name in ("HOLD", "ALLOW", "REVIEW", "BLOCK", "BLOCK_AND_REPORT"):
        assert f".badge.o-{name} " in sheet and f".mix .o-{name} " in sheet
