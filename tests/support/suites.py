"""A pytest plugin: a heading for each suite (tests/unit, tests/contract, …), and failure when one ran no test.

A suite that runs nothing passes in silence otherwise, and silence is what this project exists to prevent. With
``--long`` the tests that are marked so run, and without it the others: each in one of CI's two runs.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest


class _Suites:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._reporter = config.pluginmanager.get_plugin("terminalreporter")
        self._current = ""
        self._executed: Counter[str] = Counter()
        # A selection by -k or -m may leave a suite empty on purpose; then any test will do.
        narrowed = bool(config.getoption("keyword") or config.getoption("markexpr"))
        self._required = [] if narrowed else [_suite(arg) for arg in config.args]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        suite = _suite(nodeid)
        if suite != self._current and self._reporter is not None:
            self._current = suite
            self._reporter.ensure_newline()
            self._reporter.section(suite)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.outcome != "skipped":
            self._executed[_suite(report.nodeid)] += 1

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._config.option.collectonly:
            return
        idle = [suite for suite in self._required if not self._executed[suite]]
        if (idle or not self._executed) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED

    def pytest_terminal_summary(self) -> None:
        for suite in self._required:
            if not self._executed[suite] and self._reporter is not None:
                self._reporter.write_line(f"ERROR: no test of {suite} was executed", red=True)


def _suite(path: str) -> str:
    """The first two parts of a test's path: "tests/unit"."""
    return "/".join(Path(path.split("::")[0]).parts[:2])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long`, which are left out otherwise")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = bool(config.getoption("--long"))
    others = [item for item in items if bool(item.get_closest_marker("long")) is not wanted]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Suites(config), "seawall-suites")
