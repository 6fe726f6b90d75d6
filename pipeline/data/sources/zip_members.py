"""Images in a zip, read without unpacking it."""

from __future__ import annotations

import functools
import io
import zipfile

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.s3 import S3Error, S3RefusedError
from kernels_bank.runtime.s3_objects import RangeReader
from pipeline.data.sources.source import MOST_BYTES, Source, plain
from pipeline.images import BadImageError

_TRIES = 3  # attempts to read from a zip on S3, whose checksums reveal a damaged transfer
_BLOCK = 256 << 10  # smallest request in bytes to a zip on S3


def zip_members(uri: str) -> list[Source]:
    """List the files in a zip. Raises BadRequestError when it cannot be read."""
    infos = open_zip(uri).infolist()
    return [Source(uri, plain(info.filename), i) for i, info in enumerate(infos) if not info.is_dir()]


def read_zip_member(source: Source) -> bytes:
    """Return the bytes of a zip's member. Raises BadImageError for one that is damaged, encrypted or too large."""
    archive = open_zip(source.uri)
    member = archive.infolist()[source.member]
    if member.file_size > MOST_BYTES:
        raise BadImageError(f"{member.file_size / 2**30:.1f} GiB unpacked; at most {MOST_BYTES / 2**30:g} are read")
    for left in reversed(range(_TRIES if uris.is_s3(source.uri) else 1)):
        try:
            return archive.read(member)  # checks the CRC-32
        except (S3Error, S3RefusedError, MemoryError):
            raise
        except Exception as error:  # each compression method has its own errors
            if not left:
                raise BadImageError(f"cannot be read from the zip ({error})") from error
    raise AssertionError("unreachable")


@functools.lru_cache(maxsize=1)
def open_zip(uri: str) -> zipfile.ZipFile:
    """Open a zip once per process, so that a large table of contents is not read again for every member.

    Raises:
        BadRequestError: the file is not a zip.
    """
    tries = _TRIES if uris.is_s3(uri) else 1
    for left in reversed(range(tries)):
        try:
            if not uris.is_s3(uri):
                return zipfile.ZipFile(storage.resolve(uri)[1])
            first, second = (zipfile.ZipFile(io.BufferedReader(RangeReader(uri), _BLOCK)) for _ in range(2))
            if _contents(first) == _contents(second):
                return first
        except (S3Error, S3RefusedError):
            raise
        except MemoryError:
            raise
        except Exception as error:  # each kind of damage has its own errors
            if not left:
                raise BadRequestError(f"{uri}: not a readable zip file ({error})") from error
    raise BadRequestError(f"{uri}: its table of contents is another at each reading")


def _contents(archive: zipfile.ZipFile) -> tuple[tuple[object, ...], ...]:
    """Return the table of contents. It has no checksum, so it is read twice and compared."""
    return tuple((i.filename, i.header_offset, i.CRC, i.compress_size, i.file_size) for i in archive.infolist())
