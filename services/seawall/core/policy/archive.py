"""Keeps every bundle that ever decided, by digest, so that a past decision can be made again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from seawall.core.errors import Fatal
from seawall.core.policy.bundle import Policy
from seawall.core.policy.document import POLICY_FILE, REASON


class Archive:
    """A folder of bundles: <folder>/<digest>/<the bundle's files>."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, policy: Policy) -> bool:
        """Store the bundle's files unless they are there. True if they were not. Raises OSError."""
        target = self._folder / policy.digest
        if target.exists():
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: a folder with a digest's name is whole.
        beside = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        for name, data in policy.source.files.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        beside.chmod(0o755)
        try:
            os.replace(beside, target)
        except OSError:
            if not target.exists():
                raise
            # Another aggregator was quicker, with the same bytes.
            for path in sorted(beside.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            beside.rmdir()
            return False
        return True

    def find(self, digest: str) -> Policy | None:
        """The bundle with this digest, or None. Raises Fatal if what is there is not what its name says."""
        folder = self._folder / digest
        if not folder.is_dir():
            return None
        lone = next((path for path in folder.glob("*.yaml")), None)
        policy = Policy(folder if (folder / POLICY_FILE).exists() else lone or folder)
        if policy.digest != digest and lone is not None:
            # A lone file may be called policy.yaml too; its digest is over its bytes alone.
            policy = Policy(lone)
        if policy.digest != digest:
            raise Fatal(REASON, f"{folder}: its files have digest {policy.digest}: somebody has changed them")
        return policy


def find_bundle(digest: str, archive: Archive, others: Iterable[Policy]) -> Policy:
    """The bundle with this digest, from the archive or among others.

    Raises:
        Fatal: BUNDLE_UNKNOWN.
    """
    for policy in others:
        if policy.digest == digest:
            return policy
    if (found := archive.find(digest)) is not None:
        return found
    raise Fatal(
        "BUNDLE_UNKNOWN",
        f"no bundle with digest {digest} is in the archive: give its folder with --policy, or check it out of your "
        "repository as it was",
    )
