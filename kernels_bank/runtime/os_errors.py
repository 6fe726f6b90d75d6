"""Errors of the operating system in one line: a full disk, a missing folder, a place that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from kernels_bank.runtime.errors import JobFailedError

_KEPT = "what is finished is kept, the same command resumes from it"
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
    """Return one line for an error of the operating system anywhere in the chain of causes; otherwise None."""
    refused = [
        cause for cause in _causes(error) if isinstance(cause, OSError) and (cause.errno is not None or cause.strerror)
    ]
    if not refused:
        return None
    # A failed close after a failed write hides the error that names the file.
    same = (cause for cause in refused if cause.errno == refused[0].errno and cause.filename is not None)
    return describe(next(same, refused[0]))


def describe(error: OSError) -> str:
    """Return the path, the problem, and what to do."""
    # pyarrow's errors have a text but no file name.
    what = error.strerror or str(error)
    what = " ".join(what.split("Detail: ")[0].split()).rstrip(".")
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    advice = _ADVICE.get(error.errno or 0)
    place = f"{' -> '.join(names)}: {what[:1].lower()}{what[1:]}" if names else what
    return "; ".join(part for part in (place, advice, _KEPT) if part)


@contextlib.contextmanager
def named(place: str | Path) -> Iterator[None]:
    """Add the missing path to the system's errors in the block, such as those of a write to an open file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(place)
        raise


def open_named(path: str | Path, mode: Literal["wb", "ab"], shown: str | Path | None = None) -> BinaryIO:
    """Open a file for writing such that errors of writing and closing name it.

    Args:
        path: path of the file.
        mode: `wb` for a new file, `ab` to append to a possibly existing file.
        shown: name in errors, if `path` is temporary; by default the path itself.
    """
    return io.BufferedWriter(_NamedFile(path, mode, path if shown is None else shown))


class _NamedFile(io.FileIO):
    """Name the path in errors of writes, which the system's errors do not."""

    def __init__(self, path: str | Path, mode: str, shown: str | Path) -> None:
        super().__init__(path, mode.removesuffix("b"))
        self._shown = shown

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        with named(self._shown):
            return super().write(data)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Raise the system's errors as one line, since Ray Data replaces an error's path by advice.

    Raises:
        JobFailedError: instead of any OSError of the system.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise JobFailedError(describe(error)) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: raised from, raised while handling, or wrapped by Ray."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        linked = [getattr(current, "cause", None), current.__cause__]
        if not current.__suppress_context__:  # `raise ... from None` declares the context irrelevant
            linked.append(current.__context__)
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            linked += failures.values()
        waiting += [link for link in linked if isinstance(link, BaseException)]
