"""Reading, atomic writes and digests: one set of functions for local paths, `file://` and `s3://`.

Endpoint and credentials of S3 come from the usual AWS variables, including `AWS_ENDPOINT_URL`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kernels_bank.runtime import open_output, os_errors, s3_objects, uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, DamagedError, UnavailableError
from kernels_bank.runtime.local_files import stamp_of
from kernels_bank.runtime.s3 import TRIES, S3Error, S3RefusedError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

_CHUNK = 16 << 20  # bytes per read
LONGEST_NAME = 255  # bytes of a file's name
LONGEST_PATH = 4095  # bytes of a local path
_JSON_BYTES = 256 << 20  # largest manifest; one of a million tars has 150 MB


def resolve(uri: str | Path, tries: int = TRIES) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI and the path inside it (absolute for local files).

    Args:
        uri: a local path, `file://` or `s3://`.
        tries: attempts at each request to an S3 server that does not answer.

    Raises:
        BadRequestError: the URI is neither a local path, `file://` nor `s3://`, or an S3 key has empty parts, which
            users of filesystems would drop.
    """
    path = uris.path_of(uri)
    if str(uri).startswith("s3://"):
        from kernels_bank.runtime.s3_filesystem import s3_filesystem

        return s3_filesystem(tries), path
    import pyarrow.fs as pafs  # imported late: reading local files, as in a restoration, needs no pyarrow

    return pafs.LocalFileSystem(), path


def exists(uri: str | Path) -> bool:
    """Return whether a file or folder exists."""
    if uris.is_s3(uri):
        return s3_objects.stat(str(uri)) is not None
    return local_mode(uri) is not None


def is_file(uri: str | Path) -> bool:
    """Return whether a file, not a folder or prefix, exists."""
    if uris.is_s3(uri):
        entry = s3_objects.stat(str(uri))
        return entry is not None and not entry.folder
    mode = local_mode(uri)
    return mode is not None and stat.S_ISREG(mode)


def is_special(uri: str | Path) -> bool:
    """Return whether the path is neither a file nor a folder, but a pipe or a device."""
    if uris.is_s3(uri):
        return False
    mode = local_mode(uri)
    return mode is not None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def local_mode(uri: str | Path) -> int | None:
    """Return the mode of a local path; None if it does not exist. Pyarrow is not used, as it accepts only UTF-8."""
    try:
        return os.stat(uris.path_of(uri)).st_mode  # noqa: PTH116 - the name may be no text
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise
        raise BadRequestError(f"{uri}: {error.strerror}; give another name") from error


def stamp(uri: str | Path) -> str:
    """Return a file's stamp, as in `stamped_files`; empty if there is no such file."""
    if uris.is_s3(uri):
        entry = s3_objects.stat(str(uri))
        return "" if entry is None or entry.folder else entry.stamp
    try:
        return stamp_of(os.stat(uris.path_of(uri)))  # noqa: PTH116 - the name may be no text
    except OSError:
        return ""


def remove_file(uri: str | Path) -> None:
    """Delete a file. If it does not exist, this raises FileNotFoundError on a disk and does nothing on S3."""
    if uris.is_s3(uri):
        s3_objects.delete(str(uri))
        return
    Path(uris.path_of(uri)).unlink()


def read_bytes(uri: str | Path, sha256: str | None = None, *, limit: int | None = None) -> bytes:
    """Return the content of a file. A file on S3 is verified (see `s3_objects`) and read again if that fails.

    Args:
        uri: URI of the file.
        sha256: expected digest, if it is known.
        limit: largest allowed size in bytes; a larger file is not read.

    Raises:
        ArtefactError: the file is missing, not a regular file, or larger than `limit`.
        DamagedError: its content is wrong, also when read a second time.
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
    """Copy a file to a local path, with little memory; a file on S3 is verified.

    Raises:
        ArtefactError: the file is missing or cannot be read.
        DamagedError: its content is wrong, also when read a second time.
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
    """Hold a file of at most `limit` bytes in memory. Writing more raises ArtefactError."""

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
    """Return the size of a local file in bytes. Raises ArtefactError for a pipe or a device, which may be endless."""
    found = Path(uris.path_of(uri)).stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise ArtefactError(f"{uri}: {kind}, not a regular file")
    return found.st_size


def read_json(uri: str | Path, *, limit: int = _JSON_BYTES, nan: bool = False) -> Any:  # noqa: ANN401 - JSON
    """Parse a JSON file.

    Args:
        uri: URI of the file.
        limit: largest allowed size in bytes.
        nan: whether to accept NaN and Infinity, which Python writes for measured values although they are not JSON.

    Raises:
        ArtefactError: the file is missing, larger than `limit`, nested too deeply, or not JSON.
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

    Locally, a temporary file in the same folder is synced and renamed. For S3, a temporary file is uploaded at the end.
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
    """Sync the files of a local folder, so that they survive a power failure."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Sync the names in a local folder, so that they survive a power failure if the file system supports this."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_name(name: str) -> str:
    """Return a hidden temporary name for `name` that is valid on every file system where `name` is."""
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
    """Return the hex SHA-256 of a file, read in chunks. Raises ArtefactError if it is missing."""
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
    """Return the canonical form of a JSON-able value, from which its digest is computed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
