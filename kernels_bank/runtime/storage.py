"""URIs, atomic writes and digests: one set of functions for local paths, `file://` and `s3://`.

Endpoint and credentials of S3 come from the usual AWS variables, `AWS_ENDPOINT_URL` included.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from kernels_bank.runtime.errors import ArtefactError, BadRequestError

_CHUNK = 16 << 20  # a read, and on S3 a request
_RETRY_WAITS_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_PATIENCE_S = 30.0  # pyarrow itself tries to reach an S3 server for about that long, at each attempt
# Tries of one request to an S3 server, with pauses that double up to 20 s: 50 s and 5 minutes until it is an error.
_TRIES, PATIENT = 8, 20


class _S3(pafs.S3FileSystem):
    """That of pyarrow, but a copy in another process tries as often as the original: pyarrow's own tries thrice."""

    def __init__(self, tries: int, options: dict[str, Any]) -> None:
        super().__init__(retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=tries), **options)
        self._arguments = tries, options

    def __reduce__(self) -> tuple[Any, ...]:
        return _S3, self._arguments


@functools.lru_cache(maxsize=8)
def _s3(endpoint: str | None, region: str, tries: int) -> pafs.S3FileSystem:
    options: dict[str, Any] = {"region": region}
    if endpoint:
        parts = urlsplit(endpoint)
        options |= {"endpoint_override": parts.netloc or parts.path, "scheme": parts.scheme or "https"}
    return _S3(tries, options)


def resolve(uri: str | Path, tries: int = _TRIES) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of a URI and the path inside it (absolute for local files).

    Args:
        uri: a local path, `file://` or `s3://`.
        tries: of each request to an S3 server that does not answer.

    Raises:
        BadRequestError: the scheme is neither a local path, `file://` nor `s3://`.
    """
    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    if scheme == "file":
        return pafs.LocalFileSystem(), unquote(rest)
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return _s3(endpoint, region, tries), rest.rstrip("/")
    raise BadRequestError(f"{text}: unknown scheme '{scheme}'; use a local path, file:// or s3://bucket/prefix")


def absolute(uri: str | Path) -> str:
    """The URI in a form that means the same on another node or in another working directory."""
    text = str(uri)
    return text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute())


def join(uri: str | Path, *parts: str) -> str:
    """`join("s3://b/x", "y.json") == "s3://b/x/y.json"`; the same for local paths."""
    return "/".join([str(uri).rstrip("/"), *parts])


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def is_file(uri: str | Path) -> bool:
    """Whether a file, not a folder or prefix, is there."""
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def list_files(uri: str | Path, *, recursive: bool = False) -> list[tuple[str, int]]:
    """(path relative to `uri`, bytes) of every file below it, sorted; empty when there is nothing."""
    filesystem, path = resolve(uri)
    selector = pafs.FileSelector(path, recursive=recursive, allow_not_found=True)
    found = [i for i in filesystem.get_file_info(selector) if i.type == pafs.FileType.File]
    return sorted((info.path[len(path) :].lstrip("/"), int(info.size)) for info in found)


def remove_folder(uri: str | Path) -> None:
    """Delete a folder or prefix and all below it; nothing happens when it is not there."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


def move_folder(source: str | Path, target: str | Path) -> None:
    """Give a folder or prefix another name on the same storage; on S3 file by file."""
    filesystem, path = resolve(source)
    new = resolve(target)[1]
    if isinstance(filesystem, pafs.LocalFileSystem):
        filesystem.move(path, new)
        return
    for name, _ in list_files(source, recursive=True):
        filesystem.move(f"{path}/{name}", f"{new}/{name}")


def remove_file(uri: str | Path) -> None:
    """Delete a file. Raises FileNotFoundError when it is not there."""
    filesystem, path = resolve(uri)
    filesystem.delete_file(path)


def read_bytes(uri: str | Path) -> bytes:
    """The whole file. Connections that break are tried again, with back-off, before the error is raised.

    Raises:
        ArtefactError: it is not there, or cannot be read.
    """
    filesystem, path = resolve(uri)
    end, attempts = time.monotonic() + _PATIENCE_S, 0
    for wait in (*_RETRY_WAITS_S, None):
        attempts += 1
        try:
            size = filesystem.get_file_info(path).size
            # In one request: a stream, and a read without a size, would ask S3 for a quarter of a MiB at a time.
            with filesystem.open_input_file(path) as file:
                data = bytes(file.read(size))
            if len(data) == size:
                return data
            problem: OSError = OSError(f"{len(data)} of {size} bytes came")
        except FileNotFoundError as error:
            raise ArtefactError(f"{uri}: no such file") from error
        except OSError as error:
            problem = error
        if wait is None or time.monotonic() > end:
            break
        time.sleep(wait)
    raise ArtefactError(f"{uri}: cannot be read ({problem}); attempts made: {attempts}") from problem


def read_json(uri: str | Path) -> Any:  # noqa: ANN401 - JSON is what it is
    """The parsed file. Raises ArtefactError when it is missing or not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{uri}: not a JSON file ({error})") from error


@contextlib.contextmanager
def atomic_writer(uri: str | Path) -> Iterator[BinaryIO]:
    """A binary stream whose file appears under `uri` only when the block ends without an error.

    Locally: a temporary neighbour, fsync, rename. On S3 an object appears when its upload is completed, but
    pyarrow completes it on close whatever happened: so the bytes are staged locally and sent at the end.
    """
    filesystem, path = resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryFile() as staged:
        yield staged
        staged.seek(0)
        with filesystem.open_output_stream(path) as stream:
            while chunk := staged.read(_CHUNK):
                stream.write(chunk)


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write the whole file atomically."""
    with atomic_writer(uri) as stream:
        stream.write(data)


def write_json(uri: str | Path, value: object) -> None:
    """Write JSON atomically, keys sorted: equal values give equal bytes."""
    write_bytes(uri, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def sha256_of(uri: str | Path) -> str:
    """Hex SHA-256 of a file, read in chunks. Raises ArtefactError when it is not there."""
    filesystem, path = resolve(uri)
    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise ArtefactError(f"{uri}: no such file") from error
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Hex SHA-256 of a JSON-able value in canonical form: the identity of a spec or a list of file hashes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
