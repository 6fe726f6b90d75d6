"""S3 as a filesystem of pyarrow, for libraries that want one, as Ray Train does.

Not pyarrow's own: when an answer ends early, that one gives the rest of its buffer as it finds it, and says nothing.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs

from kernels_bank.runtime import s3_objects
from kernels_bank.runtime.s3 import TRIES

_IN_MEMORY = 16 << 20  # what is larger is kept in a temporary file


def s3_filesystem(tries: int = TRIES) -> pafs.FileSystem:
    """Return a filesystem whose paths are `bucket/key`; a copy in another process tries as often."""
    return pafs.PyFileSystem(_Handler(tries))


class _Handler(pafs.FileSystemHandler):
    """What pyarrow calls. Folders are prefixes: they exist while there is something below them."""

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
        """Return what is at each path."""
        found = [(path, s3_objects.stat(_uri(path), self._tries)) for path in paths]
        return [_info(path, entry) for path, entry in found]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """Return what lies below a folder. Raises FileNotFoundError when nothing does, and that is not allowed."""
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
        """Do nothing: a folder comes with its first file."""

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
        """Give a file another name."""
        self.copy_file(src, dest)
        self.delete_file(src)

    def open_input_file(self, path: str) -> pa.PythonFile:
        """Return a file with the verified content, all of which has come by then."""
        file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - pyarrow closes it
        s3_objects.read(_uri(path), file, tries=self._tries)  # type: ignore[arg-type]
        file.seek(0)
        return pa.PythonFile(file, mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:  # noqa: ANN401
        """Return a file that is sent when it is closed."""
        return pa.PythonFile(_Upload(_uri(path), self._tries), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.PythonFile:  # noqa: ANN401
        """Refuse it. Raises NotImplementedError."""
        raise NotImplementedError("objects on S3 cannot be appended to")


class _Upload:
    """A file that is sent when it is closed; one that is dropped before is not, unlike one of `io`'s classes."""

    def __init__(self, uri: str, tries: int) -> None:
        self._uri, self._tries = uri, tries
        self._staged = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed in `close`

    @property
    def closed(self) -> bool:
        return self._staged.closed

    def write(self, data: bytes) -> int:
        """Take more."""
        return self._staged.write(data)

    def tell(self) -> int:
        """Return how much has come."""
        return self._staged.tell()

    def flush(self) -> None:
        """Do nothing: it goes whole."""

    def close(self) -> None:
        """Send it."""
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
