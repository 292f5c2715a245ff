"""promtool, which judges Prometheus rules: the machine's own, or Debian's, unpacked without being installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_TIMEOUT = 100
_MEND = "install promtool: on Debian, apt-get install --no-install-recommends prometheus"


def promtool() -> Path:
    """The program. Raises RuntimeError with the mend where it can neither be found nor fetched."""
    if found := shutil.which("promtool"):
        return Path(found)
    home = Path(os.environ.get("SEAWALL_CACHE") or Path.home() / ".seawall")
    kept = home / "cache" / "promtool"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        _fetch(kept)
    return kept


def _fetch(target: Path) -> None:
    if shutil.which("apt-get") is None:
        raise RuntimeError(f"there is no promtool, and no apt-get to fetch it with: {_MEND}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # Unpacked, not installed: the package would start a server.
        if _run(["apt-get", "download", "prometheus"], folder):
            # The machine may not know what packages there are; only root may ask.
            _run(["apt-get", "update", "-qq"], folder)
            _run(["apt-get", "download", "prometheus"], folder)
        packages = list(Path(folder).glob("prometheus_*.deb"))
        if not packages:
            raise RuntimeError(f"apt-get could not fetch the package prometheus: {_MEND}")
        subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True, timeout=_TIMEOUT)
        Path(folder, "usr/bin/promtool").replace(target)


def _run(command: list[str], folder: str) -> int:
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=_TIMEOUT, check=False).returncode
