"""What the system refused, in one line: a full disk, a folder that is gone, a place that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from kernels_bank.runtime.errors import JobFailedError

_KEPT = "what is finished is kept, the same command goes on from it"
_ADVICE = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files",
    errno.EROFS: "make it writable",
    errno.EACCES: "correct its permissions",
    errno.EPERM: "correct its permissions",
    errno.EIO: "look at the disk",
}


def explain(error: BaseException) -> str | None:
    """Return one line for an error of the operating system, wherever it lies in the chain of causes; else nothing."""
    refused = [
        cause for cause in _causes(error) if isinstance(cause, OSError) and (cause.errno is not None or cause.strerror)
    ]
    if not refused:
        return None
    # A file that cannot be closed because it could not be written to either hides the error that names it.
    same = (cause for cause in refused if cause.errno == refused[0].errno and cause.filename is not None)
    return describe(next(same, refused[0]))


def describe(error: OSError) -> str:
    """Return the path, what was wrong with it, and what to do."""
    # pyarrow's errors carry their text and no file name.
    what = error.strerror or str(error)
    what = " ".join(what.split("Detail: ")[0].split()).rstrip(".")
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    advice = _ADVICE.get(error.errno or 0)
    place = f"{' -> '.join(names)}: {what[:1].lower()}{what[1:]}" if names else what
    return "; ".join(part for part in (place, advice, _KEPT) if part)


@contextlib.contextmanager
def named(place: str | Path) -> Iterator[None]:
    """Give the system's errors in the block, such as of a write to an open file, the path that they lack."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise


def open_named(path: str | Path, mode: Literal["wb", "ab"], shown: str | Path | None = None) -> BinaryIO:
    """Open a file for writing; the system's errors of its writes name it, also those that closing it raises.

    Args:
        path: of the file.
        mode: a new file, or the end of one that may be there.
        shown: the name that errors give; the path itself unless it is a temporary one.
    """
    return io.BufferedWriter(_NamedFile(path, mode, path if shown is None else shown))


class _NamedFile(io.FileIO):
    """A file whose failed writes name a path; the system's errors name none."""

    def __init__(self, path: str | Path, mode: str, shown: str | Path) -> None:
        super().__init__(path, mode.removesuffix("b"))
        self._shown = shown

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        with named(self._shown):
            return super().write(data)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raise what the system refuses as the line that says so: Ray Data puts advice in the place of an error's path.

    Raises:
        JobFailedError: in place of any OSError of the system's.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise JobFailedError(describe(error)) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it: raised from, raised while handling, or wrapped by Ray."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        linked = [getattr(current, "cause", None), current.__cause__]
        if not current.__suppress_context__:  # `raise ... from None` says that it has nothing to do with this
            linked.append(current.__context__)
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            linked += failures.values()
        waiting += [link for link in linked if isinstance(link, BaseException)]
