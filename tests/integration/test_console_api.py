"""The console's JSON interface against its description: schemathesis asks what it allows, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from seawall.console import api
from tests.support.console import Served, an_hour, letter, served

OPERATIONS = ("now", "decisions", "decisions/{generation_id}", "dead-letters", "policies", "artefacts")
#: Of which nothing can be asked wrongly.
WITHOUT_PARAMETERS = ("now", "artefacts")


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("console")
    with served(folder, decisions=an_hour(80), letters=[letter(1, ago=40)]) as running:
        yield running


@pytest.fixture(scope="module")
def cookie(console: Served) -> str:
    client = asyncio.run_coroutine_threadsafe(console.console.signed_in(), console.loop).result(20)
    return str(client.cookies[api.SESSION_COOKIE])


@pytest.fixture(scope="module")
def described(console: Served) -> schemathesis.BaseSchema:
    document = api.description(console.console.app.routes)
    # The session is the test's own: else it would be left out, to see what happens, and sent all the same.
    for path in document["paths"].values():
        del path["get"]["security"]
    made = schemathesis.openapi.from_dict(document)
    made.config.update(base_url=console.address)
    # Text of the right form may mean nothing: an instant that no calendar has, characters that cannot be printed.
    accepted = made.config.checks.positive_data_acceptance
    accepted.expected_statuses = [*accepted.expected_statuses, "400"]
    return made


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in OPERATIONS),
        *((path, GenerationMode.NEGATIVE) for path in OPERATIONS if path not in WITHOUT_PARAMETERS),
    ],
)
def test_every_answer_is_as_described(
    described: schemathesis.BaseSchema, cookie: str, path: str, mode: GenerationMode
) -> None:
    operation = described[f"{api.PREFIX}/{path}"]["GET"]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        case.call_and_validate(cookies={api.SESSION_COOKIE: cookie})

    ask()


def test_everything_is_described(described: schemathesis.BaseSchema) -> None:
    assert set(described) == {f"{api.PREFIX}/{name}" for name in OPERATIONS}
