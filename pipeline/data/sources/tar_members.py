"""Images in a tar, as WebDataset and plain `tar` write it: found by their headers, read by their place."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import IO, BinaryIO, cast

from kernels_bank.runtime import uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.s3_objects import RangeReader
from pipeline.data.sources.source import MOST_BYTES, Source, is_hidden, plain
from pipeline.images import BadImageError

_BLOCK = 256 << 10  # bytes of a tar on S3 that are asked for at least
_MOST_OF_HEADER = 1 << 20  # bytes of a name or of what else is said of a member
_MOST_OFFSET = 1 << 60  # far behind the end of any tar, and a place that any file can be asked for
_PADDING = 64 << 10  # zeros behind a tar's last member, at most
_REST = "the rest of the tar"


def tar_members(uri: str) -> tuple[list[Source], Counter[str]]:
    """List the files in a tar. Only headers are looked at, but members of less than 256 KiB on S3 come along.

    Links, files with holes and devices cannot be read by their place: they are counted.

    A tar that ends or is damaged in the middle, or goes on behind its end, has one more member, which cannot be read:
    the rest.

    Raises:
        BadRequestError: it is no tar.
    """
    found: list[Source] = []
    others: Counter[str] = Counter()
    end = 0
    with _opened(uri) as stream:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Headers(stream)), mode="r:") as tar:
                for info in tar:
                    if not end < tar.offset < _MOST_OFFSET:  # tarfile would go round and round
                        raise ValueError(f"a member of {info.size} bytes")
                    end = tar.offset
                    if info.isreg() and not info.issparse():
                        found.append(Source(uri, plain(info.name), info.offset_data, info.size))
                    elif not info.isdir() and not is_hidden(info.name):
                        others[_kind(info)] += 1
        except (OSError, MemoryError):
            raise
        except Exception as error:  # each kind of damage has its own errors
            if not end:
                raise BadRequestError(f"{uri}: not a readable tar ({error})") from error
            return [*found, Source(uri, _REST, end)], others
        stream.seek(end)
        rest = stream.read(_PADDING)
    is_whole = len(rest) >= tarfile.BLOCKSIZE and not any(rest)  # zeros mark a tar's end
    return found if is_whole else [*found, Source(uri, _REST, end)], others


def _kind(info: tarfile.TarInfo) -> str:
    """Say what a member is that is no plain file."""
    if info.islnk() or info.issym():
        return "linked"
    return "sparse" if info.issparse() else "device or pipe"


def read_tar_member(source: Source) -> bytes:
    """Return the bytes of a tar's member.

    Raises:
        BadImageError: the tar ends or is damaged there.
        ArtefactError: it is gone or cannot be read.
    """
    if source.size < 0:
        raise BadImageError(
            f"{source.uri} is damaged, ends before its last member, or goes on behind its end as joined tars do"
        )
    if source.size > MOST_BYTES:
        raise BadImageError(f"{source.size / 2**30:.1f} GiB; at most {MOST_BYTES / 2**30:g} are read")
    with _opened(source.uri, block=max(1, source.size)) as stream:
        stream.seek(source.member)
        data = stream.read(source.size)
    if len(data) < source.size:
        raise BadImageError(f"{source.uri} ends in the middle of it")
    return data


class _Headers:
    """A tar of which only headers are read, so that what a damaged one says of its length takes no memory."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.seek, self.tell = stream, stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > _MOST_OF_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self._stream.read(size)


def _opened(uri: str, block: int = _BLOCK) -> BinaryIO:
    if uris.is_s3(uri):
        return io.BufferedReader(RangeReader(uri), block)
    try:
        return Path(uris.path_of(uri)).open("rb")
    except FileNotFoundError as error:
        raise ArtefactError(f"{uri}: no such file") from error
