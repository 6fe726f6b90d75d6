"""Refusal to recreate an output that was deleted during its job, since a new folder would lack the owner's mark."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_open: list[tuple[Path, Path]] = []  # the folders that this process writes to, each with its mark


@contextlib.contextmanager
def not_made_again(folder: str | Path, mark: str) -> Iterator[None]:
    """Let this process write below a local folder only while the folder's mark exists.

    Args:
        folder: the output.
        mark: name of a file in it, which was written first.
    """
    entry = (Path(folder), Path(folder, mark))
    _open.append(entry)
    try:
        yield
    finally:
        _open.remove(entry)


def check(path: Path) -> None:
    """Check that the output of a file about to be written was not deleted. Raises FileNotFoundError."""
    for folder, mark in tuple(_open):  # a copy, since another thread may remove its folder
        if path.is_relative_to(folder) and not mark.exists():
            raise FileNotFoundError(errno.ENOENT, "was deleted while this command wrote to it", str(folder))
