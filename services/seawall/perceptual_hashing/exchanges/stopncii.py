"""StopNCII.org's hash exchange: hashes of intimate pictures that people themselves do not want shared.

Over the client of the `threatexchange` library. Withdrawn hashes are taken out here by their status; the library's own
conversion looks for it in the hash's value, and never finds it.
"""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import dacite
import requests
from pydantic import SecretStr
from threatexchange.exchanges.clients.stopncii.api import (
    StopNCIIAPI,
    StopNCIICaseStatus,
    StopNCIICSPFeedback,
    StopNCIICSPFeedbackValue,
    StopNCIIEndpoint,
    StopNCIIHashRecord,
    StopNCIISignalType,
)

from seawall.core.errors import Fatal, Poison, Retryable
from seawall.perceptual_hashing.exchanges.records import (
    Checkpoint,
    ExchangeRecord,
    Page,
    Refused,
    Vote,
    digest_of,
    listed_hash,
)
from seawall.perceptual_hashing.exchanges.transport import BoundedSession

BASE_URL: Final = StopNCIIAPI.BASE_URL
_PAGE_SIZE: Final = 800
_PAGE_ATTEMPTS: Final = 3
#: A list not looked at for so long is fetched afresh: withdrawals may have been forgotten by then.
_STALE_SECONDS: Final = 30 * 24 * 60 * 60
#: Page tokens are not for keeping.
_TOKEN_SECONDS: Final = 60 * 60
_TYPES: Final = {StopNCIISignalType.ImagePDQ: "pdq", StopNCIISignalType.VideoMD5: "md5"}
_SIGNALS: Final = {hash_type: signal for signal, hash_type in _TYPES.items()}
_GONE: Final = (StopNCIICaseStatus.Withdrawn, StopNCIICaseStatus.Deleted)


class _Client(StopNCIIAPI):
    """The library's client on our session."""

    def __init__(self, credentials: dict[str, str], base_url: str, session: Callable[[str], BoundedSession]) -> None:
        keys = {}
        if "feedback_key" in credentials:
            keys[StopNCIIEndpoint.SubmitFeedback] = credentials["feedback_key"]
        super().__init__(credentials["subscription_key"], credentials["fetch_key"], keys, base_url)
        self._make_session = session

    def _get_session(self, endpoint: StopNCIIEndpoint) -> requests.Session:
        key = self._function_keys.get(endpoint)
        if not key:
            raise Fatal("BAD_CREDENTIALS", "feedback to StopNCII needs a feedback_key among its credentials")
        session = self._make_session(self._base_url)
        session.headers.update({"x-functions-key": key, "Ocp-Apim-Subscription-Key": self._subscription_key})
        return session

    def fetch(self, since: int, token: str) -> bytes:
        """One page, as it came."""
        parameters: dict[str, str | int] = {"startTimestamp": since, "pageSize": _PAGE_SIZE}
        if token:
            parameters["nextPageToken"] = token
        with self._get_session(StopNCIIEndpoint.FetchHashes) as session:
            url = f"{self._base_url}/{StopNCIIEndpoint.FetchHashes.value}"
            return session.get(url, params=parameters).content


class StopNciiExchange:
    """See `records.Exchange`.

    Checkpoint: ``since``, from which on records are asked for; ``token``, made at ``time``, the next page of that
    answer; ``afresh``, whether this answer is the whole list. A page that stays unreadable ends the pull: only it says
    which page is next.
    """

    kind = "stopncii"

    def __init__(
        self,
        credentials: dict[str, SecretStr],
        *,
        session: Callable[[str], BoundedSession],
        base_url: str = BASE_URL,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        credentials: ``subscription_key``, ``fetch_key`` and, for votes, ``feedback_key``.
        """
        secrets = {key: value.get_secret_value() for key, value in credentials.items()}
        self._client = _Client(secrets, base_url, session)
        self._now = now

    def pages(self, checkpoint: Checkpoint | None) -> Iterator[Page]:
        """See `records.Exchange.pages`."""
        since, token, afresh = StopNCIIAPI.DEFAULT_START_TIME, "", True
        if checkpoint is not None:
            try:
                age = self._now() - float(checkpoint["time"])
                if age <= _STALE_SECONDS:
                    since, afresh = int(checkpoint["since"]), bool(checkpoint["afresh"])
                    token = str(checkpoint["token"]) if age <= _TOKEN_SECONDS else ""
            except (KeyError, TypeError, ValueError):
                raise Fatal(
                    "BAD_CHECKPOINT", "the checkpoint is not one of StopNCII: forget it with --from-start"
                ) from None
        while True:
            document, failures = self._page(since, token)
            more = document["hasMoreRecords"] is True
            following = str(document.get("nextPageToken") or "")
            if more and (not following or following == token):
                raise Retryable("BROKEN_PAGE", "StopNCII says that there is more and not where: pull again later")
            token = following if more else ""
            if not more:
                since = document["nextSetTimestamp"]
            records, refused = _records(document["hashRecords"])
            position = {"since": since, "token": token, "time": self._now(), "afresh": afresh and more}
            yield Page(records, (*failures, *refused), position, not more, afresh=afresh)
            if not more:
                return

    def vote(self, vote: Vote) -> None:
        """See `records.Exchange.vote`: Blocked, or NotBlocked."""
        opinion = StopNCIICSPFeedback(
            StopNCIICSPFeedbackValue.Blocked if vote.up else StopNCIICSPFeedbackValue.NotBlocked
        )
        feedback = {(_SIGNALS[h.hash_type], h.value.hex()): opinion for h in vote.hashes if h.hash_type in _SIGNALS}
        if not feedback:
            raise Poison("NO_FINGERPRINT", f"entry {vote.entry_id} has no hash that StopNCII takes feedback on")
        self._client.submit_feedbacks(feedback)

    def _page(self, since: int, token: str) -> tuple[dict[str, Any], list[Refused]]:
        failures: list[Refused] = []
        for _ in range(_PAGE_ATTEMPTS):
            content = self._client.fetch(since, token)
            document = _document(content)
            if document is not None:
                return document, failures
            failures.append(Refused("page", "BAD_JSON", digest_of(content), f"since {since}"))
        raise Retryable(
            "BROKEN_PAGE",
            f"StopNCII's page since {since} cannot be read (SHA-256 {failures[-1].digest}): run the pull again later, "
            "and ask StopNCII if it stays so; what was read is kept",
        )


def _document(content: bytes) -> dict[str, Any] | None:
    """The page, None if it is none."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    kinds = {"hashRecords": list, "nextSetTimestamp": int, "hasMoreRecords": bool}
    return document if all(isinstance(document.get(key), kind) for key, kind in kinds.items()) else None


def _records(raw: list[Any]) -> tuple[list[ExchangeRecord], list[Refused]]:
    records: dict[str, ExchangeRecord] = {}
    refused = []
    for one in raw:
        try:
            record = _record(one)
        except Poison as error:
            digest = digest_of(json.dumps(one, sort_keys=True).encode())
            refused.append(Refused("record", error.reason, digest, ""))
            continue
        if record is not None:
            records[record.entry_id] = record
    return list(records.values()), refused


def _record(raw: Any) -> ExchangeRecord | None:
    if not isinstance(raw, dict):
        raise Poison("BAD_RECORD", "a record is not an object")
    try:
        # An empty map of cases comes as an empty list.
        cases = raw.get("caseNumbers") or {}
        record = dacite.from_dict(
            StopNCIIHashRecord, {**raw, "caseNumbers": cases}, dacite.Config(cast=[enum.Enum, set])
        )
    except (dacite.DaciteError, ValueError, TypeError):
        raise Poison("BAD_RECORD", "a record lacks what every record has") from None
    hash_type = _TYPES.get(record.signalType)
    if hash_type is None:
        return None
    listed = listed_hash(hash_type, record.hashValue)
    # StopNCII has no id but the hash, which must not stand in logs and matches.
    entry_id = f"{hash_type}.{digest_of(listed.value)[:32]}"
    if record.hashStatus in _GONE:
        return ExchangeRecord(entry_id, (), deleted=True)
    return ExchangeRecord(entry_id, (listed,), note=record.hashStatus.value)
