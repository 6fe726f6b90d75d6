"""Folders and prefixes: what lies in them, and moving or deleting them, for local paths, `file://` and `s3://`."""

from __future__ import annotations

import functools
import os
import shutil
import stat
from pathlib import Path, PurePosixPath

from kernels_bank.runtime import s3_objects, storage, uris
from kernels_bank.runtime.local_files import File, local_files


def list_files(uri: str | Path, *, recursive: bool = False, odd: list[str] | None = None) -> list[tuple[str, int]]:
    """Return (path relative to `uri`, bytes) of every file below it, sorted; empty if there are no files.

    Args:
        uri: URI of the folder or prefix.
        recursive: whether what lies in folders below it counts.
        odd: gets the paths of what is neither a file nor a folder: links to nothing, pipes.
    """
    return [(file.name, file.size) for file in stamped_files(uri, recursive=recursive, odd=odd)]


def stamped_files(uri: str | Path, *, recursive: bool = False, odd: list[str] | None = None) -> list[File]:
    """Return every file below a folder or prefix with its stamp, sorted by name; empty if there are no files.

    On S3 a path may have empty parts, also at its start; `join` still gives the URI.

    Args:
        uri: URI of the folder or prefix.
        recursive: whether what lies in folders below it counts.
        odd: gets the paths of what is neither a file nor a folder: links to nothing, pipes.
    """
    if uris.is_s3(uri):
        found = s3_objects.entries(str(uri), recursive=recursive)
        return sorted(
            File(entry.name, entry.size, entry.stamp)
            for entry in found
            if not entry.folder and entry.name[-1:] not in {"", "/"}
        )
    return sorted(local_files(uris.path_of(uri), recursive=recursive, odd=[] if odd is None else odd))


def outside(root: str, files: list[tuple[str, int]], folder: str | None) -> list[str]:
    """Return the names of files below `root` that are not in `folder`, after resolving links.

    Args:
        root: listed folder.
        files: names and sizes.
        folder: URI of the folder to exclude; None excludes nothing.
    """
    names = [name for name, _ in files]
    if folder is None or uris.is_s3(root) != uris.is_s3(folder):
        return names
    if uris.is_s3(root):
        return [name for name in names if not uris.join(root, name).startswith(f"{folder}/")]
    real = functools.lru_cache(maxsize=None)(os.path.realpath)
    without, above = real(uris.path_of(folder)), uris.path_of(root)
    folders = {name: real(f"{above}/{name.rpartition('/')[0]}") for name in names}
    return [name for name in names if not PurePosixPath(folders[name]).is_relative_to(without)]


def remove_folder(uri: str | Path) -> None:
    """Delete a folder or prefix and all below it; nothing happens if it does not exist."""
    if uris.is_s3(uri):
        s3_objects.delete_below(str(uri))
    elif (mode := storage.local_mode(uri)) is not None and stat.S_ISDIR(mode):
        shutil.rmtree(uris.path_of(uri))  # refuses a link, whose target may have another owner


def move_folder(source: str | Path, target: str | Path) -> None:
    """Rename a folder or prefix on the same storage; on S3 file by file."""
    if uris.is_s3(source):
        for name, _ in list_files(source, recursive=True):
            s3_objects.copy(uris.join(source, name), uris.join(target, name))
            s3_objects.delete(uris.join(source, name))
        return
    new = Path(uris.path_of(target))
    new.parent.mkdir(parents=True, exist_ok=True)
    Path(uris.path_of(source)).rename(new)
