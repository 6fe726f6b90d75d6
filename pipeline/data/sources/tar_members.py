"""Images in a tar of WebDataset or plain `tar`: found by their headers, read by their offset."""

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

_BLOCK = 256 << 10  # smallest request in bytes to a tar on S3
_MOST_OF_HEADER = 1 << 20  # largest size in bytes of a member's name or other metadata
_MOST_OFFSET = 1 << 60  # far beyond the end of any tar, yet a valid offset for any file
_PADDING = 64 << 10  # most zeros after a tar's last member
_REST = "the rest of the tar"


def tar_members(uri: str) -> tuple[list[Source], Counter[str]]:
    """List the files in a tar. Only headers are needed, but on S3 members of less than 256 KiB are downloaded as well.

    Links, sparse files and devices cannot be read by their offset; they are counted.

    A tar that is truncated, damaged in the middle, or has data after its end gets one more member for the rest, which
    cannot be read.

    Raises:
        BadRequestError: the file is not a tar.
    """
    found: list[Source] = []
    others: Counter[str] = Counter()
    end = 0
    with _opened(uri) as stream:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Headers(stream)), mode="r:") as tar:
                for info in tar:
                    if not end < tar.offset < _MOST_OFFSET:  # tarfile would loop forever
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
    """Describe the kind of a member that is not a plain file."""
    if info.islnk() or info.issym():
        return "linked"
    return "sparse" if info.issparse() else "device or pipe"


def read_tar_member(source: Source) -> bytes:
    """Return the bytes of a tar's member.

    Raises:
        BadImageError: the tar is truncated or damaged there.
        ArtefactError: the tar is missing or cannot be read.
    """
    if source.size < 0:
        raise BadImageError(
            f"{source.uri} is damaged, ends before its last member, or continues behind its end as joined tars do"
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
    """Read only the headers of a tar, so that a false length in a damaged header takes no memory."""

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
