"""Where photographs come from: a folder (recursive), a zip read without unpacking it, or an s3:// prefix."""

from __future__ import annotations

import functools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from pipeline.images import BadImageError

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


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
        filesystem, path = storage.resolve(root)
        if filesystem.get_file_info(path).type == pafs.FileType.File:
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
    try:
        return archive.read(archive.infolist()[source.member])
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise BadImageError(f"cannot be read from the zip ({error})") from error


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _EXTENSIONS and not hidden


@functools.lru_cache(maxsize=1)
def _open_zip(uri: str) -> zipfile.ZipFile:
    """Opened once a process: the table of contents of a large zip is not read again for every member."""
    filesystem, path = storage.resolve(uri)
    try:
        return zipfile.ZipFile(filesystem.open_input_file(path))
    except (zipfile.BadZipFile, OSError, ValueError) as error:  # ValueError: pyarrow's, of a file too short to seek in
        raise BadRequestError(f"{uri}: not a readable zip file ({error})") from error
