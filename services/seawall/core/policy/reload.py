"""Takes up a changed policy while a room runs; what cannot be loaded is refused and what decides goes on.

A change is acted on once it has stood still between two looks: a folder that is still being copied is left alone. What
was refused is not tried again until it changes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seawall.core.errors import SeawallError
from seawall.core.policy import Rollout
from seawall.core.policy.archive import Archive

#: Files that are looked at; a bundle has fewer.
_MAX_FILES = 1_000

Fingerprint = frozenset[tuple[str, int, int, int]]


class Reloader:
    """Keeps the rollout up to date.

    Args:
        path: what ``Rollout.load`` takes.
        rollout: what was loaded from it.
        use: called in the event loop with a new rollout.
        tell: told "policy_reloaded", "policy_refused" and "policy_not_archived".
    """

    def __init__(
        self,
        path: Path,
        rollout: Rollout,
        use: Callable[[Rollout], None],
        tell: Callable[..., Any],
        archive: Archive,
    ) -> None:
        self._path = path
        self._rollout = rollout
        self._use = use
        self._tell = tell
        self._archive = archive
        self._settled = self._before = _fingerprint([path, *rollout.files])
        self.keep(rollout)

    async def run(self, seconds: float) -> None:
        """Look so often, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> bool:
        """Look once; take up what has changed and stood still since the last look. True if there is a new rollout."""
        files = [self._path, *self._rollout.files]
        before, self._before = self._before, await asyncio.to_thread(_fingerprint, files)
        if self._before != before or self._before == self._settled:
            return False
        self._settled = self._before
        try:
            # Compiling takes long beside a record: off the loop.
            rollout = await asyncio.to_thread(Rollout.load, self._path)
        except SeawallError as error:
            self._tell("policy_refused", reason=error.reason, detail=error.detail)
            return False
        # Bundles that are named for the first time are watched from here on.
        self._settled = self._before = await asyncio.to_thread(_fingerprint, [self._path, *rollout.files])
        if rollout.digest == self._rollout.digest:
            self._rollout = rollout
            return False
        before_digest, self._rollout = self._rollout.digest, rollout
        await asyncio.to_thread(self.keep, rollout)
        self._use(rollout)
        policy = rollout.policy
        self._tell(
            "policy_reloaded",
            policy=policy.name,
            version=policy.version,
            digest=policy.digest,
            bundles=len(rollout.policies),
            rollout=rollout.digest,
            before=before_digest,
        )
        return True

    def keep(self, rollout: Rollout) -> None:
        """Store what decides, so that its decisions can be made again. A disk that is full stops no decision."""
        for policy in rollout.policies:
            try:
                self._archive.keep(policy)
            except OSError as error:
                self._tell("policy_not_archived", reason="ARCHIVE", detail=str(error.strerror), digest=policy.digest)


def _fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """What tells the files from what they were: name, time, size and inode, links followed."""
    names: list[str] = []
    for path in dict.fromkeys(paths):
        names.append(str(path))
        for folder, _, files in os.walk(path):
            names += [os.path.join(folder, name) for name in files if name.endswith(".yaml")]
            if len(names) > _MAX_FILES:
                break
    found = []
    for name in names[:_MAX_FILES]:
        try:
            stat = os.stat(name)
        except OSError:
            continue
        found.append((name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return frozenset(found)
