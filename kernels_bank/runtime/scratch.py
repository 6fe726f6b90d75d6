"""Temporary folders that are deleted even after a kill, by the next process that needs one.

All temporary folders of a process are in one folder, on which it holds a lock while it lives. A folder whose lock is
free is a leftover. The kernel frees the lock of a killed process, and the lock works across containers that share the
folder.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_PREFIX, _LOCK = "blindsr-scratch-", "lock"
_UNLOCKED_S = 60.0  # a younger folder without a lock file may still be in creation by its process


def folder(kind: str, parent: Path | None = None) -> Path:
    """Make an empty temporary folder of this process.

    Args:
        kind: purpose, the prefix of the folder's name.
        parent: parent folder, for instance on the file system that its content will be moved to; by default the
            temporary folder of the system.
    """
    root = _root(os.getpid(), str(parent or tempfile.gettempdir()))
    return Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=root))


@contextlib.contextmanager
def temporary(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """Make an empty temporary folder that is deleted when the block ends."""
    made = folder(kind, parent)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@functools.lru_cache(maxsize=8)
def _root(process: int, parent: str) -> Path:
    """Return the folder of this process; a forked process makes its own."""
    sweep(Path(parent))
    root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    os.set_inheritable(descriptor := os.open(root / _LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600), False)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # held until the process ends
    if not (root / _LOCK).exists():  # another process took it for a leftover, between the two lines above
        os.close(descriptor)
        return _root.__wrapped__(process, parent)
    atexit.register(_remove, root, process)
    return root


def _remove(root: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(root, ignore_errors=True)


def sweep(parent: Path) -> int:
    """Delete the leftovers of this user's killed processes in `parent`; return the number of folders."""
    removed = 0
    for root in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            about = root.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            if not (root / _LOCK).exists():
                if time.time() - about.st_mtime > _UNLOCKED_S:
                    shutil.rmtree(root, ignore_errors=True)
                continue
            descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(root, ignore_errors=True)
                removed += 1
            finally:
                os.close(descriptor)
    return removed
