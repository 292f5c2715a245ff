from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.api.bank.v1 import bank_pb2
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import bank_index, bank_segments
from seawall.perceptual_hashing.bank_index import MANIFEST, BankIndex
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.hamming import Words
from seawall.perceptual_hashing.matcher import Matcher
from tests.support.bank_entries import card, entry, flipped, random_words, removed

Found = set[tuple[str, int]]


def matches(index: BankIndex, word: Words) -> Found:
    found = Matcher(snapshot=index.snapshot).match(word.view(np.uint8)[None], "512")
    assert len({match.entry_id for match in found}) == len(found)
    return {(match.entry_id, match.distance) for match in found}


def brute(listed: dict[str, Words], word: Words, radius: int = 31) -> Found:
    """The oracle."""
    distances = {name: int(np.bitwise_count(value ^ word).sum()) for name, value in listed.items()}
    return {(name, distance) for name, distance in distances.items() if distance <= radius}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes millions of entries takes a few."""
    monkeypatch.setattr(bank_segments, "SCAN_BELOW", 8)
    monkeypatch.setattr(bank_index, "_PAGE", 5)
    monkeypatch.setattr(bank_index, "COMPACT_FROM", 30)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 24), st.integers(0, 7)),
        st.tuples(st.just("add many"), st.integers(0, 24), st.integers(0, 7)),
        st.tuples(st.just("remove"), st.integers(0, 24), st.just(0)),
        st.tuples(st.just("disable"), st.integers(0, 24), st.just(0)),
        st.tuples(st.just("merge"), st.booleans(), st.just(0)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
        st.tuples(st.just("search"), st.integers(0, 7), st.integers(0, 40)),
    ),
    max_size=30,
)


@pytest.mark.usefixtures("small_limits")
@settings(max_examples=60, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 2**32 - 1))
def test_any_additions_removals_and_merges_leave_what_brute_force_finds(
    steps: list[tuple[str, int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    centres = random_words(8, seed)

    def near(centre: int, spread: int = 40) -> Words:
        return flipped(centres[centre], rng.permutation(256)[: int(rng.integers(spread + 1))].tolist())

    with tempfile.TemporaryDirectory() as folder:
        store = BankStore(Path(folder))
        store.apply([card()])
        index = BankIndex(store)
        listed: dict[str, Words] = {}
        for what, first, second in steps:
            name = f"e{first}"
            if what == "add":
                listed[name] = near(second)
                store.apply([entry(name, listed[name])])
            elif what == "add many":
                added = {f"e{first}-{k}": near(second) for k in range(12)}
                listed |= added
                store.apply([entry(each, word) for each, word in added.items()])
            elif what in ("remove", "disable"):
                word = listed.pop(name, centres[0])
                state = bank_pb2.ENTRY_STATE_REMOVED if what == "remove" else bank_pb2.ENTRY_STATE_DISABLED
                store.apply([entry(name, word, state=state)])
            elif what == "merge":
                index.refresh()
                index.compact(everything=bool(first))
            elif what == "restart":
                store.close()
                store = BankStore(Path(folder))
                index = BankIndex(store)
            else:
                index.refresh()
                word = near(first, second)
                assert matches(index, word) == brute(listed, word)
        index.refresh()
        assert len(index.snapshot) == len(listed)
        for word in centres:
            assert matches(index, word) == brute(listed, word)
        for name, word in listed.items():
            assert (name, 0) in matches(index, word)
        store.verify()
        store.close()


def filled(folder: Path, count: int = 100) -> tuple[BankStore, BankIndex, Words]:
    words = random_words(count)
    store = BankStore(folder)
    store.apply([card(), *(entry(f"e{k}", words[k], sha256=bytes([k & 255]) * 32) for k in range(count))])
    return store, BankIndex(store), words


def test_a_second_process_loads_what_the_first_one_wrote_and_follows_it(tmp_path: Path) -> None:
    store, index, words = filled(tmp_path)
    index.compact(everything=True)
    other = BankIndex(BankStore(tmp_path))
    assert [part.file for part in other.snapshot.parts] == [part.file for part in index.snapshot.parts]
    assert all(part.file for part in other.snapshot.parts)
    assert matches(other, words[3]) == {("e3", 0)}
    store.apply([removed("e3"), entry("new", words[3])])
    assert other.refresh()
    assert not other.refresh()
    assert matches(other, words[3]) == {("new", 0)}
    index.refresh()
    index.compact(everything=True)
    assert other.refresh()
    assert matches(other, words[3]) == {("new", 0)}
    assert other.snapshot.parts[0].file == index.snapshot.parts[0].file
    assert len(list(tmp_path.glob("segment-*.bank"))) == 1


def test_files_that_were_not_outgrown_are_kept_and_their_dead_stay_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_index, "COMPACT_FROM", 5)
    store, index, words = filled(tmp_path)
    index.compact(everything=True)
    (first,) = index.snapshot.parts
    more = random_words(6, seed=9)
    store.apply([removed("e1"), *(entry(f"n{k}", more[k]) for k in range(6))])
    index.refresh()
    assert index.compact()
    assert index.snapshot.parts[0].file == first.file
    assert len(index.snapshot.parts) == 2
    again = BankIndex(BankStore(tmp_path))
    assert matches(again, words[1]) == set()
    assert matches(again, more[5]) == {("n5", 0)}
    assert len(again.snapshot) == 105


def damage(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("what", ["header", "middle", "end", "short", "empty", "missing", "manifest", "other store"])
def test_a_damaged_index_is_told_with_its_mend_and_built_again(tmp_path: Path, what: str) -> None:
    # Enough for a multi-index, whose tables are most of the file.
    store, index, words = filled(tmp_path / "a", 200)
    index.compact(everything=True)
    (file,) = (tmp_path / "a").glob("segment-*.bank")
    if what == "header":
        damage(file, 0.0001)
    elif what == "middle":
        content = bytearray(file.read_bytes())
        at = content.index(words_in_file(index))
        content[at] ^= 1
        file.write_bytes(content)
    elif what == "end":
        file.write_bytes(file.read_bytes()[:-4096])
    elif what == "short":
        file.write_bytes(file.read_bytes()[:100])
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "missing":
        file.unlink()
    elif what == "manifest":
        (tmp_path / "a" / MANIFEST).write_text('{"segments": [')
    else:
        other, another, _ = filled(tmp_path / "b", 20)
        another.compact(everything=True)
        os.replace(tmp_path / "b" / MANIFEST, tmp_path / "a" / MANIFEST)
        other.close()
    with pytest.raises(Fatal, match="BANK_INDEX_DAMAGED") as told:
        bank_index.verify(tmp_path / "a", store)
    assert "verify --repair" in told.value.detail
    again = BankIndex(BankStore(tmp_path / "a"))
    assert matches(again, words[3]) == {("e3", 0)}
    assert len(again.snapshot) == 200
    again.compact(everything=True)
    assert bank_index.verify(tmp_path / "a", store) == 1


def words_in_file(index: BankIndex) -> bytes:
    content: bytes = index.snapshot.parts[0].segment.columns.hashes["pdq.512"].values[5].tobytes()
    return content


def test_half_written_files_are_ignored_and_cleared_away(tmp_path: Path) -> None:
    _, _, words = filled(tmp_path)
    (tmp_path / ".segment-1-1.bank.part").write_bytes(b"half")
    (tmp_path / "segment-1-1.bank").write_bytes(b"whole, and in no manifest")
    again = BankIndex(BankStore(tmp_path))
    assert matches(again, words[3]) == {("e3", 0)}
    again.compact(everything=True)
    assert len(list(tmp_path.glob("*.bank"))) == 1
    assert list(tmp_path.glob("*.part")) == []


def test_entries_wait_for_their_card_and_follow_it(tmp_path: Path) -> None:
    words = random_words(3)
    store = BankStore(tmp_path)
    store.apply([entry("a", words[0])])
    index = BankIndex(store)
    assert matches(index, words[0]) == set()
    store.apply([card()])
    index.refresh()
    assert matches(index, words[0]) == {("a", 0)}
    store.apply([card(pipeline="full")])
    index.refresh()
    assert matches(index, words[0]) == set()
    full = Matcher(snapshot=index.snapshot).match(words[:1].view(np.uint8), "full")
    assert [match.entry_id for match in full] == ["a"]


def test_readers_see_whole_snapshots_while_entries_come_and_merges_run(tmp_path: Path) -> None:
    store, index, words = filled(tmp_path, 300)
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        rng = np.random.default_rng(1)
        while not stop.is_set():
            k = int(rng.integers(300))
            if matches(index, words[k]) != {(f"e{k}", 0)}:
                wrong.append(f"e{k}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    more = random_words(600, seed=7)
    for k in range(0, 600, 60):
        store.apply([entry(f"n{j}", more[j]) for j in range(k, k + 60)])
        index.refresh()
        index.compact(everything=k % 120 == 0)
    stop.set()
    for reader in readers:
        reader.join(30)
    assert wrong == []
    assert all(matches(index, more[k]) == {(f"n{k}", 0)} for k in range(600))


def test_digests_are_found_in_files_and_in_memory(tmp_path: Path) -> None:
    store, index, _ = filled(tmp_path)
    index.compact(everything=True)
    store.apply([entry("twin", sha256=bytes([7]) * 32), removed("e8")])
    index.refresh()
    matcher = Matcher(snapshot=index.snapshot)
    assert {match.entry_id for match in matcher.match_digest("sha256", bytes([7]) * 32)} == {"e7", "twin"}
    assert matcher.match_digest("sha256", bytes([8]) * 32) == []
    assert matcher.match_digest("md5", bytes(16)) == []
