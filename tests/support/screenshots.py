"""The console's pictures for the documents: `./scripts/screenshots [FOLDER]`.

Starts the mesh with ledger and console, sends the demo's samples over some minutes, takes every page, light and dark.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page
from rich.console import Console

from seawall.api.decision.v1 import decision_pb2
from seawall.cli.reach import LocalSettings, topics_of
from seawall.cli.terminal import StatusLines
from seawall.local import demo, demo_bank
from seawall.local.demo import Summary
from seawall.local.mesh import Mesh
from seawall.local.platform import Platform
from seawall.local.samples import stream
from seawall.oncall import overrides
from seawall.runtime.content import ContentStore
from seawall.runtime.sealing import Sealer
from tests.support import chromium

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "images" / "console"
PORTIONS = 8
#: Of all portions together, seconds.
STROLL = float(os.environ.get("SEAWALL_SCREENSHOTS_SECONDS", "180"))
SIZE: Any = {"width": 1280, "height": 860}
NARROW: Any = {"width": 390, "height": 844}


async def main(folder: Path) -> None:
    shared = Path(os.environ.get("SEAWALL_CACHE") or Path.home() / ".seawall")
    with tempfile.TemporaryDirectory(prefix="seawall-screenshots-") as name:
        home = Path(name)
        os.environ["SEAWALL_HOME"] = str(home)
        for kept in ("cache", "models"):
            (home / kept).symlink_to(shared / kept, target_is_directory=True)
        await asyncio.to_thread(demo_bank.ensure, home / "banks")
        environment = {"SEAWALL_HTTP__PORT": "0"}
        async with Mesh.open(
            home, StatusLines(Console(stderr=True)), environment=environment, beside=("ledger", "console")
        ) as mesh:
            settings = LocalSettings(kafka=mesh.kafka_settings)
            sealer, store = Sealer.from_settings(settings.sealing), ContentStore(settings.content)
            async with Platform.open(mesh.broker(), sealer, store, topics_of(settings)) as platform:
                summaries = await send(platform, mesh.pids)
            allowed = mildest(summaries)
            names = topics_of(settings)
            said = await overrides.plan(
                mesh.broker(), names, allowed, decision_pb2.OUTCOME_ALLOW, reason_code="FALSE_POSITIVE", by="reviewer-7"
            )
            await overrides.write(mesh.broker(), names, said)
            await asyncio.to_thread(take, folder, home / "run" / "console.link", gravest(summaries), allowed)


async def send(platform: Platform, pids: Any) -> list[Summary]:
    """The samples, portion by portion, so that the sparklines have something to draw."""
    samples, summaries = stream(), []
    for number in range(PORTIONS):
        began = time.monotonic()
        summaries.append(await demo.run(platform, samples[number::PORTIONS], pids))
        print(f"portion {number + 1} of {PORTIONS}", file=sys.stderr)
        await asyncio.sleep(max(0.0, STROLL / PORTIONS - (time.monotonic() - began)))
    return summaries


def gravest(summaries: Iterable[Summary]) -> str:
    """The generation with the gravest outcome, of those whose scores were compared."""
    return max(compared(summaries))[1]


def mildest(summaries: Iterable[Summary]) -> str:
    """The generation with the mildest outcome of which a person could think otherwise."""
    return min(one for one in compared(summaries) if one[0] > decision_pb2.OUTCOME_ALLOW)[1]


def compared(summaries: Iterable[Summary]) -> list[tuple[int, str]]:
    """Outcome and generation of those whose scores were compared."""
    return [
        (result.decision.outcome, result.generation_id)
        for summary in summaries
        for result in summary.results
        if result.decision is not None and result.decision.comparisons
    ]


def take(folder: Path, link: Path, generation_id: str, allowed: str) -> None:
    """Every page, light and dark; the first one narrow too.

    Args:
        link: the file that holds the address that signs in.
        allowed: a generation that a person has allowed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = link.read_text("utf-8").partition("/login")[0]
    pages = {
        "now": "/",
        "decisions": "/decisions?since=1h",
        "decision": f"/decisions/{generation_id}",
        "overridden": f"/decisions/{allowed}",
        "dead-letters": "/dead-letters",
        "policies": "/policies",
        "artefacts": "/artefacts",
    }
    with chromium.browser() as browser:
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme, viewport=SIZE)
            page = context.new_page()
            page.goto(link.read_text("utf-8").strip())
            page.screenshot(path=folder / f"sign-in-{scheme}.png", clip={"x": 0, "y": 0, "width": 1280, "height": 420})
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("heading", name="Now", level=1).wait_for()
            until_overridden(page, address + pages["overridden"])
            for name, path in pages.items():
                page.goto(address + path)
                shoot(page, folder / f"{name}-{scheme}.png")
            if scheme == "light":
                page.set_viewport_size(NARROW)
                page.goto(address)
                page.screenshot(path=folder / "now-narrow.png")
            context.close()


def until_overridden(page: Page, address: str) -> None:
    """Look until the ledger has read the person's word. Raises TimeoutError."""
    until = time.monotonic() + 30
    page.goto(address)
    while not page.get_by_role("heading", name="A person's word").count():
        if time.monotonic() > until:
            raise TimeoutError("the ledger did not read overrides.v1")
        page.wait_for_timeout(200)
        page.reload()


def shoot(page: Page, file: Path) -> None:
    """The page down to its end, a screen and a half at most."""
    height = min(int(page.evaluate("document.documentElement.scrollHeight")), 1_280)
    page.screenshot(path=file, full_page=True, clip={"x": 0, "y": 0, "width": SIZE["width"], "height": height})
    print(file, file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
