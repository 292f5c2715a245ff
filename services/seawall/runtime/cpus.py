"""How many CPUs this process may really use: a container's quota is usually far below what the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available() -> int:
    """CPUs by affinity and by cgroup quota, whichever is less; a part of a CPU counts as one. At least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # Not Linux.
        allowed = os.cpu_count() or 1
    limit = quota(_CGROUPS, _OWN_CGROUP)
    return max(1, allowed if limit is None else min(allowed, math.ceil(limit)))


def quota(cgroups: Path, own: Path) -> float | None:
    """The CPU quota of this process's cgroup and of those above it, in CPUs; None without one.

    Args:
        cgroups: where the cgroup file system is mounted; version 2, or version 1 with its ``cpu`` controller below.
        own: a file as /proc/self/cgroup.
    """
    found = [limit for folder in _folders(cgroups, own) if (limit := _limit(folder)) is not None]
    return min(found, default=None)


def _folders(cgroups: Path, own: Path) -> list[Path]:
    """This process's groups, and the mount's own, which in a container is the container's."""
    folders = [cgroups, cgroups / "cpu"]
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            folder = (cgroups / "cpu" if controllers else cgroups) / path.lstrip("/")
            top = folders[1] if controllers else cgroups
            while folder != top and folder.is_relative_to(top):
                folders.append(folder)
                folder = folder.parent
    return folders


def _limit(folder: Path) -> float | None:
    try:
        allowance, period = (folder / "cpu.max").read_text(encoding="ascii").split()[:2]
    except (OSError, ValueError):
        try:
            allowance = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    # "max", or -1 in version 1: no quota.
    if not (allowance.isdigit() and period.isdigit() and int(period)):
        return None
    return int(allowance) / int(period)
