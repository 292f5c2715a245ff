"""Fixtures that several suites share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from seawall.local.kafka import EmbeddedKafka
from tests.support.kafka import embedded_kafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """One real broker for the whole run; tests name their topics so that they do not meet."""
    with embedded_kafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker
