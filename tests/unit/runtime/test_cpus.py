"""The CPUs a process may use, from affinity masks and cgroups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernels_bank.runtime.cpus import usable_cpus


def test_the_affinity_mask_counts():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cpus() <= len(before)


@pytest.mark.parametrize(
    ("files", "cgroup", "cpus"),
    [
        ({"cpu.max": "max 100000"}, "0::/", 64),
        ({"cpu.max": "200000 100000"}, "0::/", 2),
        ({"cpu.max": "250000 100000"}, "0::/", 3),
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"slice/cpu.max": "300000 100000", "slice/job/cpu.max": "max 100000"}, "0::/slice/job", 3),
        ({"cpu.max": "400000 100000"}, "0::/not/mounted/here", 4),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", 64),
        ({"cpu.max": "nonsense"}, "0::/", 64),
        ({}, "", 64),
    ],
)
def test_the_quota_counts(
    files: dict[str, str], cgroup: str, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    own = tmp_path / "own"
    own.write_text(cgroup + "\n")
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    assert usable_cpus(tmp_path / "cgroup", own) == cpus
