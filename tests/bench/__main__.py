"""``python -m tests.bench NAME [--json]``"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import pkgutil
import sys

import tests.bench
from tests.bench.harness import Report

_NOT_BENCHES = {"__main__", "harness"}


def main() -> int:
    names = sorted(
        module.name
        for module in pkgutil.iter_modules(tests.bench.__path__)
        if module.name not in _NOT_BENCHES and not module.name.startswith("_")
    )
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=names, help="the benchmark; without it they are listed")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    if arguments.name is None:
        for name in names:
            print(f"{name:16} {(importlib.import_module(f'tests.bench.{name}').__doc__ or '').splitlines()[0]}")
        return 0
    report = Report(arguments.name)
    asyncio.run(importlib.import_module(f"tests.bench.{arguments.name}").run(report))
    report.print(as_json=arguments.json)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
