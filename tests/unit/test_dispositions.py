"""What becomes of a match: negative banks, quarantine, expiry, disabled entries; and the flood that quarantines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import banks, live_banks
from seawall.perceptual_hashing.bank_entries import Entry
from seawall.perceptual_hashing.bank_index import BankIndex
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.flood import FloodSettings, FloodWatch
from seawall.perceptual_hashing.hamming import Words
from seawall.perceptual_hashing.hash_types import NEAR_EXACT
from seawall.perceptual_hashing.live_banks import LiveBanks
from seawall.perceptual_hashing.matcher import COUNTS, QUARANTINED, SUPPRESSED, Match, Matcher, contested
from seawall.perceptual_hashing.settings import BankSettings
from tests.support.bank_entries import card, entry, flipped, random_words, removed
from tests.support.waiting import wait_for

WORD = random_words(1)[0]


def at(distance: int, begin: int = 0) -> Words:
    return flipped(WORD, list(range(begin, begin + distance)))


def matcher_of(tmp_path: Path, *changes: bank_pb2.BankChange, now: int = 1_000) -> Matcher:
    store = BankStore(tmp_path)
    store.apply([card("known"), card("benign", negative=True), *changes])
    return Matcher(snapshot=BankIndex(store).snapshot, now=lambda: now)


def asked(matcher: Matcher, word: Words) -> list[tuple[str, int, int, str]]:
    found = matcher.match(word.view(np.uint8)[None], "512")
    return [(match.entry_id, match.distance, int(match.disposition), match.contested_by) for match in found]


# The listed hash is at 0, the benign one at 30 bits from it; what is asked for lies in between.


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (30, ("listed", 30, SUPPRESSED, "benign/b")),
        (20, ("listed", 20, SUPPRESSED, "benign/b")),
        # As near to the one as to the other: doubt does not suppress.
        (15, ("listed", 15, COUNTS, "")),
        (10, ("listed", 10, COUNTS, "")),
        (0, ("listed", 0, COUNTS, "")),
    ],
)
def test_a_nearer_benign_entry_suppresses_a_loose_match_and_is_named(
    tmp_path: Path, distance: int, expected: tuple[str, int, int, str]
) -> None:
    matcher = matcher_of(tmp_path, entry("listed", WORD, bank="known"), entry("b", at(30), bank="benign"))
    assert asked(matcher, at(distance)) == [expected]


def test_a_near_exact_match_counts_whatever_is_benign_and_says_that_it_is_contested(tmp_path: Path) -> None:
    matcher = matcher_of(tmp_path, entry("listed", WORD, bank="known"), entry("b", at(NEAR_EXACT), bank="benign"))
    assert asked(matcher, at(NEAR_EXACT)) == [("listed", NEAR_EXACT, COUNTS, "benign/b")]
    assert asked(matcher, at(NEAR_EXACT + 1)) == [("listed", NEAR_EXACT + 1, SUPPRESSED, "benign/b")]


def test_a_negative_bank_alone_is_no_match_and_its_digests_speak_against_loose_ones_only(tmp_path: Path) -> None:
    digest = bytes(range(32))
    matcher = matcher_of(
        tmp_path,
        entry("listed", WORD, bank="known", sha256=digest),
        entry("b", at(128, 100), bank="benign", sha256=digest),
    )
    assert asked(matcher, at(128, 100)) == []
    (exact,) = matcher.match_digest("sha256", digest)
    assert (exact.entry_id, exact.disposition) == ("listed", COUNTS)
    benign = matcher.benign_digest("sha256", digest)
    assert benign is not None
    assert contested(exact, benign).disposition == COUNTS
    assert contested(exact, benign).contested_by == "benign/b"
    (loose,) = matcher.match(at(20).view(np.uint8)[None], "512")
    assert contested(loose, benign).disposition == SUPPRESSED


def test_a_quarantined_entry_is_still_matched_and_only_loose_matches_are_held(tmp_path: Path) -> None:
    held = bank_pb2.ENTRY_STATE_QUARANTINED
    matcher = matcher_of(tmp_path, entry("q", WORD, bank="known", state=held, md5=bytes(16)))
    assert asked(matcher, at(20)) == [("q", 20, QUARANTINED, "")]
    assert asked(matcher, at(NEAR_EXACT)) == [("q", NEAR_EXACT, COUNTS, "")]
    assert [match.disposition for match in matcher.match_digest("md5", bytes(16))] == [COUNTS]


def test_disabled_removed_and_expired_entries_match_nothing(tmp_path: Path) -> None:
    changes = [
        entry("disabled", WORD, bank="known", state=bank_pb2.ENTRY_STATE_DISABLED),
        entry("removed", WORD, bank="known"),
        entry("expired", WORD, bank="known", expires_unix_nano=999),
        entry("holds", WORD, bank="known", expires_unix_nano=1_001),
        removed("removed", bank="known"),
    ]
    assert asked(matcher_of(tmp_path, *changes), WORD) == [("holds", 0, COUNTS, "")]
    later = Matcher(snapshot=BankIndex(BankStore(tmp_path)).snapshot, now=lambda: 1_001)
    assert asked(later, WORD) == []


def test_a_removed_or_expired_bank_matches_nothing_and_a_match_tells_what_the_bank_says(tmp_path: Path) -> None:
    matcher = matcher_of(
        tmp_path, entry("a", WORD, bank="known", category="of its own"), entry("b", WORD, bank="known")
    )
    found = {
        match.entry_id: (match.category, match.bank.action) for match in matcher.match(WORD.view(np.uint8)[None], "512")
    }
    assert found == {"a": ("of its own", "report"), "b": ("category of known", "report")}
    store = BankStore(tmp_path)
    gone, expired = card("known"), card("known")
    gone.bank.state = bank_pb2.BANK_STATE_REMOVED
    expired.bank.expires_unix_nano = 1_000
    for change in (gone, expired):
        store.apply([change])
        after = Matcher(snapshot=BankIndex(store).snapshot, now=lambda: 1_000)
        assert asked(after, WORD) == []
        assert after.banks["known"].matches_nothing(1_000)


def test_entries_of_a_folders_bank_can_be_disabled_and_enabled(tmp_path: Path) -> None:
    described = {
        "name": "folder",
        "source": "benign stand-ins",
        "version": "1",
        "category": "stand-in",
        "pipeline": "512",
        "licence": "CC0-1.0",
    }
    bank = banks.write(tmp_path / "folder", described, [Entry("a", "pdq", WORD.tobytes())])
    store = BankStore(tmp_path / "store")
    index = BankIndex(store)

    def state(wanted: bank_pb2.EntryState.ValueType) -> list[tuple[str, int, int, str]]:
        live_banks.set_state(store, "folder", "a", wanted)
        index.refresh()
        return asked(Matcher([bank], index.snapshot), at(20))

    assert state(bank_pb2.ENTRY_STATE_DISABLED) == []
    assert state(bank_pb2.ENTRY_STATE_QUARANTINED) == [("a", 20, QUARANTINED, "")]
    assert state(bank_pb2.ENTRY_STATE_LISTED) == [("a", 20, COUNTS, "")]
    assert index.snapshot.overrides == {}


# ---- floods ----------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def content(number: int) -> bytes:
    return number.to_bytes(32, "big")[::-1]


def test_many_different_pictures_at_once_are_a_flood_and_one_picture_many_times_is_none() -> None:
    watch = FloodWatch(FloodSettings(minimum=5), Clock())
    assert not any(watch.observe("known", "e", content(1)) for _ in range(1_000))
    assert [watch.observe("known", "e", content(k)) for k in range(1, 7)] == [False] * 5 + [True]
    assert watch.flooding("known", "e")
    assert not watch.flooding("known", "other")
    # Said once.
    assert not watch.observe("known", "e", content(99))
    watch.release("known", "e")
    assert not watch.flooding("known", "e")


def test_an_entry_that_has_always_matched_much_may() -> None:
    clock = Clock()
    watch = FloodWatch(FloodSettings(minimum=5, factor=3, window_seconds=60), clock)
    for window in range(30):
        clock.now = window * 60.0
        assert not any(watch.observe("known", "e", content(k)) for k in range(5))
    clock.now = 30 * 60.0
    assert [watch.observe("known", "e", content(k)) for k in range(20)].index(True) == 14


def settings_of(tmp_path: Path, **more: object) -> BankSettings:
    return BankSettings.model_validate(
        {"folder": tmp_path / "banks", "store": tmp_path / "store", "poll_seconds": 0.02, **more}
    )


def one_match(listed: LiveBanks, word: Words) -> Match:
    (match,) = listed.matcher.match(word.view(np.uint8)[None], "512")
    return match


def test_a_flood_is_held_at_once_and_for_the_other_replicas_until_a_person_releases_it(tmp_path: Path) -> None:
    store = BankStore(tmp_path / "store")
    store.apply([card("known"), entry("e", WORD, bank="known")])
    listed = LiveBanks(settings_of(tmp_path, flood=FloodSettings(minimum=3)))
    held = [listed.observed(one_match(listed, at(20)), content(k)).disposition for k in range(6)]
    assert held == [COUNTS] * 3 + [QUARANTINED] * 3
    assert listed.observed(one_match(listed, at(2)), content(9)).disposition == COUNTS
    listed.start()
    try:
        wait_for(lambda: one_match(listed, at(20)).disposition == QUARANTINED)
        kept = store.entry("known", "e")
        assert kept is not None
        assert (kept.state, kept.provenance.origin) == (bank_pb2.ENTRY_STATE_QUARANTINED, "flood")
        live_banks.set_state(store, "known", "e", bank_pb2.ENTRY_STATE_LISTED)
        wait_for(lambda: listed.observed(one_match(listed, at(20)), content(1)).disposition == COUNTS)
    finally:
        listed.stop()


# ---- the banks of a service ------------------------------------------------------------------------------------------


def test_without_what_is_required_nothing_is_scored_and_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="NO_BANKS"):
        LiveBanks(settings_of(tmp_path)).start()
    with pytest.raises(Fatal, match="BANK_MISSING"):
        LiveBanks(settings_of(tmp_path, required=["known"])).start()
    store = BankStore(tmp_path / "store")
    store.apply([card("known")])
    with pytest.raises(Fatal, match="EMPTY_BANK"):
        LiveBanks(settings_of(tmp_path, required=["known"])).start()
    store.apply([entry("e", WORD, bank="known")])
    listed = LiveBanks(settings_of(tmp_path, required=["known"]))
    listed.start()
    try:
        assert listed.unready() == ""
        store.apply([removed("e", bank="known")])
        wait_for(lambda: listed.unready().startswith("EMPTY_BANK"))
        store.apply([entry("e2", WORD, bank="known")])
        wait_for(lambda: listed.unready() == "")
        assert one_match(listed, WORD).entry_id == "e2"
    finally:
        listed.stop()


def test_a_store_that_appears_later_is_taken_up(tmp_path: Path) -> None:
    listed = LiveBanks(settings_of(tmp_path, allow_none=True))
    listed.start()
    try:
        BankStore(tmp_path / "store").apply([card("known"), entry("e", WORD, bank="known")])
        wait_for(lambda: "known" in listed.matcher.banks)
        assert one_match(listed, WORD).entry_id == "e"
    finally:
        listed.stop()


def test_a_bank_that_is_a_folder_and_in_the_store_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "banks" / "known"
    described = {
        "name": "known",
        "source": "s",
        "version": "1",
        "category": "c",
        "pipeline": "512",
        "licence": "CC0-1.0",
    }
    banks.write(folder, described, [Entry("a", "md5", bytes(16))])
    assert yaml.safe_load((folder / "bank.yaml").read_text())["name"] == "known"
    BankStore(tmp_path / "store").apply([card("known"), entry("e", WORD, bank="known")])
    with pytest.raises(Fatal, match="BANK_TWICE"):
        LiveBanks(settings_of(tmp_path))
