"""The demo's bank of "known" pictures: hashes of ordinary photographs that stand in for known material."""

from __future__ import annotations

from pathlib import Path

from seawall.core.errors import Fatal
from seawall.local import photographs
from seawall.local.samples import load_catalogue
from seawall.perceptual_hashing import banks
from seawall.perceptual_hashing.bank_card import CARD_FILE, Pipeline

NAME = "demo"
_PIPELINE: Pipeline = "full"
_CARD = {
    "name": NAME,
    "source": "scikit-image's own photographs",
    "version": "1",
    "category": "benign_stand_in",
    "pipeline": _PIPELINE,
    "radius": 31,
    "licence": "the photographs' own, see scikit-image's data/README",
    "notes": "Harmless photographs that play the part of known material in the demo and the tests.",
}


def ensure_some(folder: Path) -> None:
    """Write the demo's bank unless there is a bank already: without one, the hashing service is never ready."""
    if not any(folder.glob(f"*/{CARD_FILE}")):
        ensure(folder)


def ensure(folder: Path) -> None:
    """Write ``folder``/demo unless it is there and lists every stand-in of the samples.

    Raises Fatal where it cannot be written. Takes a second the first time.
    """
    names = load_catalogue().stand_ins
    place = folder / NAME
    try:
        there = banks.load(place)
    except Fatal:
        # Absent, of an older version or damaged: made anew.
        pass
    else:
        if {there.entries.pdq_ids[index] for index in range(len(there.entries.pdq_ids))} == set(names):
            return
    entries = [entry for name in names for entry in banks.entries_of(name, photographs.original(name), _PIPELINE)]
    banks.write(place, _CARD, entries)
