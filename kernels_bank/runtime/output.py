"""Ownership of output places. A job marks a place before it writes there, and only deletes files that it made.

File names prove nothing: a foreign folder may have a `train-000000.tar`, too. So a job first writes a mark into an
empty place, and a place that has files without the mark is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels_bank.runtime import folders, open_output, storage, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.lease import ENTRY, Lease, only_writer

MARK = ".made-by-blind-sr.json"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.tmp")  # `storage.temporary_name`


@contextlib.contextmanager
def own_output(place: str, kind: str, names: Sequence[str] | None = None) -> Iterator[Lease]:
    """Hold the lease of a place of this kind until the block ends, and mark the place.

    Args:
        place: path or URI of the folder or prefix.
        kind: kind of output, such as "shard set".
        names: files and folders directly below that the job writes; others may exist next to them. None if the place
            must not have other files, because readers take all files in it.

    Raises:
        BadRequestError: the place holds something else, or another process writes there; nothing was changed.
    """
    check_own(place, kind, names)
    with only_writer(place) as lease:
        check_own(place, kind, names)
        if _read_mark(place) is None:
            storage.write_json(uris.join(place, MARK), {"kind": kind, "files": []})
        with not_made_again(place):
            yield lease


def not_made_again(place: str) -> contextlib.AbstractContextManager[None]:
    """Refuse to recreate folders, in this process and in the block, if the place of a job is deleted meanwhile.

    Every process that helps the place's writer has to enter this block itself. On S3 there are no folders.
    """
    if uris.is_s3(place):
        return contextlib.nullcontext()
    return open_output.not_made_again(storage.resolve(place)[1], MARK)


def note_files(place: str, files: Iterable[str]) -> None:
    """Add the names of files to be written to the mark, so that leftovers of a killed job may be deleted."""
    mark = _read_mark(place)
    assert mark is not None, "own_output comes first"
    storage.write_json(uris.join(place, MARK), mark | {"files": sorted({*mark["files"], *files})})


def check_own(place: str, kind: str, names: Sequence[str] | None = None) -> None:
    """Check that a place is free for this kind of job or marked as its own.

    Args:
        place: path or URI of the folder or prefix.
        kind: kind of output.
        names: files and folders directly below that the job writes; None for all files in the place.

    Raises:
        BadRequestError: the place holds something else, of which the first file is named, or it cannot be written to.
    """
    check_writable(place)
    mark = _read_mark(place)
    if mark is None:
        there = _files(place) if names is None else (name for name in names if storage.exists(uris.join(place, name)))
        if (foreign := next(there, None)) is not None:
            raise BadRequestError(
                f"{place}: holds {foreign}, which this command did not make; nothing was touched, choose another place"
            )
    elif mark["kind"] != kind:
        raise BadRequestError(
            f"{place}: holds a {mark['kind']}, not a {kind}; nothing was touched, choose another place"
        )


def check_writable(place: str) -> None:
    """Check, before the work, that files can be written to a place. Raises BadRequestError.

    Buckets are not checked, since the first request shows whether the bucket exists.
    """
    uris.refuse_odd_name(place)
    if uris.is_s3(place):
        return
    folder = Path(storage.resolve(place)[1])
    if storage.is_file(folder):
        raise BadRequestError(f"{place} is a file; name a folder")
    longest = max(len(os.fsencode(part)) for part in folder.parts)
    if longest > storage.LONGEST_NAME:
        raise BadRequestError(f"{place}: a name of {longest} bytes, {storage.LONGEST_NAME} are possible")
    there = next(above for above in (folder, *folder.parents) if storage.exists(above))
    if not there.is_dir():
        raise BadRequestError(f"{place}: {there} is no folder; choose another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadRequestError(f"{place}: {there} is not writable; choose another place")


def check_complete(place: str, sizes: Mapping[str, int | None], advice: str) -> None:
    """Check, without reading them, that the files of a finished place exist.

    Args:
        place: path or URI of the folder or prefix.
        sizes: size of each file in bytes by name; None for any size.
        advice: what to do about a missing file.

    Raises:
        ArtefactError: names the first file that is missing or has the wrong size.
    """
    found = dict(folders.list_files(place))
    for name, size in sizes.items():
        if name not in found or size not in {None, found[name]}:
            wrong = "gone" if size is None else f"gone, or not of its {size} bytes"
            raise ArtefactError(f"{uris.join(place, name)}: {wrong}; {advice}")


def write_once(files: Mapping[Path, bytes]) -> None:
    """Write files with fixed content unless they exist.

    Raises:
        BadRequestError: a file exists with other content; nothing was changed.
    """
    missing = [path for path in files if not storage.exists(path)]
    for path, data in files.items():
        if path not in missing and not (path.is_file() and path.read_bytes() == data):
            raise BadRequestError(f"{path}: holds something else than is written there; nothing was touched, move it")
    for path in missing:
        storage.write_bytes(path, files[path])


def remove_leftovers(place: str, keep: Iterable[str]) -> None:
    """Delete leftovers of earlier, killed attempts among the files named in the mark, except `keep`."""
    mark, kept = _read_mark(place), set(keep)
    if mark is None:
        return
    ours = set(mark["files"])
    for name, _ in folders.list_files(place):
        if _meant(name) in ours and name not in kept:
            storage.remove_file(uris.join(place, name))


def _read_mark(place: str) -> dict[str, Any] | None:
    where = uris.join(place, MARK)
    if not storage.exists(where):
        return None
    mark = storage.read_json(where)
    if not isinstance(mark, dict) or not isinstance(mark.get("kind"), str) or not isinstance(mark.get("files"), list):
        raise ArtefactError(f"{where}: not a mark of this program; nothing was touched, choose another place")
    return mark


def _files(place: str) -> Iterator[str]:
    """Yield the names of files in a place, except the lease and a half-written mark."""
    for recursive in (False, True):  # a recursive listing may be long
        for name, _ in folders.list_files(place, recursive=recursive):
            if _meant(name) not in {ENTRY, MARK}:
                yield name


def _meant(name: str) -> str:
    """Return the final name of a temporary file, or the name of any other file."""
    temporary = _TEMPORARY.fullmatch(name)
    return temporary["name"] if temporary else name
