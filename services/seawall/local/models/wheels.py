"""Fetches the packages named in ``wheels.lock``, by name and pinned by hash, with pip as this machine has it set up."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import venv
from importlib import util
from pathlib import Path
from typing import NamedTuple

from seawall.core.errors import Fatal, Retryable

LOCK_FILE = Path(__file__).parent / "wheels.lock"
_PIN = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[0-9.]+) \\\n +--hash=sha256:(?P<sha256>[0-9a-f]{64})$", re.M)
_DOWNLOAD_SECONDS = 900
_VENV_SECONDS = 120


class Pin(NamedTuple):
    """One package of the lock file."""

    name: str
    version: str
    #: SHA-256 of the wheel, hex.
    sha256: str


def pins() -> dict[str, Pin]:
    """The lock file's packages, by name."""
    return {match["name"]: Pin(**match.groupdict()) for match in _PIN.finditer(LOCK_FILE.read_text(encoding="utf-8"))}


def fetch(name: str, cache: Path) -> Path:
    """The wheel of a pinned package, from the cache or else downloaded into it.

    Raises:
        Retryable: ``DOWNLOAD_FAILED``, with pip's last line.
        Fatal: ``NO_PIP``, with the mend.
    """
    pin = pins()[name]
    found = _cached(pin, cache)
    if found is not None:
        return found
    cache.mkdir(parents=True, exist_ok=True)
    # Within the cache, so that the last step is a rename on one file system.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
        requirement = Path(folder, "requirements.txt")
        requirement.write_text(f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="ascii")
        with tempfile.TemporaryDirectory(prefix="seawall-pip-") as scratch:
            _pip(_python_with_pip(Path(scratch)), requirement, Path(folder), name)
        for wheel in Path(folder).glob("*.whl"):
            os.replace(wheel, cache / wheel.name)
    found = _cached(pin, cache)
    if found is None:
        raise Retryable("DOWNLOAD_FAILED", f"pip brought no wheel of {name} with the pinned hash: try again")
    return found


def _cached(pin: Pin, cache: Path) -> Path | None:
    for wheel in sorted(cache.glob(f"{pin.name.replace('-', '_')}-{pin.version}-*.whl")):
        with wheel.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == pin.sha256:
                return wheel
    return None


def _pip(python: str, requirement: Path, destination: Path, name: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--progress-bar", "off", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--dest", str(destination), "--requirement", str(requirement)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Retryable("DOWNLOAD_FAILED", f"{name} did not arrive in {_DOWNLOAD_SECONDS} s: try again") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1].strip() if lines else "no message"
        raise Retryable("DOWNLOAD_FAILED", f"pip could not download {name} ({last}): check its index settings")


def _python_with_pip(scratch: Path) -> str:
    """This interpreter if it has pip; else one in a throw-away environment, where ensurepip puts the bundled pip."""
    if util.find_spec("pip") is not None:
        return sys.executable
    mend = "no pip here: `python -m ensurepip`, or `uv pip install pip`, then try again"
    if util.find_spec("ensurepip") is None:
        raise Fatal("NO_PIP", mend)
    try:
        venv.EnvBuilder(with_pip=False).create(scratch)
        python = str(scratch / "bin" / "python")
        subprocess.run(
            [python, "-m", "ensurepip", "--default-pip"], capture_output=True, timeout=_VENV_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Fatal("NO_PIP", mend) from error
    return python
