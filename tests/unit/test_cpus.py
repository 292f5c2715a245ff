from __future__ import annotations

import os
from pathlib import Path

import pytest

from seawall.runtime import cpus


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("maximum", "expected"), [("150000 100000", 1.5), ("max 100000", None), ("", None), ("50000 0", None)]
)
def test_a_quota_of_version_2_is_cpus(tmp_path: Path, maximum: str, expected: float | None) -> None:
    group(tmp_path / "pod", cpu__max=maximum)
    (tmp_path / "own").write_text("0::/pod\n")
    assert cpus.quota(tmp_path, tmp_path / "own") == expected


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    group(tmp_path / "slice", cpu__max="200000 100000")
    group(tmp_path / "slice" / "pod", cpu__max="400000 100000")
    (tmp_path / "own").write_text("0::/slice/pod\n")
    assert cpus.quota(tmp_path, tmp_path / "own") == 2.0


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path, cpu__max="100000 100000")
    (tmp_path / "own").write_text("0::/\n")
    assert cpus.quota(tmp_path, tmp_path / "own") == 1.0


@pytest.mark.parametrize(("allowance", "expected"), [("250000", 2.5), ("-1", None)])
def test_a_quota_of_version_1_is_cpus(tmp_path: Path, allowance: str, expected: float | None) -> None:
    group(tmp_path / "cpu" / "pod", **{"cpu__cfs_quota_us": allowance, "cpu__cfs_period_us": "100000"})
    (tmp_path / "own").write_text("4:cpu,cpuacct:/pod\n3:memory:/pod\n")
    assert cpus.quota(tmp_path, tmp_path / "own") == expected


def test_no_cgroups_are_no_quota(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path / "absent", tmp_path / "own") is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 3), (0.5, 1), (1.5, 2), (64.0, 3)])
def test_a_part_of_a_cpu_counts_as_one_and_affinity_bounds_it(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5}, raising=False)
    monkeypatch.setattr(cpus, "quota", lambda cgroups, own: limit)
    assert cpus.available() == expected
