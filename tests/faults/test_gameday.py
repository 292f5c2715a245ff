"""The game day, solved by a scripted on-call with `seawall` commands alone: one mesh, one fault after another."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from seawall.local import photographs
from seawall.local.models.install import install_demo
from tests.gameday.__main__ import game
from tests.gameday.faults import FAULTS, Fault
from tests.gameday.oncall import OnCall

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(900)]


def shared_home() -> Path:
    """Where jars and models are kept between runs."""
    return Path(os.environ.get("SEAWALL_CACHE") or Path.home() / ".seawall")


async def test_every_fault_is_found_and_mended_with_commands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F12, F16, F22 and eight more: each is found by what commands say, mended with them, and decisions flow again."""
    install_demo(shared_home(), lambda line: None)
    monkeypatch.setenv("SEAWALL_HOME", str(shared_home()))
    home = tmp_path / "home"
    async with game(home) as found:
        monkeypatch.setenv("SEAWALL_HOME", str(home))
        monkeypatch.setenv("SEAWALL_KAFKA__BOOTSTRAP_SERVERS", found.mesh.kafka.bootstrap_servers)
        picture = home / "camera.png"
        picture.write_bytes(photographs.original("camera"))
        for fault in FAULTS:
            on_call = await asyncio.to_thread(OnCall, home)
            await fault.inject(found)
            await asyncio.to_thread(solve, on_call, fault, picture)


def solve(on_call: OnCall, fault: Fault, picture: Path) -> None:
    """Work until what was broken is written down and decisions flow."""

    def mended() -> bool:
        # First, since a platform never rests: what nobody sends anything through does not show that it is broken.
        sent = on_call.seawall("submit", "--prompt", "a camera", "--image", str(picture), "--timeout", "60")
        return sent.exit_code == 0 and any(fault.finding in finding for finding in on_call.findings)

    try:
        on_call.work(mended)
    except AssertionError as error:
        raise AssertionError(f"{fault.name} ({fault.story}): {error}") from None
