"""Reading, atomic writes, listings and digests: one set of functions for local paths, `file://` and `s3://`.

Endpoint and credentials of S3 come from the usual AWS variables, `AWS_ENDPOINT_URL` included.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from kernels_bank.runtime import open_output, os_errors, s3_objects, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, DamagedError, UnavailableError
from kernels_bank.runtime.local_files import File, local_files, stamp_of
from kernels_bank.runtime.s3 import TRIES, S3Error, S3RefusedError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

_CHUNK = 16 << 20  # a read
LONGEST_NAME = 255  # bytes of a file's name
LONGEST_PATH = 4095  # bytes of a local path
_JSON_BYTES = 256 << 20  # the most that a manifest may have; one of a million tars has 150 MB


def resolve(uri: str | Path, tries: int = TRIES) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI and the path inside it (absolute for local files).

    Args:
        uri: a local path, `file://` or `s3://`.
        tries: of each request to an S3 server that does not answer.

    Raises:
        BadRequestError: the scheme is neither a local path, `file://` nor `s3://`, or an S3 key has empty parts, which
            users of filesystems would drop.
    """
    path = uris.path_of(uri)
    if str(uri).startswith("s3://"):
        from kernels_bank.runtime.s3_filesystem import s3_filesystem

        return s3_filesystem(tries), path
    import pyarrow.fs as pafs  # late: who only reads local files, as a restoration does, needs no pyarrow

    return pafs.LocalFileSystem(), path


def exists(uri: str | Path) -> bool:
    """Return whether a file or folder is there."""
    if uris.is_s3(uri):
        return s3_objects.stat(str(uri)) is not None
    return _mode(uri) is not None


def is_file(uri: str | Path) -> bool:
    """Return whether a file, not a folder or prefix, is there."""
    if uris.is_s3(uri):
        entry = s3_objects.stat(str(uri))
        return entry is not None and not entry.folder
    mode = _mode(uri)
    return mode is not None and stat.S_ISREG(mode)


def is_special(uri: str | Path) -> bool:
    """Return whether something is there that is neither a file nor a folder: a pipe, a device."""
    if uris.is_s3(uri):
        return False
    mode = _mode(uri)
    return mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _mode(uri: str | Path) -> int | None:
    """Return what a local path leads to: a file, a folder, or nothing. Not by pyarrow, which takes only UTF-8."""
    try:
        return os.stat(uris.path_of(uri)).st_mode  # noqa: PTH116 - the name may be no text
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise
        raise BadRequestError(f"{uri}: {error.strerror}; give another name") from error


def list_files(uri: str | Path, *, recursive: bool = False, odd: list[str] | None = None) -> list[tuple[str, int]]:
    """Return (path relative to `uri`, bytes) of every file below it, sorted; empty when there is nothing.

    Args:
        uri: of the folder or prefix.
        recursive: whether what lies in folders below it counts.
        odd: gets the paths of what is neither a file nor a folder: links to nothing, pipes.
    """
    return [(file.name, file.size) for file in stamped_files(uri, recursive=recursive, odd=odd)]


def stamped_files(uri: str | Path, *, recursive: bool = False, odd: list[str] | None = None) -> list[File]:
    """Return every file below a folder or prefix with its stamp, sorted by name; empty when there is nothing.

    On S3 a path may have empty parts, also at its start: `join` gives the URI all the same.

    Args:
        uri: of the folder or prefix.
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


def stamp(uri: str | Path) -> str:
    """Return a file's stamp, as `stamped_files` has it; empty where there is no such file."""
    if uris.is_s3(uri):
        entry = s3_objects.stat(str(uri))
        return "" if entry is None or entry.folder else entry.stamp
    try:
        return stamp_of(os.stat(uris.path_of(uri)))  # noqa: PTH116 - the name may be no text
    except OSError:
        return ""


def outside(root: str, files: list[tuple[str, int]], folder: str | None) -> list[str]:
    """Return the names of files below `root` that do not lie in `folder`, whatever links lead there.

    Args:
        root: what was listed.
        files: names and sizes.
        folder: URI; None: nothing lies there.
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
    """Delete a folder or prefix and all below it; nothing happens when it is not there."""
    if uris.is_s3(uri):
        s3_objects.delete_below(str(uri))
    elif (mode := _mode(uri)) is not None and stat.S_ISDIR(mode):
        shutil.rmtree(uris.path_of(uri))  # refuses a link: what that leads to is somebody else's


def move_folder(source: str | Path, target: str | Path) -> None:
    """Give a folder or prefix another name on the same storage; on S3 file by file."""
    if uris.is_s3(source):
        for name, _ in list_files(source, recursive=True):
            s3_objects.copy(uris.join(source, name), uris.join(target, name))
            s3_objects.delete(uris.join(source, name))
        return
    new = Path(uris.path_of(target))
    new.parent.mkdir(parents=True, exist_ok=True)
    Path(uris.path_of(source)).rename(new)


def remove_file(uri: str | Path) -> None:
    """Delete a file. Where it is not there: FileNotFoundError on a disk, nothing on S3."""
    if uris.is_s3(uri):
        s3_objects.delete(str(uri))
        return
    Path(uris.path_of(uri)).unlink()


def read_bytes(uri: str | Path, sha256: str | None = None, *, limit: int | None = None) -> bytes:
    """Return the whole file. What comes from S3 is verified (`s3_objects` says how) and read again where that fails.

    Args:
        uri: of the file.
        sha256: what it must be, if that is known.
        limit: the most bytes that it may have; a larger one is not read.

    Raises:
        ArtefactError: it is not there, not a regular file, or larger than `limit`.
        DamagedError: its content is not what it should be, at a second reading either.
        UnavailableError: it cannot be read.
        S3Error: the S3 server does not answer.
    """
    try:
        if uris.is_s3(uri):
            sink = _Limited(str(uri), limit)
            s3_objects.read(str(uri), sink, sha256)
            return sink.getvalue()
        size = _regular_size(uri)
        if limit is not None and size > limit:
            raise ArtefactError(_too_large(uri, limit))
        for _ in range(2):
            data = Path(uris.path_of(uri)).read_bytes()
            if sha256 in {None, hashlib.sha256(data).hexdigest()}:
                return data
    except FileNotFoundError as error:
        raise ArtefactError(f"{uri}: no such file") from error
    except (S3Error, S3RefusedError):
        raise
    except OSError as error:
        raise UnavailableError(f"{uri}: cannot be read ({error.strerror or error})") from error
    raise DamagedError(f"{uri}: damaged (its sha256 is not {sha256})")


def fetch(uri: str | Path, target: Path) -> None:
    """Copy a file to a local path, with little memory; what comes from S3 is verified.

    Raises:
        ArtefactError: it is not there, or cannot be read.
        DamagedError: its content is not what it should be, at a second reading either.
        S3Error: the S3 server does not answer.
    """
    try:
        if uris.is_s3(uri):
            with os_errors.open_named(target, "wb") as sink:
                s3_objects.read(str(uri), sink)
        else:
            shutil.copyfile(uris.path_of(uri), target)
    except FileNotFoundError as error:
        raise ArtefactError(f"{uri}: no such file") from error


class _Limited(io.BytesIO):
    """Memory for a file of at most `limit` bytes. Writing more raises ArtefactError."""

    def __init__(self, uri: str, limit: int | None) -> None:
        super().__init__()
        self._uri, self._limit = uri, limit

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        if self._limit is not None and self.tell() + memoryview(data).nbytes > self._limit:
            raise ArtefactError(_too_large(self._uri, self._limit))
        return super().write(data)


def _too_large(uri: str | Path, limit: int) -> str:
    return f"{uri}: larger than the {limit} bytes that are expected here at most, so it is not read"


def _regular_size(uri: str | Path) -> int:
    """Return the bytes of a local file. A pipe or a device would be read for ever: raises ArtefactError."""
    found = Path(uris.path_of(uri)).stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise ArtefactError(f"{uri}: {kind}, not a regular file")
    return found.st_size


def read_json(uri: str | Path, *, limit: int = _JSON_BYTES, nan: bool = False) -> Any:  # noqa: ANN401 - JSON
    """Parse a file.

    Args:
        uri: of the file.
        limit: the most bytes that it may have.
        nan: take NaN and Infinity too, which are no JSON, but written by Python for measured values.

    Raises:
        ArtefactError: missing, larger than `limit`, nested too deeply, or not JSON.
    """
    data = read_bytes(uri, limit=limit)
    try:
        return json.loads(data, parse_constant=None if nan else _refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ArtefactError(f"{uri}: not a JSON file ({reason})") from error


def _refuse_constant(name: str) -> Any:  # noqa: ANN401 - never returns
    raise ValueError(f"{name} is no JSON value")


@contextlib.contextmanager
def atomic_writer(uri: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary stream whose file appears under `uri` only when the block ends without an error.

    Locally: a temporary neighbour, fsync, rename. On S3: staged in a temporary file, sent at the end.
    """
    if uris.is_s3(uri):
        with tempfile.TemporaryFile() as staged:
            yield staged
            s3_objects.write(str(uri), staged)
        return
    target = Path(uris.path_of(uri))
    open_output.check(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(temporary_name(target.name))
    try:
        with os_errors.open_named(temporary, "wb", shown=target) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_files(folder: Path) -> None:
    """Make the files of a local folder survive a loss of power."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a local folder survive a loss of power, where its file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_name(name: str) -> str:
    """Return a hidden name beside `name` that the file system takes wherever it takes `name` itself."""
    end = f".{uuid.uuid4().hex[:12]}.tmp"
    if len(os.fsencode(name)) + len(end) + 1 > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}{end}"


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write the whole file atomically."""
    with atomic_writer(uri) as stream:
        stream.write(data)


def write_json(uri: str | Path, value: object) -> None:
    """Write JSON atomically, keys sorted: equal values give equal bytes."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def sha256_of(uri: str | Path) -> str:
    """Return the hex SHA-256 of a file, read in chunks. Raises ArtefactError when it is not there."""
    digest = hashlib.sha256()
    try:
        if uris.is_s3(uri):
            return s3_objects.read(str(uri))
        _regular_size(uri)
        with Path(uris.path_of(uri)).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise ArtefactError(f"{uri}: no such file") from error
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Return the hex SHA-256 of a JSON-able value in canonical form: the identity of a spec or a list of hashes."""
    return hashlib.sha256(canonical(value)).hexdigest()


def canonical(value: object) -> bytes:
    """Return the one spelling of a JSON-able value that its digest is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
