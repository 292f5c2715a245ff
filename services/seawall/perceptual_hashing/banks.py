"""Banks: named lists of hashes, each a folder with ``bank.yaml`` and its files of entries.

    banks/
      demo/
        bank.yaml        name, source, version, category, pipeline, radius, licence, notes, files: {entries.csv: sha256}
        entries.csv      entry_id,hash_type,value

A bank is verified when it is loaded: the card against its schema, every file against its SHA-256, every line.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from seawall.core.errors import Fatal
from seawall.perceptual_hashing import bank_card, bank_entries, pdq_reference
from seawall.perceptual_hashing.bank_card import CARD_FILE, BankCard, Pipeline
from seawall.perceptual_hashing.bank_entries import Entries, Entry
from seawall.perceptual_hashing.hash_types import MAX_LISTED_FRAMES, MIN_QUALITY, NEAR_EXACT, VPDQ
from seawall.perceptual_hashing.reduction import prepare
from seawall.runtime.decoding import decode_gray, iterate_frames
from seawall.runtime.decoding.image_info import VIDEOS
from seawall.runtime.decoding.inspection import sniff

#: One file of entries is read into memory whole.
MAX_FILE_BYTES: Final = 4 * 1024**3
_FOLDER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")


class Bank(NamedTuple):
    """A verified bank."""

    card: BankCard
    entries: Entries
    #: 32 bytes: SHA-256 over the lines "<sha256>  <file name>\n" of bank.yaml and every file of entries, by name.
    digest: bytes


def load_all(folder: Path, required: Sequence[str] = ()) -> list[Bank]:
    """Every bank below ``folder``, by name.

    Args:
        required: names of banks that must be there and have entries.

    Raises:
        Fatal: ``BANK_MISSING``, ``EMPTY_BANK``, or as `load`.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise Fatal("BAD_BANK", f"the folder of banks cannot be read ({error.strerror}): see banks.folder") from None
    for name in required:
        if name not in names:
            raise Fatal("BANK_MISSING", f"bank {name} is required and not in the folder of banks: put it there")
    banks = [load(folder / name) for name in names]
    for bank in banks:
        if bank.card.name in required and not len(bank.entries):
            raise Fatal("EMPTY_BANK", f"bank {bank.card.name} is required and has no entries: it would match nothing")
    return banks


def load(folder: Path) -> Bank:
    """Load and verify one bank.

    Raises:
        Fatal: ``BAD_BANK`` (names the file, the line and the mend), ``BANK_FILE_MISSING``, ``BANK_DIGEST_MISMATCH``.
    """
    name = folder.name
    card_bytes = _read(folder / CARD_FILE, f"{name}/{CARD_FILE}")
    card = bank_card.parse(card_bytes, f"{name}/{CARD_FILE}")
    if card.name != name:
        raise Fatal("BAD_BANK", f"{name}/{CARD_FILE}: name is {card.name}, its folder {name}: make them the same")
    files = []
    for file, digest in sorted(card.files.items()):
        content = _read(folder / file, f"{name}/{file}")
        if hashlib.sha256(content).hexdigest() != digest:
            raise Fatal(
                "BANK_DIGEST_MISMATCH",
                f"{name}/{file} is not the file whose SHA-256 {CARD_FILE} gives: restore it, or correct the card",
            )
        files.append((f"{name}/{file}", content))
    return Bank(card, bank_entries.read(files, card.signal_types), _digest(card_bytes, card.files))


def write(folder: Path, card: Mapping[str, Any], entries: Iterable[Entry]) -> Bank:
    """Write a bank, over one that is there, and load it. A crash leaves the old one or the new one.

    Args:
        folder: the bank's own, named like it.
        card: bank.yaml but ``files``.

    Raises:
        Fatal: as `load`; then nothing was changed.
    """
    content = bank_entries.to_csv(entries, card.get("signal_types", ()))
    digest = hashlib.sha256(content).hexdigest()
    # Named by its content, so that the card, replaced last and at once, always names a file that is whole.
    file = f"entries-{digest[:12]}.csv"
    # width: one item a line, whatever its length, so that a diff of two cards reads well.
    text = yaml.safe_dump({**card, "files": {file: digest}}, sort_keys=False, allow_unicode=True, width=4096)
    if not _FOLDER.match(folder.name) or bank_card.parse(text.encode(), CARD_FILE).name != folder.name:
        raise Fatal("BAD_BANK", f"{CARD_FILE}: name must be that of the folder, {folder.name}")
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / file, content)
    _replace(folder / CARD_FILE, text.encode())
    for old in folder.glob("entries-*.csv"):
        if old.name != file:
            old.unlink()
    return load(folder)


def entries_of(entry_id: str, data: bytes, pipeline: Pipeline) -> list[Entry]:
    """The entries that list one picture or video: its PDQ, or those of its frames, SHA-256 and MD5.

    Raises:
        Unscannable: as `decode_gray`. Fatal: ``BAD_BANK``: none of a video's frames says enough to be listed.
    """
    if sniff(data) in VIDEOS:
        perceptual = Entry(entry_id, VPDQ, _frames_of(entry_id, data, pipeline))
    else:
        # The NumPy twin gives the same bits and compiles nothing: whoever lists a few pictures waits for no compiler.
        value, _ = pdq_reference.hash_gray(prepare(decode_gray(data, min_side=None), pipeline))
        perceptual = Entry(entry_id, "pdq", value)
    return [
        perceptual,
        Entry(entry_id, "sha256", hashlib.sha256(data).digest()),
        Entry(entry_id, "md5", hashlib.md5(data, usedforsecurity=False).digest()),
    ]


def _frames_of(entry_id: str, data: bytes, pipeline: Pipeline) -> bytes:
    """Hashes of the frames that differ: one more than `NEAR_EXACT` bits from the one listed before."""
    listed: list[bytes] = []
    for frame in iterate_frames(data, "gray"):
        value, quality = pdq_reference.hash_gray(prepare(frame.pixels, pipeline))
        if quality >= MIN_QUALITY and (not listed or _apart(value, listed[-1]) > NEAR_EXACT):
            listed.append(value)
    if not listed:
        raise Fatal("BAD_BANK", f"entry {entry_id}: no frame of the video says enough: list it by its digests")
    return b"".join(listed[:MAX_LISTED_FRAMES])


def _apart(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def _read(path: Path, where: str) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Fatal("BAD_BANK", f"{where} is larger than {MAX_FILE_BYTES} bytes: split it")
        return path.read_bytes()
    except OSError as error:
        raise Fatal("BANK_FILE_MISSING", f"{where} cannot be read ({error.strerror}): restore it") from None


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _digest(card: bytes, files: Mapping[str, str]) -> bytes:
    digests = {**files, CARD_FILE: hashlib.sha256(card).hexdigest()}
    return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).digest()
