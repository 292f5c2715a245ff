"""Which seeds: a thousand, more (`--seeds 20000`), or the one that failed (`--seed 4711`)."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulation")
    group.addoption("--seed", type=int, default=None, help="run this seed alone, and tell what happens in it")
    group.addoption("--seeds", type=int, default=1_000, help="how many seeds, from 0 on")
