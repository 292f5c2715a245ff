"""A person's word over what was decided: made, withdrawn, and read back. The only thing that lowers an outcome.

It names the decisions that the person had seen. What is decided later, a late signal's amendment or a new attempt,
counts beside it: nobody has looked at that yet.
"""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.message import DecodeError

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.core import identity
from seawall.core.clock import Clock, SystemClock
from seawall.core.errors import Fatal
from seawall.local import verdict
from seawall.oncall import decisions
from seawall.runtime.broker import Broker, Output
from seawall.runtime.scan import scan
from seawall.runtime.topics import TopicNames

_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")


async def of_generation(broker: Broker, topic: str, generation_id: str) -> Override | None:
    """What was last said of the generation, a withdrawal included; None if nobody has said anything.

    Raises Retryable as the broker seam says, Fatal("UNDECODABLE") if a record of that key is no Override.
    """
    last: Override | None = None
    async for record in scan(broker, [topic]):
        if record.key != generation_id.encode():
            continue
        try:
            last = Override.FromString(record.value or b"")
        except DecodeError as error:
            where = f"{record.topic}/{record.partition}/{record.offset}"
            raise Fatal("UNDECODABLE", f"{where} is not an Override: a newer version's, or not ours") from error
    return last


async def plan(
    broker: Broker,
    names: TopicNames,
    generation_id: str,
    outcome: decision_pb2.Outcome.ValueType,
    *,
    reason_code: str,
    by: str,
    clock: Clock | None = None,
) -> Override:
    """The record that would be written. ``outcome``: what is to count; UNSPECIFIED withdraws.

    Raises:
        Fatal: NOT_FOUND where nothing is decided, NOTHING_TO_WITHDRAW, BAD_REASON, BAD_ID, BAD_OUTCOME.
        Retryable: as the broker seam says.
    """
    if outcome == decision_pb2.OUTCOME_HOLD:
        raise Fatal("BAD_OUTCOME", "HOLD means that nobody has decided: say ALLOW, REVIEW, BLOCK or BLOCK_AND_REPORT")
    if not _REASON.match(reason_code):
        raise Fatal("BAD_REASON", "a reason code is UPPER_SNAKE_CASE: FALSE_POSITIVE, say; never a text about content")
    if not identity.is_id(by):
        raise Fatal("BAD_ID", "say who you are with an account or a pseudonym: letters, digits and . _ : - (--by)")
    known = (await decisions.of_generations(broker, names.decisions, [generation_id]))[generation_id]
    if not known:
        raise Fatal(
            "NOT_FOUND", f"{names.decisions} holds no decision of {generation_id}: there is nothing to override"
        )
    before = await of_generation(broker, names.overrides, generation_id)
    if not outcome and (before is None or not before.outcome):
        raise Fatal("NOTHING_TO_WITHDRAW", f"nothing that a person said counts for {generation_id}")
    decided = verdict.effective(known)
    now = (clock or SystemClock()).now_nanos()
    return Override(
        override_id=identity.override_id(generation_id, by, now, outcome),
        generation_id=generation_id,
        tenant_id=next((one.tenant_id for one in known if one.tenant_id), ""),
        outcome=outcome,
        reason_code=reason_code,
        by=by,
        made_unix_nano=now,
        decision_ids=[one.decision_id for one in known],
        actor_id=next((one.actor_id for one in known if one.actor_id), ""),
        outcome_before=verdict.outcome(known, before) or decision_pb2.OUTCOME_UNSPECIFIED,
        decision_id=decided.decision_id if decided else "",
        decided_unix_nano=decided.decided_unix_nano if decided else 0,
    )


async def write(broker: Broker, names: TopicNames, override: Override) -> None:
    """Put it on record. Raises Retryable when the broker does not take it: run it again."""
    producer = broker.producer()
    await producer.start()
    try:
        key = override.generation_id.encode()
        await producer.send([Output(names.overrides, None, key, override.SerializeToString(deterministic=True))])
    finally:
        await producer.stop()
