from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.perceptual_hashing import hamming, multi_index
from seawall.perceptual_hashing.bank_card import BankCard, Pipeline
from seawall.perceptual_hashing.bank_entries import Entry, read, to_csv
from seawall.perceptual_hashing.banks import Bank
from seawall.perceptual_hashing.hamming import HammingIndex, Hits, Words
from seawall.perceptual_hashing.matcher import Matcher
from seawall.perceptual_hashing.multi_index import MultiIndex, permuted
from seawall.perceptual_hashing.scan_index import ScanIndex


class Permuting:
    """The multi-index over hashes as they are."""

    def __init__(self, words: Words) -> None:
        self._index = MultiIndex.build(permuted(words), threads=2)

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: Words, radius: int) -> Hits:
        return self._index.search(permuted(queries), radius)


INDEXES: list[Callable[[Words], HammingIndex]] = [ScanIndex, Permuting]


def random_words(count: int, seed: int = 0) -> Words:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 4), dtype=np.uint64)


def flipped(hash_: Words, bits: list[int]) -> Words:
    out = hash_.copy()
    for bit in bits:
        out[bit >> 6] ^= np.uint64(1) << np.uint64(bit & 63)
    return out


def brute(words: Words, queries: Words, radius: int) -> set[tuple[int, int, int]]:
    """The oracle: NumPy alone."""
    distance = np.bitwise_count(queries[:, None, :] ^ words[None, :, :]).sum(axis=2)
    return {(int(q), int(row), int(distance[q, row])) for q, row in np.argwhere(distance <= radius)}


def found(index: HammingIndex, queries: Words, radius: int) -> list[tuple[int, int, int]]:
    hits = index.search(queries, radius)
    return list(zip(hits.query.tolist(), hits.row.tolist(), hits.distance.tolist(), strict=True))


@pytest.mark.parametrize("make", INDEXES)
def test_every_planted_neighbour_is_found_at_every_distance(make: Callable[[Words], HammingIndex]) -> None:
    words = random_words(20_000)
    index = make(words)
    rng = np.random.default_rng(1)
    queries: list[Words] = []
    planted = set()
    for distance in range(32):
        for _ in range(20):
            row = int(rng.integers(len(words)))
            bits = rng.permutation(256)[:distance].tolist()
            planted.add((len(queries), row, distance))
            queries.append(flipped(words[row], bits))
    assert set(found(index, np.stack(queries), 31)) == planted


def test_the_worst_spread_of_errors_is_found_too() -> None:
    # Two errors in fifteen bands and one in the last: what the pigeonhole promises, and not one bit more. Every group
    # but one has 8 errors, every pair in it but one 4.
    words = random_words(20_000)
    index = Permuting(words)
    place = np.empty(256, np.int64)
    place[:] = multi_index._PERMUTATION
    for spared in range(16):
        bits = []
        for band in range(16):
            bits += [int(place[16 * band + k]) for k in ((3, 9) if band != spared else (5,))]
        assert len(bits) == 31
        assert found(index, flipped(words[77], bits)[None], 31) == [(0, 77, 31)]


@pytest.mark.parametrize("make", INDEXES)
def test_the_radius_is_inclusive_and_nothing_beyond_it_is_found(make: Callable[[Words], HammingIndex]) -> None:
    words = random_words(500)
    index = make(words)
    for radius in (0, 1, 12, 31):
        inside, outside = flipped(words[3], list(range(radius))), flipped(words[3], list(range(radius + 1)))
        assert found(index, inside[None], radius) == [(0, 3, radius)]
        assert found(index, outside[None], radius) == []


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 300),
    clusters=st.integers(1, 5),
    spread=st.integers(0, 40),
    radius=st.integers(0, 31),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_multi_index_agrees_with_brute_force_on_crowded_lists(
    count: int, clusters: int, spread: int, radius: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, (clusters, 4), dtype=np.uint64)

    def around() -> Words:
        centre = centres[int(rng.integers(clusters))]
        return flipped(centre, rng.permutation(256)[: int(rng.integers(spread + 1))].tolist())

    words = np.stack([around() for _ in range(count)])
    queries = np.stack([around() for _ in range(4)])
    hits = found(Permuting(words), queries, radius)
    assert len(hits) == len(set(hits))
    assert set(hits) == brute(words, queries, radius) == set(found(ScanIndex(words), queries, radius))


@pytest.mark.parametrize("make", INDEXES)
def test_more_hits_than_expected_are_all_returned(make: Callable[[Words], HammingIndex]) -> None:
    words = np.repeat(random_words(1), 5_000, axis=0)
    hits = found(make(words), words[:2], 0)
    assert sorted(hits) == [(q, row, 0) for q in range(2) for row in range(5_000)]


@pytest.mark.parametrize("make", INDEXES)
def test_empty_lists_and_no_queries_find_nothing(make: Callable[[Words], HammingIndex]) -> None:
    assert found(make(np.empty((0, 4), np.uint64)), random_words(3), 31) == []
    assert found(make(random_words(3)), np.empty((0, 4), np.uint64), 31) == []


@pytest.mark.parametrize("make", INDEXES)
@pytest.mark.parametrize("radius", [-1, 32, 256])
def test_a_radius_that_would_not_be_exact_is_refused(make: Callable[[Words], HammingIndex], radius: int) -> None:
    with pytest.raises(ValueError, match="exact"):
        make(random_words(3)).search(random_words(1), radius)


def test_threads_search_one_index_together() -> None:
    words = random_words(20_000)
    index = Permuting(words)
    queries = np.stack([flipped(words[row], [1, 100, 200]) for row in range(200)])
    results: list[list[tuple[int, int, int]]] = []
    threads = [threading.Thread(target=lambda: results.append(found(index, queries, 31))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [[(row, row, 3) for row in range(200)]] * 4


# ---- banks together --------------------------------------------------------------------------------------------------


def bank(name: str, entries: list[Entry], radius: int = 31, pipeline: Pipeline = "512") -> Bank:
    card = BankCard(
        name=name,
        source="test",
        version="1",
        category=f"category of {name}",
        pipeline=pipeline,
        radius=radius,
        licence="none",
        files={"entries.csv": "0" * 64},
    )
    return Bank(card, read([("entries.csv", to_csv(entries))]), bytes(32))


def as_bytes(words: Words) -> bytes:
    return words.tobytes()


def test_each_bank_matches_by_its_own_radius_and_pipeline() -> None:
    word = random_words(1)[0]
    entry = as_bytes(word)
    matcher = Matcher(
        [
            bank("wide", [Entry("a", "pdq", entry)], radius=31),
            bank("narrow", [Entry("b", "pdq", entry)], radius=10),
            bank("other", [Entry("c", "pdq", entry)], pipeline="full"),
        ]
    )
    assert matcher.pipelines == ("full", "512")
    near = flipped(word, list(range(20))).view(np.uint8)[None]
    assert [(m.bank.name, m.entry_id, m.distance) for m in matcher.match(near, "512")] == [("wide", "a", 20)]
    assert [(m.bank.name, m.entry_id) for m in matcher.match(near, "full")] == [("other", "c")]
    exact = {(m.bank.name, m.entry_id, m.distance) for m in matcher.match(word.view(np.uint8)[None], "512")}
    assert exact == {("wide", "a", 0), ("narrow", "b", 0)}


def test_rows_lead_back_to_their_entries_in_every_bank() -> None:
    words = random_words(300)
    parts = [(0, 120), (120, 121), (121, 300)]
    matcher = Matcher(
        [bank(f"bank-{b}-{e}", [Entry(f"e{k}", "pdq", as_bytes(words[k])) for k in range(b, e)]) for b, e in parts]
    )
    for k in range(300):
        (match,) = matcher.match(words[k].view(np.uint8)[None], "512")
        begin, end = next((b, e) for b, e in parts if b <= k < e)
        assert (match.entry_id, match.bank.name) == (f"e{k}", f"bank-{begin}-{end}")


def test_digests_match_exactly_in_every_bank() -> None:
    digest = bytes(range(32))
    listing = [Entry("x", "sha256", digest), Entry("y", "sha256", digest), Entry("z", "md5", bytes(16))]
    matcher = Matcher([bank("one", listing), bank("two", [Entry("x", "sha256", digest)])])
    found_ = {(m.bank.name, m.entry_id, m.distance, m.hash_type) for m in matcher.match_digest("sha256", digest)}
    assert found_ == {("one", "x", 0, "sha256"), ("one", "y", 0, "sha256"), ("two", "x", 0, "sha256")}
    assert matcher.match_digest("sha256", bytes(32)) == []
    assert [m.entry_id for m in matcher.match_digest("md5", bytes(16))] == ["z"]
    assert len(matcher) == 4
    assert matcher.match(np.zeros((1, 32), np.uint8), "512") == []


def test_words_keep_distances() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (2, 32), np.uint8)
    words = hamming.to_words(hashes)
    assert np.bitwise_count(words[0] ^ words[1]).sum() == np.bitwise_count(hashes[0] ^ hashes[1]).sum()
