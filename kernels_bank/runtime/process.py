"""Identification of processes, and whether they are still alive. A process id alone can be reused."""

from __future__ import annotations

import functools
import getpass
import os
import pwd
import socket
from pathlib import Path
from typing import Any

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_process() -> dict[str, Any]:
    """Return the identity of this process: where it runs, its id there, and when it started."""
    return {"host": socket.gethostname(), "where": _where(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(process: dict[str, Any]) -> bool | None:
    """Check whether a process described by `this_process` has ended.

    Returns:
        None if this cannot be determined here: it ran on another machine, in another container, or before a boot.
    """
    if not process.get("where") or process["where"] != _where():
        return None
    return _started(int(process["pid"])) != process["started"]


def user_name() -> str:
    """Return the user of this process: a name, or the number of a user without a name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def ensure_home() -> None:
    """Set HOME if it is not set: MLflow fails at import for a user without a home directory.

    Such users, as in containers, get the value that container engines set.
    """
    if os.environ.get("HOME"):
        return
    try:
        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        os.environ["HOME"] = "/"


def boot_id() -> str | None:
    """Return an id of this boot of the machine; None if the system has none."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return None


@functools.lru_cache(maxsize=1)
def _where() -> str:
    """Return an id shared by processes that can see one another: the boot and the namespace of process ids."""
    boot = boot_id()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}" if boot else ""


def _started(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot; None if there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]
