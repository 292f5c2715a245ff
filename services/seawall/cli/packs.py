"""``seawall packs``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from seawall.cli.terminal import console, print_json
from seawall.prompt_scoring import pack_check, pack_signing, term_packs
from seawall.prompt_scoring.pack_check import Fault
from seawall.prompt_scoring.settings import PackSettings, PromptScoringSettings
from seawall.prompt_scoring.term_packs import TermPack
from seawall.runtime.settings import load_settings


def check(folders: Sequence[Path], *, json_output: bool) -> None:
    """Exit status 1 if a pack has a fault."""
    results = [(folder, *pack_check.check(folder)) for folder in folders]
    if json_output:
        print_json([_document(folder, pack, faults) for folder, pack, faults in results])
    else:
        for folder, pack, faults in results:
            _print_faults(faults)
            if pack is not None and not faults:
                console().print(Text.assemble((f"{folder.name:<24}", "green"), f"sha256 {pack.digest.hex()}"))
    sys.exit(1 if any(faults for _, _, faults in results) else 0)


def test(folders: Sequence[Path], *, json_output: bool) -> None:
    """Exit status 1 if a case does not hold. Raises Fatal for a pack that does not load or brings no cases."""
    packs = [(folder, term_packs.load(folder)) for folder in folders or term_packs.bundled()]
    results = [(folder, pack, pack_check.test(pack)) for folder, pack in packs]
    if json_output:
        print_json([_document(folder, pack, faults) for folder, pack, faults in results])
    else:
        for folder, pack, faults in results:
            _print_faults(faults)
            style = "red" if faults else "green"
            held = len(pack.cases) - len(faults)
            console().print(Text.assemble((f"{folder.name:<24}", style), f"{held} of {len(pack.cases)} cases hold"))
    sys.exit(1 if any(faults for _, _, faults in results) else 0)


def list_(*, json_output: bool) -> None:
    """What the room would load. Raises Fatal as the room does."""
    settings = load_settings(PromptScoringSettings, "prompt_scoring")
    verifier = None if settings.pack_keys is None else pack_signing.Verifier(settings.pack_keys)
    rows: list[tuple[TermPack, str]] = []
    if settings.bundled_packs:
        rows += [(term_packs.load(folder), "bundled") for folder in term_packs.bundled()]
    for wanted in settings.packs:
        loaded = term_packs.load(wanted.path, wanted.sha256)
        rows.append((loaded, _trust(wanted, loaded, verifier)))
    if json_output:
        print_json([{**_card(pack), "trust": trust} for pack, trust in rows])
        return
    table = Table(box=None, pad_edge=False)
    for title in ("pack", "version", "language", "terms", "cases", "licence", "trust", "sha256"):
        table.add_column(title, no_wrap=True)
    for pack, trust in rows:
        card = pack.card
        counts = (str(len(pack.terms)), str(len(pack.cases)))
        table.add_row(card.name, card.version, card.language, *counts, card.licence, trust, pack.digest.hex()[:16])
    console().print(table)


def stamp(folders: Sequence[Path], keys: Path | None) -> None:
    """Write the cards, and signatures if there are keys. Raises Fatal."""
    for folder in folders:
        pack = term_packs.stamp(folder)
        if keys is not None:
            pack_signing.sign(folder, pack, keys)
        signed = "  signed" if keys is not None else ""
        console().print(Text.assemble((f"{folder.name:<24}", "green"), f"sha256 {pack.digest.hex()}{signed}"))


def keys(private: Path, public: Path) -> None:
    """Raises Fatal rather than replace a file."""
    pack_signing.make_keys(private, public)
    console().print(f"{private}: signs packs, keep it secret\n{public}: name it in pack_keys")


def _trust(pack: PackSettings, loaded: TermPack, verifier: pack_signing.Verifier | None) -> str:
    if pack.sha256 is not None:
        return "pinned"
    pack_signing.require(verifier, pack.path, loaded)
    return "signed"


def _card(pack: TermPack) -> dict[str, Any]:
    card = pack.card
    return {
        "name": card.name,
        "version": card.version,
        "language": card.language,
        "licence": card.licence,
        "terms": dict(Counter(term.concept for term in pack.terms if not term.exempts)),
        "cases": len(pack.cases),
        "sha256": pack.digest.hex(),
    }


def _document(folder: Path, pack: TermPack | None, faults: Sequence[Fault]) -> dict[str, Any]:
    return {
        "folder": folder.name,
        "ok": not faults,
        **(_card(pack) if pack is not None else {}),
        "faults": [fault._asdict() for fault in faults],
    }


def _print_faults(faults: Sequence[Fault]) -> None:
    for fault in faults:
        console().print(Text.assemble((fault.where, "red"), f": {fault.mend}"))
