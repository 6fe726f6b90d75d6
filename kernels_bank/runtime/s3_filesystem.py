"""S3 as a filesystem of pyarrow, for libraries that need one, such as Ray Train.

It replaces pyarrow's own, which silently returns the uninitialised rest of its buffer if an answer ends early.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs

from kernels_bank.runtime import s3_objects
from kernels_bank.runtime.s3 import TRIES

_IN_MEMORY = 16 << 20  # larger content is kept in a temporary file


def s3_filesystem(tries: int = TRIES) -> pafs.FileSystem:
    """Return a filesystem whose paths are `bucket/key`; a copy in another process keeps `tries`."""
    return pafs.PyFileSystem(_Handler(tries))


class _Handler(pafs.FileSystemHandler):
    """Implement pyarrow's interface. Folders are prefixes, which exist while there is an object below them."""

    def __init__(self, tries: int) -> None:
        self._tries = tries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handler)

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        """Return the name of this kind."""
        return "s3"

    def normalize_path(self, path: str) -> str:
        """Return the path as it is."""
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """Return the kind and size of the object at each path."""
        found = [(path, s3_objects.stat(_uri(path), self._tries)) for path in paths]
        return [_info(path, entry) for path, entry in found]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """List a folder. Raises FileNotFoundError if it is empty, unless that is allowed."""
        base = selector.base_dir.rstrip("/")
        found: dict[str, pafs.FileInfo] = {}
        for entry in s3_objects.entries(_uri(base), recursive=selector.recursive, tries=self._tries):
            path = f"{base}/{entry.name}"
            parents = [path[:i] for i in range(len(base) + 1, len(path)) if path[i] == "/"]
            found |= {parent: pafs.FileInfo(parent, pafs.FileType.Directory) for parent in parents}
            if not path.endswith("/"):
                found[path] = _info(path, entry)
        if not found and not selector.allow_not_found and s3_objects.stat(_uri(base), self._tries) is None:
            raise FileNotFoundError(base)
        return list(found.values())

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing, since a folder exists with its first file."""

    def delete_dir(self, path: str) -> None:
        """Delete all below a folder."""
        s3_objects.delete_below(_uri(path), self._tries)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete all below a folder."""
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        """Refuse it. Raises NotImplementedError."""
        raise NotImplementedError("all buckets are not deleted")

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        s3_objects.delete(_uri(path), self._tries)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file on the server."""
        s3_objects.copy(_uri(src), _uri(dest), self._tries)

    def move(self, src: str, dest: str) -> None:
        """Rename a file."""
        self.copy_file(src, dest)
        self.delete_file(src)

    def open_input_file(self, path: str) -> pa.PythonFile:
        """Return a file with the verified content, which is downloaded first."""
        file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - pyarrow closes it
        s3_objects.read(_uri(path), file, tries=self._tries)  # type: ignore[arg-type]
        file.seek(0)
        return pa.PythonFile(file, mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:  # noqa: ANN401
        """Return a file that is uploaded when it is closed."""
        return pa.PythonFile(_Upload(_uri(path), self._tries), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.PythonFile:  # noqa: ANN401
        """Refuse it. Raises NotImplementedError."""
        raise NotImplementedError("objects on S3 cannot be appended to")


class _Upload:
    """Upload a file when it is closed; a file that is dropped before is not uploaded, unlike with `io`'s classes."""

    def __init__(self, uri: str, tries: int) -> None:
        self._uri, self._tries = uri, tries
        self._staged = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed in `close`

    @property
    def closed(self) -> bool:
        return self._staged.closed

    def write(self, data: bytes) -> int:
        """Append data."""
        return self._staged.write(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._staged.tell()

    def flush(self) -> None:
        """Do nothing, since the file is uploaded as a whole."""

    def close(self) -> None:
        """Upload the file."""
        if not self.closed:
            with self._staged:
                s3_objects.write(self._uri, self._staged, self._tries)  # type: ignore[arg-type]


def _uri(path: str) -> str:
    return f"s3://{path}"


def _info(path: str, entry: s3_objects.Entry | None) -> pafs.FileInfo:
    if entry is None:
        return pafs.FileInfo(path, pafs.FileType.NotFound)
    if entry.folder:
        return pafs.FileInfo(path, pafs.FileType.Directory)
    return pafs.FileInfo(path, pafs.FileType.File, size=entry.size, mtime=entry.changed)
