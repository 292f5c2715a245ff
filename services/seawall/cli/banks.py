"""``seawall banks import|stat|verify|export|diff|disable|enable|confirm``."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from seawall.api.bank.v1 import bank_pb2
from seawall.api.decision.v1 import decision_pb2
from seawall.cli.terminal import console, print_json
from seawall.core.errors import Fatal
from seawall.perceptual_hashing import bank_changes, bank_entries, bank_import, bank_index, banks, live_banks
from seawall.perceptual_hashing.bank_index import BankIndex
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.exchanges import formats
from seawall.perceptual_hashing.exchanges.records import ExchangeRecord
from seawall.perceptual_hashing.settings import BankSettings, PerceptualHashingSettings
from seawall.runtime.settings import load_settings

#: Something in the file could not be read; the rest is listed.
EXIT_REFUSED = 3
_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".pickle": "threatexchange"}
_STATES = {
    bank_pb2.ENTRY_STATE_LISTED: "listed",
    bank_pb2.ENTRY_STATE_DISABLED: "disabled",
    bank_pb2.ENTRY_STATE_QUARANTINED: "quarantined",
    bank_pb2.ENTRY_STATE_REMOVED: "removed",
}


def import_(
    file: Path, bank: str, *, card: Path | None, replace: bool, file_format: str | None, json_output: bool
) -> None:
    """List a file's entries in a bank of the store. Exit status 3 if something in the file could not be read."""
    content = _content(file)
    described = None if card is None else bank_import.card_of(card, content)
    if described is not None and described.bank.name != bank:
        raise Fatal("BAD_BANK", f"{card}: name is {described.bank.name}, not {bank}: make them the same")
    store = _store()
    known = store.card(bank) if described is None else described.bank
    changes, refused = _changes(file, bank, content, file_format, known)
    if refused and replace:
        raise Fatal("BAD_FILE", f"{file.name}: {refused[0]}: what cannot be read would be taken out of the bank")
    done = bank_import.import_entries(
        store, bank, changes, digest=hashlib.sha256(content).hexdigest(), card=described, replace=replace
    )
    digest = store.digests()[bank].hex()
    if json_output:
        print_json({"bank": bank, **done._asdict(), "refused": refused, "digest": digest})
        sys.exit(EXIT_REFUSED if refused else 0)
    resumed = f", {done.resumed} done before" if done.resumed else ""
    console().print(
        f"{bank}: {done.changed} changed, {done.unchanged} as before{resumed}, {done.removed} removed; digest {digest}"
    )
    for each in refused:
        console(stderr=True).print(f"refused: {each}")
    sys.exit(EXIT_REFUSED if refused else 0)


def stat(*, json_output: bool) -> None:
    """Every bank: what it is, how much it lists, in which states, and its digest."""
    settings = _settings()
    rows = []
    for bank in banks.load_all(settings.folder):
        card = bank.card
        rows.append(_row(card.name, "folder", card.kind, card.version, card.pipeline, card.radius, bank.digest))
        rows[-1]["entries"] = {"listed": len(bank.entries)}
    for name, summary in _store(settings).banks().items():
        held = summary.card
        kind = "negative" if held is not None and held.kind == bank_pb2.BANK_KIND_NEGATIVE else "positive"
        row = (
            _row(name, "store", kind, held.version, held.pipeline, held.radius, summary.digest)
            if held is not None
            else _row(name, "store", "no card: matches nothing", "", "", 0, summary.digest)
        )
        row["entries"] = {_STATES.get(state, "unknown"): count for state, count in sorted(summary.states.items())}
        rows.append(row)
    if json_output:
        print_json({"banks": rows})
        return
    for row in rows:
        entries = row["entries"]
        counts = ", ".join(f"{count} {state}" for state, count in entries.items()) if isinstance(entries, dict) else ""
        console().print(
            f"{row['name']!s:<24}{row['where']!s:<8}{row['kind']!s:<10}{row['version']!s:<14}"
            f"{row['pipeline']!s:<6}{row['radius']!s:<4}{counts or 'no entries':<36}{str(row['digest'])[:16]}"
        )


def verify(*, repair: bool, json_output: bool) -> None:
    """Check folders, the store and the index's files against their digests and checksums."""
    settings = _settings()
    folders = banks.load_all(settings.folder)
    store = _store(settings)
    store.verify()
    if repair:
        bank_index.discard(settings.store)
        BankIndex(store).compact(everything=True)
    segments = bank_index.verify(settings.store, store)
    entries = sum(held.listed for held in store.state().banks.values())
    if json_output:
        print_json({"ok": True, "folders": len(folders), "entries": entries, "segments": segments})
        return
    said = f"{len(folders)} folders, {entries} entries of the store and {segments} segments are what they should be"
    console().print(Text.assemble((said, "green")))


def export(bank: str, out: Path | None) -> None:
    """Write a bank's entries as CSV, to a file or standard output."""
    entries = list(bank_import.export(_store(), bank))
    content = bank_entries.to_csv(entries, {entry.hash_type for entry in entries})
    if out is None:
        sys.stdout.write(content.decode())
        return
    part = out.with_name(f".{out.name}.part")
    part.write_bytes(content)
    os.replace(part, out)


def diff(bank: str, file: Path, *, file_format: str | None, json_output: bool) -> None:
    """Compare a bank with a file. Exit status 1 if they differ."""
    store = _store()
    changes, _ = _changes(file, bank, _content(file), file_format, store.card(bank))
    found = bank_import.difference(store, bank, changes)
    if json_output:
        print_json({"bank": bank, **found._asdict()})
    else:
        for sign, entry_ids in (("+", found.added), ("~", found.changed), ("-", found.removed)):
            for entry_id in entry_ids:
                console().print(f"{sign} {entry_id}")
    sys.exit(1 if any(found) else 0)


def set_state(bank: str, entry_id: str, *, enabled: bool, reason: str) -> None:
    """Let an entry match again, or match nothing."""
    settings = _settings()
    store = _store(settings)
    if store.entry(bank, entry_id) is None and bank not in {one.card.name for one in banks.load_all(settings.folder)}:
        raise Fatal("NO_ENTRY", f"{bank}/{entry_id} is not listed: a match names both, and so does `seawall why`")
    state = bank_pb2.ENTRY_STATE_LISTED if enabled else bank_pb2.ENTRY_STATE_DISABLED
    live_banks.set_state(store, bank, entry_id, state, reason=reason)
    console().print(f"{bank}/{entry_id} {'matches' if enabled else 'matches nothing'} from now on")


def confirm(generation_id: str, bank: str, item_ids: Sequence[str], *, json_output: bool) -> None:
    """List a confirmed decision's media in the operator's own bank."""
    store = _store()
    card = store.card(bank)
    if card is None:
        raise Fatal("BANK_MISSING", f"bank {bank} is not in the store: import an empty list with --card to make it")
    failed: Fatal | None = None
    # The newest that has hashes; an amendment may rest on another stage alone.
    for decision in reversed(_decisions(generation_id)):
        try:
            changes = bank_import.confirmed(decision, card, item_ids=item_ids)
        except Fatal as error:
            failed = failed or error
            continue
        store.apply(changes)
        listed = [change.entry.entry_id for change in changes]
        if json_output:
            print_json({"bank": bank, "entries": listed, "digest": store.digests()[bank].hex()})
        else:
            console().print(f"{bank}: lists {', '.join(listed)}")
        return
    raise failed or Fatal("NOT_FOUND", f"no decision of {generation_id} is kept: `seawall why` says the same")


def _decisions(generation_id: str) -> list[decision_pb2.Decision]:
    """What was decided, the latest last."""
    from seawall.cli import reach
    from seawall.local import verdict
    from seawall.local.explain import find
    from seawall.runtime.kafka import KafkaBroker

    settings = reach.local_settings()
    topic = reach.topics_of(settings).decisions
    found = asyncio.run(find(KafkaBroker(settings.kafka), topic, generation_id))
    return list(verdict.distinct(one.decision for one in found))


def _row(
    name: str, where: str, kind: str, version: str, pipeline: str, radius: int, digest: bytes
) -> dict[str, object]:
    return {
        "name": name,
        "where": where,
        "kind": kind,
        "version": version,
        "pipeline": pipeline,
        "radius": radius,
        "digest": digest.hex(),
    }


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Fatal("BAD_FILE", f"{file.name} cannot be read ({error.strerror})") from None


def _changes(
    file: Path, bank: str, content: bytes, file_format: str | None, card: bank_pb2.Bank | None
) -> tuple[list[bank_pb2.BankChange], list[str]]:
    """The changes a file makes, and what of it cannot be read. A bad line of our own CSV refuses the whole file."""
    wanted = file_format or _FORMATS.get(file.suffix)
    if wanted is None:
        raise Fatal("BAD_FILE", f"{file.name}: say what it is with --format: csv, {', '.join(formats.FORMATS)}")
    plug_ins = () if card is None else card.signal_types
    if wanted == "csv":
        return bank_changes.grouped(bank, bank_import.rows_of(file, content, plug_ins), origin="file"), []
    if wanted not in formats.FORMATS:
        raise Fatal("BAD_FILE", f"there is no format {wanted}: csv, {', '.join(formats.FORMATS)}")
    changes, refused = [], []
    for record in formats.read(file, wanted, plug_ins):
        if isinstance(record, ExchangeRecord):
            state = bank_pb2.ENTRY_STATE_REMOVED if record.deleted else bank_pb2.ENTRY_STATE_LISTED
            hashes = {one.hash_type: one.value for one in record.hashes}
            if hashes or record.deleted:
                changes.append(bank_changes.listed(bank, record.entry_id, hashes, origin="file", state=state))
        else:
            refused.append(f"{record.reason} at {record.where}")
    return changes, refused


def _settings() -> BankSettings:
    return load_settings(PerceptualHashingSettings, "perceptual_hashing").banks


def _store(settings: BankSettings | None = None) -> BankStore:
    return BankStore((settings or _settings()).store)
