"""Images in a tar, as WebDataset and plain `tar` write it: found by their headers, read by their place."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import BinaryIO

from kernels_bank.runtime import uris
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.runtime.s3_objects import RangeReader
from pipeline.data.sources.source import MOST_BYTES, Source, plain
from pipeline.images import BadImageError

_BLOCK = 256 << 10  # bytes of a tar on S3 that are asked for at least
_REST = "the rest of the tar"


def tar_members(uri: str) -> list[Source]:
    """List the files in a tar. Only headers are looked at, but members of less than 256 KiB on S3 come along.

    A tar that ends or is damaged in the middle has one more member, which cannot be read: the rest.

    Raises:
        BadRequestError: it is no tar.
    """
    found: list[Source] = []
    end = 0
    with _opened(uri) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    if info.isreg() and not info.issparse():
                        found.append(Source(uri, plain(info.name), info.offset_data, info.size))
        except (tarfile.TarError, UnicodeError, ValueError) as error:
            if not end:
                raise BadRequestError(f"{uri}: not a readable tar ({error})") from error
            return [*found, Source(uri, _REST, end)]
        stream.seek(end)
        whole = stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)  # what marks a tar's end
    return found if whole else [*found, Source(uri, _REST, end)]


def read_tar_member(source: Source) -> bytes:
    """Return the bytes of a tar's member.

    Raises:
        BadImageError: the tar ends or is damaged there.
        ArtefactError: it is gone or cannot be read.
    """
    if source.size < 0:
        raise BadImageError(f"{source.uri} is damaged or ends before its last member")
    if source.size > MOST_BYTES:
        raise BadImageError(f"{source.size / 2**30:.1f} GiB; at most {MOST_BYTES / 2**30:g} are read")
    with _opened(source.uri, block=max(1, source.size)) as stream:
        stream.seek(source.member)
        data = stream.read(source.size)
    if len(data) < source.size:
        raise BadImageError(f"{source.uri} ends in the middle of it")
    return data


def _opened(uri: str, block: int = _BLOCK) -> BinaryIO:
    if uris.is_s3(uri):
        return io.BufferedReader(RangeReader(uri), block)
    try:
        return Path(uris.path_of(uri)).open("rb")
    except FileNotFoundError as error:
        raise ArtefactError(f"{uri}: no such file") from error
