"""A lane a test, on one broker for the session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from seawall.local.kafka import EmbeddedKafka
from tests.support.mesh import Lane, open_lane


@pytest.fixture
async def lane(kafka: EmbeddedKafka, tmp_path: Path) -> AsyncIterator[Lane]:
    """Topics, rooms and a ledger of the test's own."""
    async with open_lane(tmp_path, kafka.bootstrap_servers) as lane:
        yield lane
