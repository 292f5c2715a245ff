"""Meta's ThreatExchange: the hashes of one privacy group.

Over the client of the `threatexchange` library. Its requests are sent through our session here: the library's own GET
leaves its session, and so every time limit and retry, aside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import requests
from pydantic import SecretStr
from threatexchange.exchanges.clients.fb_threatexchange.api import ThreatExchangeAPI, is_valid_app_token
from threatexchange.exchanges.clients.fb_threatexchange.threat_updates import ThreatUpdateJSON
from threatexchange.exchanges.fetch_state import AggregateSignalOpinionCategory
from threatexchange.exchanges.impl.fb_threatexchange_api import FBThreatExchangeIndicatorRecord

from seawall.core.errors import Fatal, Poison, Retryable
from seawall.perceptual_hashing.exchanges.records import (
    Checkpoint,
    ExchangeRecord,
    Page,
    Refused,
    Vote,
    digest_of,
    entry_id_of,
    listed_hash,
    parts_of,
)
from seawall.perceptual_hashing.exchanges.transport import BoundedSession

BASE_URL: Final = ThreatExchangeAPI._TE_BASE_URL
_PAGE_SIZE: Final = 500
_PAGE_ATTEMPTS: Final = 3
#: ThreatExchange forgets deletions after 90 days: a list not looked at for so long is fetched afresh.
_STALE_SECONDS: Final = 85 * 24 * 60 * 60
_TYPES: Final = {
    "HASH_PDQ": "pdq",
    "HASH_MD5": "md5",
    "HASH_VIDEO_MD5": "md5",
    "HASH_SHA1": "sha1",
    "HASH_SHA256": "sha256",
    "HASH_VIDEO_SHA256": "sha256",
}
_FIELDS: Final = ("id", *FBThreatExchangeIndicatorRecord.te_threat_updates_fields())


class _Client(ThreatExchangeAPI):
    """The library's client on our session."""

    def __init__(self, token: str, base_url: str, session: Callable[[str], BoundedSession]) -> None:
        super().__init__(token, endpoint_override=base_url)
        self._make_session = session

    def _get_session(self) -> requests.Session:
        return self._make_session(self._base_url)

    def get_json_from_url(
        self, url: str, params: dict[str, Any] | None = None, *, json_obj_hook: Callable[..., Any] | None = None
    ) -> Any:
        with self._get_session() as session:
            content = session.get(url, params=params or {}).content
        try:
            return json.loads(content, object_hook=json_obj_hook)
        except ValueError:
            raise Poison("BAD_JSON", digest_of(content)) from None


class MetaThreatExchange:
    """See `records.Exchange`.

    Checkpoint: ``since``, the newest update that was read (they come in order of time); ``time``, when; ``afresh``,
    whether the whole list is being read. A page that stays unreadable ends the pull: only it says which is next.
    """

    kind = "threatexchange"

    def __init__(
        self,
        credentials: dict[str, SecretStr],
        privacy_group: int,
        *,
        session: Callable[[str], BoundedSession],
        base_url: str = BASE_URL,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        credentials: ``access_token``, an app's, "ID|secret".
        """
        token = credentials["access_token"].get_secret_value()
        if not is_valid_app_token(token):
            raise Fatal("BAD_CREDENTIALS", "ThreatExchange's access_token must be an app's own: ID|secret")
        self._client = _Client(token, base_url, session)
        self._group = privacy_group
        self._now = now

    def pages(self, checkpoint: Checkpoint | None) -> Iterator[Page]:
        """See `records.Exchange.pages`."""
        since, afresh = 0, True
        if checkpoint is not None:
            try:
                if self._now() - float(checkpoint["time"]) <= _STALE_SECONDS:
                    since, afresh = int(checkpoint["since"]), bool(checkpoint["afresh"])
            except (KeyError, TypeError, ValueError):
                raise Fatal(
                    "BAD_CHECKPOINT", "the checkpoint is not one of ThreatExchange: forget it with --from-start"
                ) from None
        cursor = self._client.get_threat_updates(
            self._group, start_time=since or None, page_size=_PAGE_SIZE, fields=_FIELDS
        )
        parameters = dict(cursor.params)
        while True:
            updates, failures = self._page(cursor, parameters, since)
            parameters = {}
            records, refused, newest = self._records(updates)
            since = max(since, newest)
            last = bool(cursor.done)
            position = {"since": since, "time": self._now(), "afresh": afresh and not last}
            yield Page(records, (*failures, *refused), position, last, afresh=afresh)
            if last:
                return

    def _page(self, cursor: Any, parameters: dict[str, Any], since: int) -> tuple[list[Any], list[Refused]]:
        failures: list[Refused] = []
        for _ in range(_PAGE_ATTEMPTS):
            # The cursor forgets its parameters once they are sent; a page that is asked for again needs them.
            cursor.params = dict(parameters)
            try:
                updates = cursor.next()
                if isinstance(updates, list):
                    return updates, failures
                digest = ""
            except Poison as error:
                digest = error.detail
            except AttributeError:  # the answer is JSON, and no object
                digest = ""
            failures.append(Refused("page", "BAD_JSON", digest, f"since {since}"))
        raise Retryable(
            "BROKEN_PAGE",
            f"ThreatExchange's page since {since} cannot be read: run the pull again later; what was read is kept",
        )

    def vote(self, vote: Vote) -> None:
        """A reaction, HELPFUL or NOT_HELPFUL, to every descriptor of the indicator but our own."""
        (indicator,) = parts_of(vote.entry_id)
        try:
            descriptors = self._client.get_threat_descriptors_from_indicator(int(indicator))
            ours = self._client.app_id
            others = [int(one["id"]) for one in descriptors if int(one.get("owner", {}).get("id", 0)) != ours]
        except (KeyError, TypeError, ValueError):
            raise Poison("BAD_RECORD", f"ThreatExchange knows no descriptors of entry {vote.entry_id}") from None
        react: Callable[[int], Any] = (
            self._client.react_upvote_threat_descriptor if vote.up else self._client.react_downvote_threat_descriptor
        )
        for descriptor in others:
            react(descriptor)

    def _records(self, updates: list[Any]) -> tuple[list[ExchangeRecord], list[Refused], int]:
        records: dict[str, ExchangeRecord] = {}
        refused = []
        newest = 0
        for raw in updates:
            try:
                update = ThreatUpdateJSON(raw)
                newest = max(newest, update.time)
                record = self._record(update)
            except Poison as error:
                refused.append(Refused("record", error.reason, _digest(raw), ""))
            except (AttributeError, AssertionError, KeyError, TypeError, ValueError):
                refused.append(Refused("record", "BAD_RECORD", _digest(raw), ""))
            else:
                if record is not None:
                    records[record.entry_id] = record
        return list(records.values()), refused, newest

    def _record(self, update: ThreatUpdateJSON) -> ExchangeRecord | None:
        hash_type = _TYPES.get(update.threat_type)
        if hash_type is None:
            return None
        entry_id = entry_id_of(str(update.id))
        indicator = FBThreatExchangeIndicatorRecord.from_threatexchange_json(self._client.app_id, update)
        if indicator is None:
            return ExchangeRecord(entry_id, (), deleted=True)
        opinion = indicator.get_as_aggregate_opinion()
        if opinion.category is not AggregateSignalOpinionCategory.POSITIVE_CLASS:
            # Nobody says that it is what the group collects, or somebody disputes it.
            return ExchangeRecord(entry_id, (), deleted=True)
        return ExchangeRecord(entry_id, (listed_hash(hash_type, update.indicator),))


def _digest(raw: Any) -> str:
    return digest_of(json.dumps(raw, sort_keys=True).encode())
