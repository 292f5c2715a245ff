"""Lists in files, as exchanges and their tools write them. Plain CSV of a bank is `bank_entries`.

    json           an array of objects, or one object a line: {"entry_id": …, "hashes": {"pdq": …, "md5": …}}
    signals        python-threatexchange's file exchange: "pdq <hex>" a line
    threatexchange python-threatexchange's state: ~/.threatexchange/collab_state/<api>/<name>.state.pickle

Every reader yields records and, for what it cannot read, refusals by digest: one bad line costs that line.

A pickle can run code when it is opened. Here none does: of the classes that such a state names only the known ones are
accepted, and stand-ins take their place that do nothing but hold what was written.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from seawall.core.errors import Fatal, Poison
from seawall.perceptual_hashing.bank_entries import CARD_SAYS
from seawall.perceptual_hashing.exchanges.records import (
    ExchangeRecord,
    ListedHash,
    Refused,
    digest_of,
    entry_id_of,
    listed_hash,
)
from seawall.perceptual_hashing.hash_types import HASH_BYTES, VPDQ

#: A file is read into memory whole.
MAX_FILE_BYTES: Final = 4 * 1024**3

Read = ExchangeRecord | Refused


def read(path: Path, name: str, plug_ins: Collection[str] = ()) -> Iterator[Read]:
    """Every record of a file.

    Args:
        name: a key of FORMATS.
        plug_ins: those whose hashes the bank lists; JSON alone can hold any.

    Raises:
        Fatal: ``BAD_FILE``: it cannot be read, or is not of this format at all.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise Fatal("BAD_FILE", f"{path.name} has {size} bytes, at most {MAX_FILE_BYTES}: split it")
        content = path.read_bytes()
    except OSError as error:
        raise Fatal("BAD_FILE", f"{path.name} cannot be read ({error.strerror})") from None
    if name == "json":
        return _json(path.name, content, plug_ins)
    return FORMATS[name](path.name, content)


# ---- JSON ----------------------------------------------------------------------------------------------------------


def _json(name: str, content: bytes, plug_ins: Collection[str] = ()) -> Iterator[Read]:
    if content.lstrip()[:1] == b"[":
        try:
            rows = json.loads(content)
        except ValueError as error:
            line = getattr(error, "lineno", 1)
            raise Fatal("BAD_FILE", f"{name} line {line}: not JSON") from None
        for number, row in enumerate(rows, 1):
            yield _object(row, json.dumps(row, sort_keys=True).encode(), f"{name} item {number}", plug_ins)
        return
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            yield Refused("record", "BAD_JSON", digest_of(line), f"{name} line {number}")
            continue
        yield _object(row, line, f"{name} line {number}", plug_ins)


def _object(row: Any, raw: bytes, where: str, plug_ins: Collection[str]) -> Read:
    try:
        if not isinstance(row, dict) or not isinstance(row.get("hashes"), dict) or "entry_id" not in row:
            raise Poison("BAD_RECORD", 'an object has "entry_id" and "hashes"')
        known = (*HASH_BYTES, VPDQ, *plug_ins)
        if not all(kind in known for kind in row["hashes"]):
            raise Poison("UNKNOWN_HASH", f"hash types are {', '.join(known)}, or {CARD_SAYS}")
        hashes = tuple(listed_hash(kind, _text(value)) for kind, value in sorted(row["hashes"].items()))
        deleted = row.get("deleted") is True
        if not hashes and not deleted:
            raise Poison("NO_HASH", "an object has at least one hash")
        return ExchangeRecord(_entry_id(str(row["entry_id"])), hashes, deleted, str(row.get("note", "")))
    except Poison as error:
        return Refused("record", error.reason, digest_of(raw), where)


def _text(value: Any) -> str:
    # A video's frames may be a list.
    return json.dumps(value) if isinstance(value, list) else str(value)


# ---- python-threatexchange: a line a signal --------------------------------------------------------------------------

#: Names of its signal types.
_SIGNAL_TYPES: Final = {
    "pdq": "pdq",
    "md5": "md5",
    "video_md5": "md5",
    "sha1": "sha1",
    "sha256": "sha256",
    "video_sha256": "sha256",
    "vpdq": VPDQ,
}


def _signals(name: str, content: bytes) -> Iterator[Read]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        kind, _, value = line.decode("utf-8", "replace").strip().partition(" ")
        if kind not in _SIGNAL_TYPES:
            yield Refused("record", "UNKNOWN_HASH", digest_of(line), where)
            continue
        try:
            yield _nameless(listed_hash(_SIGNAL_TYPES[kind], value))
        except Poison as error:
            yield Refused("record", error.reason, digest_of(line), where)


def _nameless(listed: ListedHash, note: str = "") -> ExchangeRecord:
    """A record of a list of bare hashes: its id is the hash's digest, so that it is the same each time."""
    return ExchangeRecord(f"{listed.hash_type}.{digest_of(listed.value)[:32]}", (listed,), note=note)


# ---- python-threatexchange: its state --------------------------------------------------------------------------------

_PACKAGE: Final = "threatexchange."


class _Held:
    """In the place of an object of the library: what was written of it."""

    state: Mapping[str, Any] = {}

    def __new__(cls, *arguments: Any) -> _Held:
        held = super().__new__(cls)
        held.arguments = arguments
        return held

    arguments: tuple[Any, ...]

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __hash__(self) -> int:
        return hash((type(self), self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and (type(self), self.arguments) == (type(other), other.arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.state.get(name)


def _member(of: Any, name: str) -> _Held:
    """In the place of ``getattr``, by which Python 3.11.0 to 3.11.3 write the members of an enumeration."""
    if not (isinstance(of, type) and issubclass(of, _Held)):
        raise pickle.UnpicklingError("only an enumeration's members are named")
    return of(name)


_PLAIN: Final[Mapping[tuple[str, str], Any]] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("collections", "OrderedDict"): dict,
    ("builtins", "getattr"): _member,
}


class _Unpickler(pickle.Unpickler):
    """Builds stand-ins of the library's classes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module.startswith(_PACKAGE + "exchanges.") and name.isidentifier():
            return type(name, (_Held,), {})
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a state")


def _state(name: str, content: bytes) -> Iterator[Read]:
    try:
        delta = _Unpickler(io.BytesIO(content)).load()
    except Exception as error:
        # Whatever a damaged or hostile pickle makes of itself.
        raise Fatal(
            "BAD_FILE", f"{name} is no state of python-threatexchange ({type(error).__name__}): fetch it again there"
        ) from None
    if type(delta).__name__ != "FetchDelta" or not isinstance(delta.updates, dict):
        raise Fatal("BAD_FILE", f"{name} is no state of python-threatexchange: it holds no FetchDelta")
    for number, (key, value) in enumerate(delta.updates.items(), 1):
        try:
            yield from _update(key, value)
        except Poison as error:
            yield Refused("record", error.reason, digest_of(repr(key).encode()), f"{name} record {number}")


def _update(key: Any, value: Any) -> Iterator[ExchangeRecord]:
    if type(value).__name__ == "NCMECEntryUpdate":
        yield _ncmec(value)
        return
    if not isinstance(key, tuple) or len(key) != 2:
        raise Poison("BAD_RECORD", "the record is of no exchange that is known")
    kind = _STATE_TYPES.get(str(key[0]))
    if kind is not None and value is not None:
        yield _nameless(listed_hash(kind, str(key[1])))


_STATE_TYPES: Final = {
    **_SIGNAL_TYPES,
    "HASH_PDQ": "pdq",
    "HASH_MD5": "md5",
    "HASH_VIDEO_MD5": "md5",
    "HASH_SHA1": "sha1",
    "HASH_SHA256": "sha256",
    "HASH_VIDEO_SHA256": "sha256",
}


def _ncmec(update: Any) -> ExchangeRecord:
    """Under the same id as a pull would give it, so that either may follow the other."""
    if not isinstance(update.member_id, int) or not isinstance(update.fingerprints, dict):
        raise Poison("BAD_RECORD", "an entry lacks what every entry has")
    entry_id = entry_id_of(str(update.member_id), str(update.id or ""))
    if update.deleted is True:
        return ExchangeRecord(entry_id, (), deleted=True)
    hashes = tuple(
        listed_hash(tag.lower(), str(text)) for tag, text in update.fingerprints.items() if tag.lower() in HASH_BYTES
    )
    return ExchangeRecord(entry_id, hashes, note=str(update.classification or ""))


def _entry_id(text: str) -> str:
    """An id as it stands where it is one, else encoded."""
    allowed = text.isascii() and 0 < len(text) <= 128 and all(one.isalnum() or one in "._:-" for one in text)
    return text if allowed else entry_id_of(text)


FORMATS: Final[Mapping[str, Callable[[str, bytes], Iterator[Read]]]] = {
    "json": _json,
    "signals": _signals,
    "threatexchange": _state,
}
