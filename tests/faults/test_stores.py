"""Faults of what stands beside the stream: the ledger's database, the object store."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, select

from seawall.api.decision.v1 import decision_pb2
from seawall.api.generation.v1 import generation_pb2
from seawall.ledger import database
from seawall.ledger.settings import DatabaseSettings
from seawall.ledger.tables import decisions
from tests.faults.sending import ERROR, expected, ids, send, statuses
from tests.support import model_packs, postgresql
from tests.support.kafka import PATIENCE_SECONDS
from tests.support.mesh import Lane
from tests.support.s3 import ObjectStore
from tests.support.stages import AGGREGATOR

pytestmark = [pytest.mark.faults, pytest.mark.kafka, pytest.mark.long, pytest.mark.timeout(300)]

HOLD = decision_pb2.OUTCOME_HOLD

_POLICY = """\
name: pictures
version: "1"
stages: {prompt: [], media: [classification]}
budgets: {text: 120, image: 120, video: 120, dataset: 120}
max_attempts: 10
thresholds: {red: {label: classification.red, value: 0.7}}
rules: [{id: red, when: 'evidence.score["classification.red"] >= threshold["red"]', outcome: BLOCK, reason: RED}]
"""


async def until_written(lane: Lane, db: Engine) -> Counter[str]:
    """Wait until the ledger has all that was decided; how often it has each."""
    wanted = {one.decision_id for one in lane.ledger.decisions}
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with db.connect() as connection:
                found = Counter(connection.execute(select(decisions.c.decision_id)).scalars())
            db.dispose()
            if found.keys() >= wanted:
                return found
            await asyncio.sleep(0.1)


async def test_the_ledgers_database_is_gone(lane: Lane, tmp_path: Path) -> None:
    """F30: decisions go on; the ledger waits, and writes each of them once when it is back."""
    sent, more = ids("plain", 20), [*ids("plain", 30, first=100), *ids("block", 5)]
    with postgresql.server(tmp_path / "pg") as address:
        url = postgresql.fresh(address)
        db = database.connect(DatabaseSettings(url=SecretStr(url)))
        database.migrate(db)
        await lane.start_all()
        ledger = lane.run("ledger", DATABASE__URL=url, DATABASE__TIMEOUT_SECONDS="2", MAX_RETRY_SECONDS="0.5")
        await ledger.ready()
        await send(lane, sent)
        await lane.settled()
        await until_written(lane, db)
    await send(lane, more)
    await lane.settled()
    await ledger.until_told(2, "write_failed")
    await ledger.unready()
    with postgresql.server(tmp_path / "pg"):
        await ledger.ready()
        found = await until_written(lane, db)
        await lane.finish()
    wanted = {one.decision_id for one in lane.ledger.decisions}
    assert found == Counter(wanted), "each once"
    assert lane.ledger.outcomes([*sent, *more]) == expected([*sent, *more])
    assert ledger.deaths == []


async def test_the_object_store_is_gone(lane: Lane) -> None:
    """F30: what cannot be fetched is held, never allowed; scanned again, and decided when the store is back."""
    (lane.home / "policy.yaml").write_text(_POLICY, "utf-8")
    pack = lane.home / "packs" / "red"
    model_packs.write_pack(pack)
    store = ObjectStore()
    media = {"grey": model_packs.encoded(model_packs.plain((90, 90, 90)))}
    media["red"] = model_packs.encoded(model_packs.plain((250, 20, 20)))
    store.objects.update(media)
    store.start()
    try:
        scorer = lane.run("classification", CLASSIFIERS=f'["{pack}"]', **store.environment)
        relay = lane.run("classification.relay")
        patient = {"JOIN__RESCAN_SECONDS": "0.5", "JOIN__MAX_RESCAN_SECONDS": "2"}
        await lane.ready([lane.start(AGGREGATOR, **patient), scorer, relay])

        async def scan(generation_ids: list[str]) -> None:
            await lane.send(*(picture(one, media) for one in generation_ids))

        await scan(before := [*ids("grey", 10), *ids("red", 2)])
        await lane.settled()
        store.stop()
        await scan(gone := [*ids("grey", 10, first=100), *ids("red", 2, first=100)])
        await lane.until(
            lambda: {one.generation_id for one in lane.ledger.decisions if one.outcome == HOLD} >= set(gone),
            "each is held",
        )
        assert all(statuses(lane.ledger, one, "classification") == {(ERROR, "STORE_UNAVAILABLE")} for one in gone)
        store.start()
        await lane.finish()
    finally:
        store.stop()
    assert lane.ledger.outcomes([*before, *gone]) == expected([*before, *gone], red="BLOCK")
    assert {decision.attempt for one in before for decision in lane.ledger.joint_of(one)} == {1}
    assert scorer.deaths == relay.deaths == []


def picture(generation_id: str, media: dict[str, bytes]) -> generation_pb2.Generation:
    """A generation with one picture, which the first part of its id names."""
    name = generation_id.partition(":")[0]
    made = generation_pb2.Generation(generation_id=generation_id, attempt=1, modality=generation_pb2.MODALITY_IMAGE)
    content = generation_pb2.ContentRef(
        uri=f"s3://bucket/{name}",
        sha256=hashlib.sha256(media[name]).digest(),
        media_type="image/png",
        size_bytes=len(media[name]),
    )
    made.media.add(item_id="output/0", nexus=generation_pb2.NEXUS_MODEL_OUTPUT, content=content)
    return made
