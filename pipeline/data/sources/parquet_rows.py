"""Images in a Parquet file: a column of bytes, or of struct{bytes, path} as Hugging Face's datasets have it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.names import spelled
from pipeline.data.sources.source import Source, climbs, plain
from pipeline.images import BadImageError

_ROWS = 16  # read at a time
_BUFFER = 1 << 20  # bytes of a column read at a time, so that a row group of any size takes no memory


def parquet_rows(uri: str, column: str | None = None) -> list[Source]:
    """List the rows of a Parquet file, each an image. Only names are read.

    An image is named by the `path` beside its bytes; one whose path is empty or leads upwards, by its row.

    Args:
        uri: of the file.
        column: that holds the images; None for the one whose type says so.

    Raises:
        BadRequestError: it is no Parquet file, or not exactly one column can be the images'.
    """
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
    """Return the bytes of one row. Rows that follow each other are read as a stream.

    Raises:
        BadImageError: the row holds no bytes.
        BadRequestError: the file cannot be read.
    """
    return _reader(source.uri, source.column).row(source.member)


class _Reader:
    """Read rows forwards, a few at a time; a step back begins the row group anew."""

    def __init__(self, uri: str, column: str) -> None:
        self._file, self._column, self._uri = _open(uri), column, uri
        groups = self._file.metadata.num_row_groups
        self._starts = [0]
        for group in range(groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._batches: Iterator[Any] = iter(())
        self._first, self._rows, self._end = 0, None, 0  # the rows at hand, and where their row group ends

    def row(self, number: int) -> bytes:
        if self._rows is None or not self._first <= number < self._end:
            self._begin(number)
        assert self._rows is not None
        while number >= self._first + len(self._rows):
            self._first += len(self._rows)
            self._rows = self._next()
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
        self._first, self._end = self._starts[group], self._starts[group + 1]
        self._rows = self._next()

    def _next(self) -> Any:  # noqa: ANN401 - an Arrow array
        import pyarrow

        try:
            return next(self._batches).column(0)
        except (pyarrow.ArrowException, OSError, StopIteration) as error:
            raise BadRequestError(f"{self._uri}: damaged ({error})") from error


@functools.lru_cache(maxsize=1)
def _reader(uri: str, column: str) -> _Reader:
    return _Reader(uri, column)


def _open(uri: str) -> Any:  # noqa: ANN401 - a ParquetFile
    import pyarrow
    from pyarrow import parquet

    filesystem, path = storage.resolve(uri)
    try:
        return parquet.ParquetFile(path, filesystem=filesystem, pre_buffer=False, buffer_size=_BUFFER)
    except pyarrow.ArrowInvalid as error:
        raise BadRequestError(f"{uri}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _column(uri: str, schema: Any, asked: str | None) -> str:  # noqa: ANN401 - Arrow's
    """The name of the images' column."""
    able = [field.name for field in schema if _holds_bytes(field.type)]
    if asked is not None:
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
        return at >= 0 and _holds_bytes(kind.field(at).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _has_path(kind: Any) -> bool:  # noqa: ANN401 - Arrow's
    from pyarrow import types

    return bool(types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _names(file: Any, column: str) -> Iterator[str]:  # noqa: ANN401 - a ParquetFile
    for batch in file.iter_batches(columns=[f"{column}.path"], use_threads=False):
        for value in batch.column(0).to_pylist():
            name = plain((value or {}).get("path") or "")
            yield "" if climbs(name) or not PurePosixPath(name).name else spelled(name)
