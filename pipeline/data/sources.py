"""Where photographs come from: a folder (recursive), a zip read without unpacking it, or an s3:// prefix."""

from __future__ import annotations

import functools
import io
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.s3 import S3Error, S3RefusedError
from kernels_bank.runtime.s3_objects import RangeReader
from pipeline.images import BadImageError
from pipeline.images.photograph import FORMAT_OF_SUFFIX

_TRIES = 3  # of what is in a zip on S3, whose own checksums tell when it came wrong
_BLOCK = 256 << 10  # bytes of a zip on S3 that are asked for at least
_MOST_BYTES = 2 * 2**30  # of a zip's member once it is unpacked: more than the largest image has


@dataclass(frozen=True)
class Source:
    """Name one image file: `name` is its path inside the source, `member` its number in a zip (else -1)."""

    uri: str
    name: str
    member: int = -1


def list_sources(uri: str, *, leave_out: str | None = None) -> list[Source]:
    """List every image below a folder, prefix or zip, sorted by name. Files of other suffixes are counted on stderr.

    What an image is, is decided by its suffix; how it is read, by its content. Hidden files do not count.

    Args:
        uri: of the folder, prefix or zip.
        leave_out: URI of a folder below it that holds no sources.

    Raises:
        BadRequestError: nothing is there, or there is no image in it.
    """
    root = storage.absolute(uri)
    if not storage.exists(root):
        raise BadRequestError(f"{uri}: no such folder, zip or prefix")
    if root.lower().endswith(".zip"):
        infos = _open_zip(root).infolist()
        found = [Source(root, info.filename, i) for i, info in enumerate(infos) if not info.is_dir()]
    else:
        if storage.is_file(root):
            raise BadRequestError(f"{uri}: is a single file; name its folder, a .zip, or an s3:// prefix")
        found = [file_source(root, name) for name, _ in storage.list_files(root, recursive=True)]
    seen = [s for s in found if not _is_hidden(s.name) and not (leave_out and s.uri.startswith(f"{leave_out}/"))]
    images = [s for s in seen if _suffix(s.name) in FORMAT_OF_SUFFIX]
    others = count_by_suffix(s.name for s in seen if _suffix(s.name) not in FORMAT_OF_SUFFIX)
    if not images:
        there = f", but {others}" if others else ""
        raise BadRequestError(
            f"{uri}: no images in it{there}; PNG, JPEG, WebP, BMP, TIFF, AVIF and HEIC files are used"
        )
    if others:
        print(f"{uri}: passed over, by suffix: {others}", file=sys.stderr, flush=True)
    return sorted(images, key=lambda source: (source.name, source.member))


def read_source(source: Source) -> bytes:
    """Return the encoded image.

    Raises:
        BadImageError: a zip member that is damaged, encrypted or packed in a way Python cannot read.
        ArtefactError: the file is gone or cannot be read.
    """
    if source.member < 0:
        return storage.read_bytes(source.uri)
    archive = _open_zip(source.uri)
    member = archive.infolist()[source.member]
    if member.file_size > _MOST_BYTES:
        raise BadImageError(f"{member.file_size / 2**30:.1f} GiB unpacked; at most {_MOST_BYTES / 2**30:g} are read")
    for left in reversed(range(_TRIES if storage.is_s3(source.uri) else 1)):
        try:
            return archive.read(member)  # by its CRC-32
        except (S3Error, S3RefusedError, MemoryError):
            raise
        except Exception as error:  # each way of packing has its own errors
            if not left:
                raise BadImageError(f"cannot be read from the zip ({error})") from error
    raise AssertionError("unreachable")


def file_source(root: str, name: str) -> Source:
    """Return the source of a file below a folder or prefix.

    A name that is not UTF-8 is spelled with escapes, and its URI percent-encoded.
    """
    path = storage.join(root, name)
    try:
        path.encode()
    except UnicodeEncodeError:
        return Source(f"file://{quote(os.fsencode(path))}", os.fsencode(name).decode(errors="backslashreplace"))
    return Source(path, name)


def count_by_suffix(names: Iterable[str]) -> str:
    """Return `3 .gif, 1 .txt`, the most frequent suffix first; empty for no names."""
    counts = Counter(_suffix(name) or "without suffix" for name in names)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


@functools.lru_cache(maxsize=1)
def _open_zip(uri: str) -> zipfile.ZipFile:
    """Opened once a process: the table of contents of a large zip is not read again for every member."""
    tries = _TRIES if storage.is_s3(uri) else 1
    for left in reversed(range(tries)):
        try:
            if not storage.is_s3(uri):
                return zipfile.ZipFile(storage.resolve(uri)[1])
            first, second = (zipfile.ZipFile(io.BufferedReader(RangeReader(uri), _BLOCK)) for _ in range(2))
            if _contents(first) == _contents(second):
                return first
        except (S3Error, S3RefusedError):
            raise
        except (zipfile.BadZipFile, OSError) as error:
            if not left:
                raise BadRequestError(f"{uri}: not a readable zip file ({error})") from error
    raise BadRequestError(f"{uri}: its table of contents is another at each reading")


def _contents(archive: zipfile.ZipFile) -> tuple[tuple[object, ...], ...]:
    """The table of contents, which has no checksum: it is read twice."""
    return tuple((i.filename, i.header_offset, i.CRC, i.compress_size, i.file_size) for i in archive.infolist())
