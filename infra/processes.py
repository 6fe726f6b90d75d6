"""The processes of a local cluster, which are found by a mark in their environment, and their termination."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

# Every process of a cluster has this variable in its environment, as FOLDER#ROLE, so `down` finds them from any shell.
MARK = "BLINDSR_LOCAL_CLUSTER"


def processes(folder: Path) -> dict[int, str]:
    """Return process id -> role for all processes of the cluster.

    They are the processes with the mark and all their descendants, even those that changed their environment.
    """
    parents, roles = {}, {}
    prefix = f"{MARK}={folder}#".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            environ = (entry / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or belongs to another user
        if state == "Z":
            continue
        pid = int(entry.name)
        parents[pid] = int(parent)
        for item in environ.split(b"\0"):
            if item.startswith(prefix):
                roles[pid] = item.removeprefix(prefix).decode()
    grew = True
    while grew:
        below = {pid: roles[up_] for pid, up_ in parents.items() if pid not in roles and up_ in roles}
        roles |= below
        grew = bool(below)
    return roles


def of_role(folder: Path, role: str) -> set[int]:
    """Find the processes of a node or a server."""
    return {pid for pid, name in processes(folder).items() if name == role}


def end(found: Iterable[int], *, gently: bool = True) -> None:
    """Send SIGTERM, and SIGKILL five seconds later."""
    deadline = time.monotonic() + 5
    if gently:
        signal_all(found, signal.SIGTERM)
        while any(Path(f"/proc/{pid}").exists() for pid in found) and time.monotonic() < deadline:
            time.sleep(0.1)
    signal_all(found, signal.SIGKILL)
    while any(running(pid) for pid in found) and time.monotonic() < deadline + 30:
        time.sleep(0.05)


def signal_all(found: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those that still exist."""
    for pid in found:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def running(pid: int) -> bool:
    """Check whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
