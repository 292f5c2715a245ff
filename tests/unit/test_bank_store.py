from __future__ import annotations

from pathlib import Path

import pytest

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal, Poison
from seawall.perceptual_hashing import bank_changes
from seawall.perceptual_hashing.bank_store import FILE, Applied, BankStore
from tests.support.bank_entries import card, entry, random_words, removed

WORDS = random_words(40)


def changes(count: int = 20) -> list[bank_pb2.BankChange]:
    return [card(), *(entry(f"e{k}", WORDS[k]) for k in range(count))]


def test_changes_are_kept_once_and_applying_them_again_changes_nothing(tmp_path: Path) -> None:
    store = BankStore(tmp_path)
    batch = changes()
    assert store.apply(batch) == Applied(21, 0)
    before = store.state()
    assert store.apply(batch) == Applied(0, 21)
    assert store.state() == before
    assert before.sequence == 21
    assert [one.entry_id for one in store.entries("own")] == sorted(f"e{k}" for k in range(20))
    assert store.card("own") == card().bank
    assert store.card("other") is None
    assert store.entry("own", "e3") is not None
    assert store.entry("own", "nobody") is None


def test_the_last_change_of_an_entry_holds_and_is_what_readers_are_told(tmp_path: Path) -> None:
    store = BankStore(tmp_path)
    store.apply(changes(3))
    seen = store.state().sequence
    store.apply([entry("e1", WORDS[30]), entry("e1", WORDS[31]), removed("e2")])
    assert [(change.entry.entry_id, change.entry.state) for _, change in store.since(seen)] == [
        ("e1", bank_pb2.ENTRY_STATE_LISTED),
        ("e2", bank_pb2.ENTRY_STATE_REMOVED),
    ]
    kept = store.entry("own", "e1")
    assert kept is not None
    assert kept.hashes[0].value == WORDS[31].tobytes()
    assert store.state().banks["own"].listed == 2
    assert dict(store.banks()["own"].states) == {bank_pb2.ENTRY_STATE_LISTED: 2, bank_pb2.ENTRY_STATE_REMOVED: 1}


def test_the_digest_is_of_what_is_listed_however_it_came(tmp_path: Path) -> None:
    one, other = BankStore(tmp_path / "one"), BankStore(tmp_path / "other")
    batch = changes()
    one.apply(batch)
    other.apply([entry("gone", WORDS[30]), *reversed(batch)])
    assert one.digests() != other.digests()
    other.apply([removed("gone")])
    assert one.digests() == other.digests()
    # Where a change comes from is no part of it; its state is.
    again = entry("e1", WORDS[1])
    again.entry.provenance.origin = "elsewhere"
    other.apply([again])
    assert one.digests() == other.digests()
    other.apply([entry("e1", WORDS[1], state=bank_pb2.ENTRY_STATE_DISABLED)])
    assert one.digests() != other.digests()
    one.verify()
    other.verify()


def test_changes_checkpoint_and_position_are_kept_together_or_not_at_all(tmp_path: Path) -> None:
    store = BankStore(tmp_path)
    store.apply(changes(2), checkpoint=("exchange", "page 1"), positions={("bank_entries.v1", 0): 7})
    before = store.state()
    bad = entry("bad", WORDS[5])
    bad.entry.hashes[0].value = b"short"
    with pytest.raises(Poison, match="32 bytes"):
        store.apply(
            [entry("new", WORDS[4]), bad], checkpoint=("exchange", "page 2"), positions={("bank_entries.v1", 0): 9}
        )
    assert store.state() == before
    assert store.checkpoint("exchange") == "page 1"
    assert store.checkpoint("another") is None
    assert store.positions("bank_entries.v1") == {0: 7}


def test_what_was_made_here_is_to_be_published_and_what_was_read_is_not(tmp_path: Path) -> None:
    store = BankStore(tmp_path)
    store.apply([entry("read", WORDS[0])], positions={("bank_entries.v1", 0): 1})
    store.apply([card(), entry("made", WORDS[1])])
    rows = store.unpublished()
    assert [key for _, key, _ in rows] == [b"own", b"own/made"]
    assert bank_pb2.BankChange.FromString(rows[1][2]).entry.entry_id == "made"
    store.published(rows[0][0])
    assert [key for _, key, _ in store.unpublished()] == [b"own/made"]
    # Read back, it is not made here any more.
    store.apply([bank_pb2.BankChange.FromString(rows[1][2])], positions={("bank_entries.v1", 0): 3})
    store.published(rows[1][0])
    assert store.unpublished() == []


def test_two_processes_views_of_one_folder(tmp_path: Path) -> None:
    one, other = BankStore(tmp_path), BankStore(tmp_path)
    one.apply(changes(2))
    assert other.digests() == one.digests()
    other.apply([entry("e9", WORDS[9])])
    assert one.state().banks["own"].listed == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (bank_pb2.BankChange(), "change"),
        (entry("a b", WORDS[0]), "entry_id"),
        (entry("a", WORDS[0], bank="Own"), "entry.bank"),
        (entry("a"), "hashes"),
        (entry("a", pdq=bytes(31)), "32 bytes"),
        (entry("a", md5=bytes(20)), "16 bytes"),
        (entry("a", pdq_512=bytes(32)), "hash types are"),
        (entry("a", vpdq=bytes(33)), "32 bytes a frame"),
        (entry("a", vpdq=b""), "1 to 4096 frames"),
        (entry("a", vpdq=bytes(32 * 4097)), "1 to 4096 frames"),
        (entry("a", photodna=bytes(1025)), "1 to 1024"),
        (bank_changes.listed("own", "a", {f"hash_{k}": b"1" for k in range(33)}, origin="test"), "more than 32"),
        (entry("a", WORDS[0], state=bank_pb2.ENTRY_STATE_UNSPECIFIED), "state"),
        (entry("a", WORDS[0], state=99), "state"),  # type: ignore[arg-type]
        (card(radius=32), "at most 31"),
        (card(pipeline="256"), "pipeline"),
        (card(signal_types=["md5"]), "bank.signal_types"),
        (card(min_listed_percent=101), "at most 100"),
        (card("no/name"), "bank.name"),
    ],
)
def test_a_change_that_no_store_may_take_is_refused_by_field(change: bank_pb2.BankChange, field: str) -> None:
    with pytest.raises(Poison, match="BAD_BANK_CHANGE") as refused:
        bank_changes.check(change)
    assert field in refused.value.detail


def test_the_key_is_the_bank_and_the_entry() -> None:
    assert bank_changes.key(card("own")) == b"own"
    assert bank_changes.key(entry("e1", WORDS[0])) == b"own/e1"


def test_a_file_that_is_no_store_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"This is not a database, though it is long enough to be mistaken for one." * 100)
    with pytest.raises(Fatal, match="BANK_STORE_CORRUPT") as refused:
        BankStore(tmp_path)
    assert "move the store's folder away" in refused.value.detail


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    import sqlite3

    BankStore(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Fatal, match="BANK_STORE_VERSION"):
        BankStore(tmp_path)


def test_sums_that_are_not_those_of_the_entries_are_found(tmp_path: Path) -> None:
    import sqlite3

    store = BankStore(tmp_path)
    store.apply(changes(3))
    store.close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("DELETE FROM entries WHERE entry_id = 'e1'")
    connection.close()
    with pytest.raises(Fatal, match="BANK_STORE_CORRUPT"):
        BankStore(tmp_path).verify()
