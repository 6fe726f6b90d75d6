"""Images in a Parquet file: a column of bytes, or of struct{bytes, path} as in Hugging Face's datasets."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.names import spelled
from kernels_bank.runtime.s3 import S3Error, S3RefusedError
from pipeline.data.sources.source import Source, climbs, plain
from pipeline.images import BadImageError

_ROWS = 16  # rows read at a time
_BUFFER = 1 << 20  # bytes of a column read at a time, so that even a large row group takes little memory


def parquet_rows(uri: str, column: str | None = None) -> list[Source]:
    """List the rows of a Parquet file, each of which is an image. Only names are read.

    The name of an image is the `path` next to its bytes, or its row number if the path is not text, is empty or leads
    upwards.

    Args:
        uri: URI of the file.
        column: column of the images; None to find it by its type.

    Raises:
        ArtefactError: the file is not Parquet, or is damaged.
        BadRequestError: there is not exactly one column that can hold the images.
    """
    with _damage_told(uri):
        file = _open(uri)
        chosen = _column(uri, file.schema_arrow, column)
        total = file.metadata.num_rows
        names = _names(file, chosen) if _has_path(file.schema_arrow.field(chosen).type) else iter(())
        width = max(8, len(str(total)))
        numbered = [f"{row:0{width}d}" for row in range(total)]
        for row, name in enumerate(names):
            numbered[row] = name or numbered[row]
    return [Source(uri, name, row, column=chosen) for row, name in enumerate(numbered)]


def read_parquet_row(source: Source) -> bytes:
    """Return the bytes of one row. Consecutive rows are read as a stream.

    Raises:
        BadImageError: the row holds no bytes.
        ArtefactError: the file cannot be read, or is damaged there.
    """
    with _damage_told(source.uri):
        return _reader(source.uri, source.column).row(source.member)


@contextlib.contextmanager
def _damage_told(uri: str) -> Iterator[None]:
    """Raise ArtefactError instead of pyarrow's errors in the block: it has no specific error for damage."""
    import pyarrow

    try:
        yield
    except (S3Error, S3RefusedError, MemoryError):
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, StopIteration) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk: pyarrow's own have no errno
        reason = str(error).partition("\n")[0] or "rows are missing"
        raise ArtefactError(f"{uri}: damaged, or no Parquet file ({reason})") from error


class _Reader:
    """Read rows forwards, a few at a time; a step back restarts the row group."""

    def __init__(self, uri: str, column: str) -> None:
        import pyarrow

        self._file = _open(uri)
        # Only the bytes, so that a damaged or odd path next to them does no harm.
        is_struct = pyarrow.types.is_struct(self._file.schema_arrow.field(column).type)
        self._column = f"{column}.bytes" if is_struct else column
        groups = self._file.metadata.num_row_groups
        self._starts = [0]
        for group in range(groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._batches: Iterator[Any] = iter(())
        self._rows: Any = ()  # the rows in memory
        self._first, self._end = 0, 0  # number of the first row in memory, and the end of its row group

    def row(self, number: int) -> bytes:
        if not len(self._rows) or not self._first <= number < self._end:
            self._begin(number)
        while number >= self._first + len(self._rows):
            rows, self._rows = self._rows, ()  # after an error no rows are in memory, and the next call starts again
            self._rows = next(self._batches).column(0)
            self._first += len(rows)
        value = self._rows[number - self._first].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise BadImageError(f"row {number} holds no bytes")
        return bytes(data)

    def _begin(self, number: int) -> None:
        group = next(g for g in range(len(self._starts) - 1) if number < self._starts[g + 1])
        self._batches = self._file.iter_batches(
            batch_size=_ROWS, row_groups=[group], columns=[self._column], use_threads=False
        )
        self._first, self._end, self._rows = self._starts[group], self._starts[group + 1], ()


@functools.lru_cache(maxsize=1)
def _reader(uri: str, column: str) -> _Reader:
    return _Reader(uri, column)


def _open(uri: str) -> Any:  # noqa: ANN401 - a ParquetFile
    from pyarrow import parquet

    filesystem, path = storage.resolve(uri)
    return parquet.ParquetFile(path, filesystem=filesystem, pre_buffer=False, buffer_size=_BUFFER)


def _column(uri: str, schema: Any, asked: str | None) -> str:  # noqa: ANN401 - Arrow's
    """Return the name of the images' column."""
    able = [field.name for field in schema if _holds_bytes(field.type)]
    if asked is not None:
        if able.count(asked) > 1:
            raise BadRequestError(
                f"{uri}: {able.count(asked)} columns are called '{asked}'; give them names that differ"
            )
        if asked not in able:
            raise BadRequestError(f"{uri}: column '{asked}' holds no images; it has {_listed(able, schema)}")
        return asked
    if len(able) != 1:
        raise BadRequestError(
            f"{uri}: one column of binary or struct{{bytes, path}} is expected, it has {_listed(able, schema)}; "
            "name the images' with --column"
        )
    return able[0]


def _listed(able: list[str], schema: Any) -> str:  # noqa: ANN401 - Arrow's
    return ", ".join(able) if able else "only " + ", ".join(f"{field.name} ({field.type})" for field in schema)


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401 - Arrow's
    from pyarrow import types

    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        kind = kind.field(at).type if at >= 0 else kind
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _has_path(kind: Any) -> bool:  # noqa: ANN401 - Arrow's
    """Return whether a struct has a text field `path`."""
    from pyarrow import types

    if not types.is_struct(kind) or (at := kind.get_field_index("path")) < 0:
        return False
    path = kind.field(at).type
    path = path.value_type if types.is_dictionary(path) else path
    return bool(types.is_string(path) or types.is_large_string(path) or types.is_string_view(path))


def _names(file: Any, column: str) -> Iterator[str]:  # noqa: ANN401 - a ParquetFile
    for batch in file.iter_batches(columns=[f"{column}.path"], use_threads=False):
        for value in batch.column(0).to_pylist():
            name = plain((value or {}).get("path") or "")
            yield "" if climbs(name) or not PurePosixPath(name).name else spelled(name)
