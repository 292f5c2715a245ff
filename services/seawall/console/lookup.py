"""A generation's decisions, wherever they are to be had: the ledger says where, Kafka has the records; each does alone
what it can while the other is away. A generation of another tenant is not found, exactly as one that does not exist."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import Engine, RowMapping

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.console.explaining import explained, override_of
from seawall.console.records import DecisionRecords, Place
from seawall.console.shapes import Explained
from seawall.core import identity
from seawall.core.errors import Retryable, SeawallError
from seawall.ledger import queries
from seawall.ledger.queries import Filter
from seawall.local.explain import Found

#: Decisions of one generation that a page shows: attempts are few, late signals usually too.
_MOST: Final = 40
_LATE: Final = decision_pb2.DECISION_KIND_AMENDMENT

_FROM_SUMMARY: Final = (
    "Kafka does not give the decision's record (it is away, or retention has deleted it): this is the ledger's "
    "summary, without waterfall and items."
)
_FROM_KAFKA: Final = "The ledger could not be asked ({reason}): this was read from decisions.v1 itself."
_LEDGER_BEHIND: Final = "The ledger has not come so far yet: this was read from decisions.v1 itself."


class LookUp:
    """Finds and explains."""

    def __init__(self, db: Engine, records: DecisionRecords) -> None:
        self._db = db
        self._records = records

    async def explain(
        self, generation_id: str, tenant_id: str | None, behind: Callable[[], float | None]
    ) -> Explained | None:
        """Why the generation was decided as it was; None if it is not found.

        Args:
            behind: seconds that the ledger is behind, None where nobody knows: what it lacks may be in the topic.

        Raises Retryable where neither the ledger nor Kafka can say.
        """
        if not identity.is_id(generation_id):
            return None
        try:
            rows, said = await asyncio.to_thread(self._in_ledger, generation_id)
        except SeawallError as error:
            return await self._from_kafka(generation_id, tenant_id, _FROM_KAFKA.format(reason=error.reason))
        # First, so that what is another tenant's takes the way of what does not exist.
        rows = _rows_of(rows, tenant_id)
        if not rows:
            if await asyncio.to_thread(behind) == 0:
                return None
            return await self._from_kafka(generation_id, tenant_id, _LEDGER_BEHIND)
        notes = []
        try:
            found = await self._records.at([Place(row["partition"], row["offset"]) for row in rows])
        except Retryable:
            found = []
        # A topic that was made anew has other records at the same coordinates.
        found = [one for one in found if one.decision.generation_id == generation_id]
        if len(found) < len(rows):
            notes.append(_FROM_SUMMARY)
        return explained(
            generation_id, found, rows, _theirs(override_of(said) if said is not None else None, tenant_id), notes
        )

    def _in_ledger(self, generation_id: str) -> tuple[Sequence[RowMapping], RowMapping | None]:
        """The rows of a generation's decisions, and that of a person's last word on it."""
        rows, _ = queries.find(self._db, Filter(generation_id=generation_id), limit=_MOST)
        return rows, queries.overrides_of(self._db, [generation_id]).get(generation_id)

    async def _from_kafka(self, generation_id: str, tenant_id: str | None, note: str) -> Explained | None:
        found, said = await self._records.of(generation_id)
        return explained(generation_id, _records_of(found, tenant_id), [], _theirs(said, tenant_id), [note])


def _rows_of(rows: Sequence[RowMapping], tenant_id: str | None) -> list[RowMapping]:
    """The tenant's. A late signal's decision names no tenant: it is theirs whose generation record it speaks of."""
    if tenant_id is None:
        return list(rows)
    theirs = [row for row in rows if row["tenant_id"] == tenant_id]
    about = {(row["generation_partition"], row["generation_offset"]) for row in theirs}
    late = [
        row
        for row in rows
        if row["kind"] == _LATE
        and not row["tenant_id"]
        and (row["generation_partition"], row["generation_offset"]) in about
    ]
    return theirs + late


def _records_of(found: Sequence[Found], tenant_id: str | None) -> list[Found]:
    if tenant_id is None:
        return list(found)
    theirs = [one for one in found if one.decision.tenant_id == tenant_id]
    about = {_generation(one) for one in theirs}
    late = [
        one for one in found if one.decision.kind == _LATE and not one.decision.tenant_id and _generation(one) in about
    ]
    return theirs + late


def _theirs(said: Override | None, tenant_id: str | None) -> Override | None:
    """A person's word, if it is on a generation of the tenant's: another's may have the same id."""
    return said if said is not None and tenant_id in (None, said.tenant_id) else None


def _generation(one: Found) -> tuple[int, int]:
    record = one.decision.generation_record
    return record.partition, record.offset
