"""Files of a local folder, with any names, and with stamps that reveal later changes."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple


class File(NamedTuple):
    """Name one file below a folder or prefix."""

    name: str  # path below the folder
    size: int
    stamp: str  # changes when the file is written to or replaced


def local_files(root: str, *, recursive: bool, odd: list[str]) -> Iterator[File]:
    """Yield every file below a folder. A folder with several links to it is entered once.

    Args:
        root: path of the folder.
        recursive: whether to enter subfolders.
        odd: list that receives the paths of entries that are neither files nor folders: dead links, pipes.
    """
    waiting, entered = [""], {_identity(root)}
    while waiting:
        below = waiting.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{root}/{below}") as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{below}/{entry.name}" if below else entry.name
                try:
                    about = entry.stat()
                except OSError:  # a dead or circular link, or a file that was just deleted
                    odd.append(name)
                    continue
                if stat.S_ISREG(about.st_mode):
                    yield File(name, about.st_size, stamp_of(about))
                elif recursive and stat.S_ISDIR(about.st_mode) and (about.st_dev, about.st_ino) not in entered:
                    entered.add((about.st_dev, about.st_ino))
                    waiting.append(name)
                elif not stat.S_ISDIR(about.st_mode):
                    odd.append(name)


def stamp_of(about: os.stat_result) -> str:
    """Return size and times of a file, including the change time, which no program can set back."""
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"


def _identity(folder: str) -> tuple[int, int]:
    try:
        about = os.stat(folder)  # noqa: PTH116 - the name may not be valid text
    except OSError:
        return (0, 0)
    return about.st_dev, about.st_ino
