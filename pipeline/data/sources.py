"""Where photographs come from: a folder (recursive), a zip read without unpacking it, or an s3:// prefix."""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.s3 import S3Error, S3RefusedError
from kernels_bank.runtime.s3_objects import RangeReader
from pipeline.images import BadImageError

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_TRIES = 3  # of what is in a zip on S3, whose own checksums tell when it came wrong
_BLOCK = 256 << 10  # bytes of a zip on S3 that are asked for at least


@dataclass(frozen=True)
class Source:
    """One image file: `name` is its path inside the source, `member` its number in a zip (else -1)."""

    uri: str
    name: str
    member: int = -1


def list_sources(uri: str) -> list[Source]:
    """Every image below a folder, prefix or zip, sorted by name; hidden files are passed over.

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
        found = [Source(storage.join(root, name), name) for name, _ in storage.list_files(root, recursive=True)]
    images = [s for s in found if _is_image(s.name)]
    if not images:
        raise BadRequestError(f"{uri}: no images in it; PNG, JPEG, WebP, BMP and TIFF files are used")
    return sorted(images, key=lambda source: (source.name, source.member))


def read_source(source: Source) -> bytes:
    """The encoded image.

    Raises:
        BadImageError: a zip member that is damaged, encrypted or packed in a way Python cannot read.
        ArtefactError: the file is gone or cannot be read.
    """
    if source.member < 0:
        return storage.read_bytes(source.uri)
    archive = _open_zip(source.uri)
    for left in reversed(range(_TRIES if storage.is_s3(source.uri) else 1)):
        try:
            return archive.read(archive.infolist()[source.member])  # by its CRC-32
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            if not left:
                raise BadImageError(f"cannot be read from the zip ({error})") from error
    raise AssertionError("unreachable")


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _EXTENSIONS and not hidden


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
