"""kill -9 of a real process during an import and during a merge: what is left loads, and is complete after resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from seawall.api.bank.v1 import bank_pb2
from seawall.perceptual_hashing import bank_index
from seawall.perceptual_hashing.bank_entries import Entry, to_csv
from seawall.perceptual_hashing.bank_index import BankIndex
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.matcher import Matcher
from tests.support.bank_entries import card, entry, random_words

COUNT = 12_000
WORDS = random_words(COUNT)
CARD = 'name: own\nsource: benign stand-ins\nversion: "1"\ncategory: stand-in\npipeline: "512"\nlicence: CC0-1.0\n'


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {
        "SEAWALL_BANKS__FOLDER": str(tmp_path / "banks"),
        "SEAWALL_BANKS__STORE": str(tmp_path / "store"),
    }


def seawall(tmp_path: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seawall.cli", *arguments],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=check,
    )


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    file = tmp_path / "list.csv"
    file.write_bytes(to_csv(Entry(f"e{k}", "pdq", WORDS[k].tobytes()) for k in range(COUNT)))
    (tmp_path / "card.yaml").write_text(CARD)
    return file


def importing(tmp_path: Path, file: Path) -> list[str]:
    return ["banks", "import", str(file), "--bank", "own", "--card", str(tmp_path / "card.yaml"), "--json"]


def test_an_import_that_is_killed_goes_on_where_it_was(tmp_path: Path, listing: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "seawall.cli", *importing(tmp_path, listing)],
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
    )
    store = BankStore(tmp_path / "store")
    give_up = time.monotonic() + 60
    # Killed as soon as a part of it is there.
    while not 0 < (listed := listed_in(store)) < COUNT:
        assert time.monotonic() < give_up
        assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    listed = listed_in(store)
    assert 0 < listed < COUNT
    store.verify()
    # What is left loads, and matches what it lists.
    half = BankIndex(BankStore(tmp_path / "store"))
    assert len(half.snapshot) == listed
    done = json.loads(seawall(tmp_path, *importing(tmp_path, listing)).stdout)
    assert done["resumed"] == listed
    assert done["changed"] == COUNT - listed
    whole = BankStore(tmp_path / "undisturbed")
    whole.apply([*(entry(f"e{k}", WORDS[k]) for k in range(COUNT)), store_card(store)])
    assert store.digests() == whole.digests()
    index = BankIndex(store)
    matcher = Matcher(snapshot=index.snapshot)
    found = matcher.match(WORDS.view(np.uint8), "512")
    assert {(match.query, match.entry_id) for match in found} == {(k, f"e{k}") for k in range(COUNT)}


def listed_in(store: BankStore) -> int:
    held = store.state().banks.get("own")
    return held.listed if held is not None else 0


def store_card(store: BankStore) -> bank_pb2.BankChange:
    held = store.card("own")
    assert held is not None
    return bank_pb2.BankChange(bank=held)


#: Stops itself at each write to the disk that a merge makes, in turn.
MERGE = """
import os, signal, sys
from pathlib import Path
from seawall.perceptual_hashing.bank_index import BankIndex
from seawall.perceptual_hashing.bank_store import BankStore
index = BankIndex(BankStore(Path(sys.argv[1])))
left, replace, fsync = int(sys.argv[2]), os.replace, os.fsync
def counted(call):
    def wrapped(*arguments):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return wrapped
os.replace, os.fsync = counted(replace), counted(fsync)
index.compact(everything=True)
print("merged", left)
"""


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_merge_that_is_killed_leaves_the_old_files_or_the_new_ones(tmp_path: Path, writes: int) -> None:
    store = BankStore(tmp_path)
    store.apply([card(), *(entry(f"e{k}", WORDS[k]) for k in range(40))])
    BankIndex(store).compact(everything=True)
    store.apply([entry(f"e{k}", WORDS[k]) for k in range(40, 60)])
    store.close()
    process = subprocess.run(
        [sys.executable, "-c", MERGE, str(tmp_path), str(writes)], capture_output=True, text=True, timeout=100
    )
    assert process.returncode == (-signal.SIGKILL if "merged" not in process.stdout else 0), process.stderr
    again = BankStore(tmp_path)
    bank_index.verify(tmp_path, again)
    index = BankIndex(again)
    found = Matcher(snapshot=index.snapshot).match(WORDS[:60].view(np.uint8), "512")
    assert {(match.query, match.entry_id) for match in found} == {(k, f"e{k}") for k in range(60)}
    index.compact(everything=True)
    assert len(list(tmp_path.glob("*.bank"))) == 1
    assert list(tmp_path.glob("*.part")) == []
