"""The unpacked bank in a node's cache: mapped only if it was compared with the manifest since the last boot.

A mark next to the file records the comparison. It names the boot and the file's identity and times, so it does not
apply to a file that was written to, replaced, or read from a disk that was detached meanwhile. Marks count only in a
folder that no other user can write to.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.runtime.process import boot_id
from kernels_bank.store import Manifest, content_digest

_MARK_BYTES = 4096
_LARGE = 2 << 30  # bytes of kernels; a smaller bank is soon in memory as a whole


def mapped(path: Path, manifest: Manifest) -> np.ndarray | None:
    """Map the unpacked kernels of a bank; return None if the file is missing or does not hold them.

    Args:
        path: a .npy file.
        manifest: manifest of the bank.
    """
    spec = manifest.spec
    if not path.is_file():
        return None
    before = _identity(path)
    try:
        kernels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        return None
    if kernels.shape != (spec.count, spec.size, spec.size) or kernels.dtype != np.dtype("<f4"):
        return None
    if not kernels.flags.c_contiguous:
        return None
    mark = path.with_suffix(".verified")
    if before is not None and _is_private(path.parent) and _read(mark) == before:
        return _for_draws(kernels)
    start = 0
    for shard in manifest.shards:
        if content_digest(kernels[start : start + shard.rows]) != shard.content:
            return None
        start += shard.rows
    if (
        before is not None
        and before == _identity(path)
        and _is_private(path.parent)
        and os.access(path.parent, os.W_OK)
    ):
        storage.write_json(mark, before)
    return _for_draws(kernels)


def _for_draws(kernels: np.ndarray) -> np.ndarray:
    """Advise the kernel of random access to a large bank: by default each draw would read 128 KiB or more."""
    if kernels.nbytes > _LARGE and isinstance(kernels.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        kernels.base.madvise(mmap.MADV_RANDOM)
    return kernels


def _identity(path: Path) -> dict[str, str] | None:
    """Return boot, place and times of a file; None if the system does not identify boots."""
    boot = boot_id()
    if boot is None:
        return None
    about = path.stat()
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return {"boot": boot} | {name: str(getattr(about, name)) for name in names}


def _is_private(folder: Path) -> bool:
    """Return whether only this user or the system's can write to a folder."""
    about = folder.stat()
    return about.st_uid in (0, os.getuid()) and about.st_mode & 0o022 == 0


def _read(mark: Path) -> object:
    try:
        return storage.read_json(mark, limit=_MARK_BYTES) if mark.exists() else None
    except ArtefactError:
        return None
