"""NCMEC's Hash Sharing API v2, its generative-AI environments among them.

Over the client of the `threatexchange` library: its environments, its reading of entries, its feedback. Three of its
habits are mended here: times are sent as UTC (it sends local time with a "Z"), one unreadable entry costs that entry
(it gives the page up, and puts the whole page into the exception), and requests have bounds (`transport`).

The API answers a range of time in pages that are *not* in order of time, each with a cursor to the next. So a range is
done only when its last page is. A range with a page that cannot be read is halved, until the page is in a range of
MIN_RANGE_SECONDS; that one is set aside, asked for again by the next pull, and the rest goes on.
"""

from __future__ import annotations

import base64
import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Final, NamedTuple

import requests
from pydantic import SecretStr
from threatexchange.exchanges.clients.ncmec.hash_api import (
    FeedbackType,
    FingerprintType,
    GetEntriesNextInfo,
    NCMECEntryUpdate,
    NCMECEnvironment,
    NCMECHashAPI,
    _XMLWrapper,
)

from seawall.core.errors import Fatal, Poison
from seawall.perceptual_hashing.exchanges.records import (
    Checkpoint,
    ExchangeRecord,
    ListedHash,
    Page,
    Refused,
    Vote,
    digest_of,
    entry_id_of,
    listed_hash,
    parts_of,
)
from seawall.perceptual_hashing.exchanges.transport import BoundedSession

#: Names of the environments, as the library has them: "Industry", "NGO_Generative_AI", …
ENVIRONMENTS: Final = tuple(environment.name for environment in NCMECEnvironment)

MIN_RANGE_SECONDS: Final = 60
#: A range with more entries is halved before it is read: the exchange makes large cursors slowly.
MAX_RANGE_ENTRIES: Final = 400_000
#: Ranges set aside in one pull, after which the exchange counts as broken.
MAX_SET_ASIDE: Final = 20
#: Times a page is asked for before it counts as unreadable.
PAGE_ATTEMPTS: Final = 3
#: The last seconds are left for the next pull, and the seconds before the last end are asked for again: an entry may
#: become visible a little after its own time.
_NOT_YET_SECONDS: Final = 5
_OVERLAP_SECONDS: Final = 300
_CURSOR_PATH: Final = f"/{NCMECHashAPI.VERSION}/entries?"
#: NCMEC: cursors are not for keeping.
_CURSOR_SECONDS: Final = 12 * 60 * 60
#: Hash types of a bank by the tag of a fingerprint; others (PhotoDNA, video fingerprints) need a licensee's matcher.
_TYPES: Final = {"md5": "md5", "sha1": "sha1", "sha256": "sha256", "pdq": "pdq"}
_FINGERPRINTS: Final = {"md5": FingerprintType.md5, "sha1": FingerprintType.sha1, "pdq": FingerprintType.pdq}


class _Client(NCMECHashAPI):
    """The library's client on our session."""

    def __init__(
        self, user: str, password: str, environment: NCMECEnvironment, base_url: str | None, session: _MakeSession
    ) -> None:
        super().__init__(user, password, environment)
        if base_url is not None:
            self._base_url = base_url
        self._make_session = session

    def _get_session(self) -> requests.Session:
        session = self._make_session(self._base_url)
        session.auth = self._authorise
        return session

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # By hand: the usual way would write the credentials as Latin-1, and fail on others.
        word = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        request.headers["Authorization"] = f"Basic {word}"
        return request

    def fetch(self, endpoint: str, path: str = "", **parameters: str) -> bytes:
        """The body of a GET below the API's version."""
        with self._get_session() as session:
            return session.get(f"{self._base_url}/{self.VERSION}/{endpoint}{path}", params=parameters).content

    def follow(self, cursor: str) -> bytes:
        """The body of the page that a cursor names."""
        if not cursor.startswith(_CURSOR_PATH):
            raise Poison("BAD_CURSOR", "the page's cursor is not below /v2/entries")
        with self._get_session() as session:
            return session.get(self._base_url + cursor).content


_MakeSession = Callable[[str], BoundedSession]


class _Read(NamedTuple):
    """What a page of entries holds."""

    records: Sequence[ExchangeRecord]
    refused: Sequence[Refused]
    cursor: str
    remaining: int | None


class NcmecExchange:
    """See `records.Exchange`.

    Checkpoint: ``until``, the end of all ranges that were begun; ``ranges`` still to read, of which ``cursor``, made at
    ``cursor_time``, goes on in the first; ``again``, the ranges set aside.
    """

    kind = "ncmec"

    def __init__(
        self,
        credentials: dict[str, SecretStr],
        environment: str,
        *,
        session: _MakeSession,
        base_url: str | None = None,
        members: frozenset[int] = frozenset(),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        credentials: ``user`` and ``password``.
        environment: one of ENVIRONMENTS.
        base_url: instead of the environment's own address.
        members: only entries of these members (ESP ids); empty: of all.
        """
        self._client = _Client(
            credentials["user"].get_secret_value(),
            credentials["password"].get_secret_value(),
            NCMECEnvironment[environment],
            base_url,
            session,
        )
        self._members = members
        self._now = now
        self._reasons: dict[FingerprintType, dict[str, str]] = {}

    def pages(self, checkpoint: Checkpoint | None) -> Iterator[Page]:
        """Every page of every range that is due; see `records.Exchange.pages`."""
        state = _State.of(checkpoint)
        end = int(self._now()) - _NOT_YET_SECONDS
        if state.until < end:
            state.ranges.append((max(0, state.until - _OVERLAP_SECONDS), end))
            state.until = end
        aside = 0
        while state.ranges:
            start, stop = state.ranges[0]
            cursor = state.take_cursor(self._now())
            read, refused = self._readable(start, stop, cursor)
            narrow = stop - start <= MIN_RANGE_SECONDS
            too_large = read is not None and not cursor and (read.remaining or 0) > MAX_RANGE_ENTRIES
            if not narrow and (read is None or too_large):
                middle = (start + stop) // 2
                state.ranges[:1] = [(start, middle), (middle, stop)]
                continue
            if read is None:
                aside += 1
                if aside > MAX_SET_ASIDE:
                    raise Fatal(
                        "EXCHANGE_BROKEN",
                        f"more than {MAX_SET_ASIDE} ranges hold pages that cannot be read: ask NCMEC; what was read is "
                        "kept",
                    )
                if (start, stop) not in state.again:
                    state.again.append((start, stop))
                read = _Read((), (), _after(cursor), None)
            state.cursor = read.cursor
            state.cursor_time = self._now()
            if not read.cursor:
                state.ranges.pop(0)
            last = not state.ranges
            if last:
                # What could not be read is due again with the next pull, not with this one.
                state.ranges, state.again = state.again, []
            yield Page(
                read.records,
                (*refused, *read.refused),
                state.checkpoint(),
                last,
                read.remaining,
            )
            if last:
                return

    def vote(self, vote: Vote) -> None:
        """Feedback on every fingerprint of the entry that takes some; see `records.Exchange.vote`."""
        member, entry = parts_of(vote.entry_id)
        types = [_FINGERPRINTS[one.hash_type] for one in vote.hashes if one.hash_type in _FINGERPRINTS]
        if not types:
            raise Poison("NO_FINGERPRINT", f"entry {vote.entry_id} has no hash that NCMEC takes feedback on")
        for kind in types:
            self._client.submit_feedback(
                int(member),
                urllib.parse.quote(entry, safe=""),
                kind,
                FeedbackType.upvote if vote.up else FeedbackType.downvote,
                None if vote.up else self._reason(kind, vote.reason),
            )

    # ---- pages -------------------------------------------------------------------------------------------------

    def _readable(self, start: int, stop: int, cursor: str) -> tuple[_Read | None, list[Refused]]:
        """The page, or None and what was wrong with it."""
        refused: dict[str, Refused] = {}
        where = f"{_utc(start)}..{_utc(stop)}"
        for _ in range(PAGE_ATTEMPTS):
            content = b""
            try:
                if cursor:
                    content = self._client.follow(cursor)
                else:
                    content = self._client.fetch("entries", **{"from": _utc(start), "to": _utc(stop)})
                read = self._read(content)
                if read.cursor and read.cursor == cursor:
                    raise Poison("BAD_CURSOR", "the page names itself as the next")
                return read, []
            except Poison as error:
                refused[error.reason] = Refused("page", error.reason, digest_of(content), where)
        return None, list(refused.values())

    def _read(self, content: bytes) -> _Read:
        root = _xml(content)
        if root.tag != "queryResult":
            raise Poison("BAD_XML", "the answer is not a queryResult")
        newest: dict[str, tuple[str, ExchangeRecord]] = {}
        refused: list[Refused] = []
        for group in (*root.findall("images"), *root.findall("videos")):
            for element in group:
                try:
                    record = self._record(element, refused)
                except Poison as error:
                    refused.append(_refuse("record", error.reason, element))
                    continue
                if record is None:
                    continue
                # An id that comes twice: the newer word counts, of equals the later.
                at = element.findtext("timestamp") or ""
                if record.entry_id not in newest or newest[record.entry_id][0] <= at:
                    newest[record.entry_id] = (at, record)
        cursor = root.findtext("paging/next") or ""
        paging = GetEntriesNextInfo.from_next(cursor) if cursor else None
        remaining = max(0, paging.max - paging.start) if paging else None
        return _Read([record for _, record in newest.values()], refused, cursor, remaining)

    def _record(self, element: ET.Element, refused: list[Refused]) -> ExchangeRecord | None:
        try:
            update = NCMECEntryUpdate.from_xml(_XMLWrapper(element))
        except (AssertionError, IndexError, KeyError, TypeError, ValueError):
            raise Poison("BAD_RECORD", "an entry lacks what every entry has") from None
        if self._members and update.member_id not in self._members:
            return None
        entry_id = entry_id_of(str(update.member_id), update.id)
        if update.deleted:
            return ExchangeRecord(entry_id, (), deleted=True)
        hashes: list[ListedHash] = []
        bad = 0
        for tag, text in update.fingerprints.items():
            hash_type = _TYPES.get(tag.lower())
            if hash_type is None:
                continue
            try:
                hashes.append(listed_hash(hash_type, text))
            except Poison as error:
                bad += 1
                refused.append(Refused("hash", error.reason, digest_of(text.encode()), f"{entry_id} {hash_type}"))
        if bad and not hashes:
            # Nothing good is said of the entry: what was known of it stays.
            return None
        return ExchangeRecord(entry_id, tuple(hashes), note=update.classification or "")

    # ---- votes -------------------------------------------------------------------------------------------------

    def _reason(self, kind: FingerprintType, wanted: str) -> str:
        if kind not in self._reasons:
            root = _xml(self._client.fetch("feedback", f"/{kind.value}/reasons"))
            self._reasons[kind] = {one.get("guid", ""): one.get("name", "") for one in root.iter("reason")}
        reasons = self._reasons[kind]
        found = [guid for guid, name in reasons.items() if wanted in (guid, name)] if wanted else list(reasons)
        if len(found) != 1:
            names = ", ".join(sorted(reasons.values()))
            raise Poison("NO_REASON", f"NCMEC asks for a reason of a vote down; for {kind.value} one of: {names}")
        return found[0]


class _State:
    """The checkpoint, in work."""

    def __init__(
        self, until: int, ranges: list[tuple[int, int]], again: list[tuple[int, int]], cursor: str, cursor_time: float
    ) -> None:
        self.until = until
        self.ranges = ranges
        self.again = again
        self.cursor = cursor
        self.cursor_time = cursor_time

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> _State:
        if checkpoint is None:
            return cls(0, [], [], "", 0.0)
        try:
            return cls(
                int(checkpoint["until"]),
                [(int(start), int(stop)) for start, stop in checkpoint["ranges"]],
                [(int(start), int(stop)) for start, stop in checkpoint["again"]],
                str(checkpoint["cursor"]),
                float(checkpoint["cursor_time"]),
            )
        except (KeyError, TypeError, ValueError):
            raise Fatal(
                "BAD_CHECKPOINT", "the checkpoint is not one of an NCMEC exchange: forget it with --from-start"
            ) from None

    def take_cursor(self, now: float) -> str:
        cursor, self.cursor = self.cursor, ""
        return cursor if now - self.cursor_time <= _CURSOR_SECONDS else ""

    def checkpoint(self) -> dict[str, Any]:
        return {
            "until": self.until,
            "ranges": [list(one) for one in self.ranges],
            "again": [list(one) for one in self.again],
            "cursor": self.cursor,
            "cursor_time": self.cursor_time,
        }


def _after(cursor: str) -> str:
    """The cursor behind a page that cannot be read, where cursors are numbers: "" where that cannot be known."""
    path, _, query = cursor.partition("?")
    parameters = dict(urllib.parse.parse_qsl(query))
    try:
        start, size, end = (int(parameters[name]) for name in ("start", "size", "max"))
    except (KeyError, ValueError):
        return ""
    if not cursor.startswith(_CURSOR_PATH) or size <= 0 or start + size > end:
        return ""
    return f"{path}?{urllib.parse.urlencode({**parameters, 'start': str(start + size)})}"


def _xml(content: bytes) -> ET.Element:
    """The document without its namespaces. Raises Poison("BAD_XML")."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise Poison("BAD_XML", "the answer declares entities, which no answer needs")
    try:
        events = ET.iterparse(BytesIO(content))  # noqa: S314 (no DTD: refused above; size: bounded by the transport)
        for _, element in events:
            element.tag = element.tag.rpartition("}")[2]
    except (ET.ParseError, LookupError, ValueError):
        raise Poison("BAD_XML", "the answer is not well-formed XML") from None
    root: ET.Element = events.root  # type: ignore[attr-defined]
    return root


def _refuse(what: str, reason: str, element: ET.Element) -> Refused:
    member, entry = element.find("member"), element.findtext("id") or ""
    try:
        where = entry_id_of((member.get("id") or "") if member is not None else "", entry)
    except Poison:
        where = ""
    return Refused(what, reason, digest_of(ET.tostring(element)), where)


def _utc(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
