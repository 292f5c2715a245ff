"""``seawall override``."""

from __future__ import annotations

import asyncio

from google.protobuf.json_format import MessageToDict
from rich.text import Text

from seawall.api.decision.v1 import decision_pb2
from seawall.api.override.v1.override_pb2 import Override
from seawall.cli import terminal
from seawall.cli.reach import local_settings, topics_of
from seawall.core.errors import Fatal
from seawall.local import verdict
from seawall.oncall import overrides
from seawall.runtime.kafka import KafkaBroker


def override(
    generation_id: str, outcome: str | None, *, reason: str, by: str, withdraw: bool, yes: bool, json_output: bool
) -> None:
    """Say what would be put on record, or put it there."""
    if (outcome is None) != withdraw:
        raise Fatal("BAD_OUTCOME", "say either what is to count (ALLOW, REVIEW, BLOCK, BLOCK_AND_REPORT) or --withdraw")
    settings = local_settings()
    broker, names = KafkaBroker(settings.kafka), topics_of(settings)

    async def work() -> Override:
        planned = await overrides.plan(broker, names, generation_id, _outcome(outcome), reason_code=reason, by=by)
        if yes:
            await overrides.write(broker, names, planned)
        return planned

    said = asyncio.run(work())
    if json_output:
        terminal.print_json({"done": yes, "override": MessageToDict(said, preserving_proto_field_name=True)})
        return
    what = verdict.outcome_name(said.outcome) if said.outcome else "what was decided"
    seen = f"{len(said.decision_ids)} decision{'' if len(said.decision_ids) == 1 else 's'} seen"
    done = "on record" if yes else "nothing is written: add --yes"
    terminal.console().print(Text(f"{generation_id}: {what} counts, by {said.by} ({said.reason_code}), {seen}; {done}"))


def _outcome(name: str | None) -> decision_pb2.Outcome.ValueType:
    if name is None:
        return decision_pb2.OUTCOME_UNSPECIFIED
    try:
        return decision_pb2.Outcome.Value(f"OUTCOME_{name.upper()}")
    except ValueError as error:
        raise Fatal("BAD_OUTCOME", f"{name}: say ALLOW, REVIEW, BLOCK or BLOCK_AND_REPORT") from error
