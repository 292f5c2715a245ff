"""The fault table and the fault suite say the same: each named test exists, each test of the suite has its row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TABLE: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/faults/faults.yaml").read_text("utf-8"))
OPEN = "not proven yet"


@cache
def docstrings(path: str) -> dict[str, str]:
    """The docstring of each test of a module, by its name; empty where it has none."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def proofs(row: dict[str, Any]) -> list[str]:
    return [] if row["proof"] == OPEN else list(row["proof"])


def suite() -> list[str]:
    modules = sorted(path for path in (ROOT / "tests/faults").glob("test_*.py") if path != Path(__file__))
    return [f"tests/faults/{path.name}::{name}" for path in modules for name in docstrings(f"tests/faults/{path.name}")]


def test_every_fault_has_its_row() -> None:
    assert [row["id"] for row in TABLE] == [f"F{number:02}" for number in range(1, 32)]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["id"])
def test_a_row_says_what_happens_what_must_follow_and_what_proves_it(row: dict[str, Any]) -> None:
    assert {"id", "fault", "expected", "proof"} <= row.keys() <= {"id", "fault", "expected", "proof", "proven"}
    assert all(isinstance(row[key], str) and row[key] for key in row.keys() - {"proof"})
    assert row["proof"] == OPEN or proofs(row)
    for named in proofs(row):
        path, _, test = named.partition("::")
        assert (ROOT / path).is_file(), f"{row['id']} names {path}, which does not exist"
        assert test in docstrings(path), f"{row['id']}: {path} has no {test}"


@pytest.mark.parametrize("test", suite())
def test_every_test_of_the_suite_names_its_fault_and_is_in_the_table(test: str) -> None:
    path, _, name = test.partition("::")
    numbers = set(re.findall(r"\bF\d\d\b", docstrings(path)[name]))
    assert numbers, f"{test} names no fault in its docstring"
    assert numbers == {row["id"] for row in TABLE if test in proofs(row)}
