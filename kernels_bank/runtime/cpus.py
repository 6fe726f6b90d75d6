"""The CPUs that this process may use by its affinity mask and its cgroup, not those of the machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of CPUs that this process may use, at least one.

    `taskset` and Slurm restrict the affinity mask; containers, systemd and Kubernetes restrict the cgroup's quota.
    """
    return max(1, min(len(os.sched_getaffinity(0)), *_quotas(cgroups, own)))


def _quotas(cgroups: Path, own: Path) -> list[int]:
    """Return the quotas, in whole CPUs, of this process's cgroup and of all above it, for both versions of cgroups."""
    return [
        *(cpus for folder in _folders(cgroups, own, "") if (cpus := _version_2(folder / "cpu.max"))),
        *(cpus for folder in _folders(cgroups, own, "cpu") if (cpus := _version_1(folder))),
        2**20,  # stands for no quota
    ]


def _folders(cgroups: Path, own: Path, controller: str) -> list[Path]:
    """Return the folder of this process's cgroup under a controller, and those above it."""
    top = cgroups / controller
    path = ""
    try:
        for line in own.read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controller in controllers.split(","):
                path = place
    except (OSError, ValueError):
        return [top]
    folder = top / path.lstrip("/")
    # Inside a container the path may be the host's, which is not mounted; the top folder is then the container's own.
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(top))]


def _version_2(file: Path) -> int | None:
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _version_1(folder: Path) -> int | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return max(1, math.ceil(quota / period)) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
