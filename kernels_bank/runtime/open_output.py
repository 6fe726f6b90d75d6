"""An output that is deleted under its job stays deleted: made again, it would lack the mark that says whose it is."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_open: list[tuple[Path, Path]] = []  # the folders that this process writes to, each with its mark


@contextlib.contextmanager
def not_made_again(folder: str | Path, mark: str) -> Iterator[None]:
    """Let this process write below a local folder only as long as the folder's mark is there.

    Args:
        folder: the output.
        mark: name of a file in it that was written before anything else.
    """
    entry = (Path(folder), Path(folder, mark))
    _open.append(entry)
    try:
        yield
    finally:
        _open.remove(entry)


def check(path: Path) -> None:
    """Check that the output which a file is about to be written to was not deleted. Raises FileNotFoundError."""
    for folder, mark in tuple(_open):  # another thread may leave its folder
        if path.is_relative_to(folder) and not mark.exists():
            raise FileNotFoundError(errno.ENOENT, "was deleted while this command wrote to it", str(folder))
