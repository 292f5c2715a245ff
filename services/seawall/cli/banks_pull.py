"""``seawall banks pull`` and ``seawall banks vote``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.text import Text

from seawall.cli.terminal import console, print_json
from seawall.core.errors import Fatal, Poison, SeawallError
from seawall.perceptual_hashing.bank_store import BankStore
from seawall.perceptual_hashing.exchanges import pull as pulling
from seawall.perceptual_hashing.exchanges.connect import connect
from seawall.perceptual_hashing.exchanges.pull import Pull, PullReport
from seawall.perceptual_hashing.exchanges.settings import SECTION, ExchangesSettings
from seawall.runtime.settings import load_settings

#: Everything was read that can be, and something was set aside or not taken out: a person should look.
EXIT_SET_ASIDE: Final = 3
_PROGRESS_SECONDS: Final = 1.0


def pull(
    names: Sequence[str],
    *,
    json_output: bool,
    dry_run: bool = False,
    from_start: bool = False,
    allow_sweep: bool = False,
) -> None:
    """Pull the exchanges of these names, or all of them; one that fails does not keep the others from being pulled."""
    settings = _settings()
    unknown = [name for name in names if name not in settings.sources]
    if unknown or not settings.sources:
        raise _unknown(unknown, settings)
    store = BankStore(settings.banks.store)
    results: list[tuple[PullReport, SeawallError | None]] = []
    try:
        for name in names or sorted(settings.sources):
            source = settings.sources[name]
            report, error = PullReport(name, source.bank.name), None
            try:
                one = Pull(
                    name,
                    source,
                    connect(name, source),
                    store,
                    settings.set_aside,
                    dry_run=dry_run,
                    from_start=from_start,
                    allow_sweep=allow_sweep,
                    progress=_Progress(),
                )
                report = one.report
                one.run()
            except SeawallError as failed:
                error = failed
            results.append((report, error))
            if not json_output:
                _show(report, error, dry_run=dry_run)
    finally:
        store.close()
    if json_output:
        print_json({"dry_run": dry_run, "exchanges": [_document(report, error) for report, error in results]})
    sys.exit(_exit_status(results))


def vote(name: str, entry_id: str, *, up: bool, reason: str, json_output: bool) -> None:
    """Tell exchange ``name`` what we think of one of its entries."""
    settings = _settings()
    if name not in settings.sources:
        raise _unknown([name], settings)
    source = settings.sources[name]
    store = BankStore(settings.banks.store)
    try:
        pulling.vote(connect(name, source), store, source.bank.name, entry_id, up=up, reason=reason)
    except Poison as error:
        # A vote that cannot be cast is the caller's to mend, not a record to set aside.
        raise Fatal(error.reason, error.detail) from None
    finally:
        store.close()
    if json_output:
        print_json({"exchange": name, "entry_id": entry_id, "vote": "up" if up else "down"})
    else:
        console().print(f"{name} took the vote {'up' if up else 'down'} on {entry_id}")


class _Progress:
    """A line on standard error, at most one a second: standard output is for the result."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._next = 0.0

    def __call__(self, report: PullReport) -> None:
        now = time.monotonic()
        if now < self._next and not report.complete:
            return
        self._next = now + _PROGRESS_SECONDS
        left = "" if report.remaining is None else f", about {report.remaining} to come"
        self._console.print(
            Text(f"{report.exchange}: page {report.pages}, {report.listed} listed, {report.withdrawn} withdrawn{left}"),
            style="dim",
        )


def _settings() -> ExchangesSettings:
    # At debug, these libraries would write addresses and bodies: an address may hold a token, a body the list.
    for library in ("urllib3", "requests", "threatexchange"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    return load_settings(ExchangesSettings, SECTION)


def _unknown(names: Sequence[str], settings: ExchangesSettings) -> Fatal:
    known = ", ".join(sorted(settings.sources)) or "none"
    what = f"there is no exchange {', '.join(names)}" if names else "there is no exchange"
    return Fatal("NO_EXCHANGE", f"{what} in the settings (known: {known}): add it below {SECTION}.sources")


def _exit_status(results: Sequence[tuple[PullReport, SeawallError | None]]) -> int:
    if any(error is not None for _, error in results):
        return 1
    return EXIT_SET_ASIDE if any(report.set_aside or report.sweep_postponed for report, _ in results) else 0


def _document(report: PullReport, error: SeawallError | None) -> dict[str, Any]:
    failed = None if error is None else {"reason": error.reason, "detail": error.detail}
    return {**asdict(report), "error": failed}


def _show(report: PullReport, error: SeawallError | None, *, dry_run: bool) -> None:
    out = console()
    line = Text(f"{report.exchange:<24} {report.bank:<24} ", "bold")
    line.append("would change: " if dry_run else "")
    line.append(
        f"{report.listed} listed, {report.withdrawn + report.swept} taken out, {report.unchanged} unchanged, "
        f"{report.unsupported} without a hash for us, {report.pages} pages"
    )
    out.print(line)
    if report.set_aside:
        what = ", ".join(f"{count} {kind}" for kind, count in sorted(report.set_aside.items()))
        out.print(Text(f"  set aside: {what}", "yellow"))
    if report.sweep_postponed:
        out.print(Text(f"  not taken out: {report.sweep_postponed}", "yellow"))
    if error is not None:
        kept = "" if report.pages == 0 else "; what was read is kept, and the next pull goes on from there"
        out.print(Text.assemble(("  error", "red"), f": {error.reason}: {error.detail}{kept}"))
