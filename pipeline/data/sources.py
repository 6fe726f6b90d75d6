"""Where photographs come from: a folder (recursive), a zip read without unpacking it, or an s3:// prefix."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Source:
    """One image file: `name` is its path inside the source, `member` its name in a zip (else empty)."""

    uri: str
    name: str
    member: str = ""


def list_sources(uri: str) -> list[Source]:
    """Every image below a folder, prefix or zip, sorted by name; hidden files are passed over.

    Raises:
        BadRequestError: nothing is there, or there is no image in it.
    """
    root = storage.absolute(uri)
    if not storage.exists(root):
        raise BadRequestError(f"{uri}: no such folder, zip or prefix")
    if root.lower().endswith(".zip"):
        found = [Source(root, name, name) for name in _zip_members(root)]
    else:
        found = [Source(storage.join(root, name), name) for name, _ in storage.list_files(root, recursive=True)]
    images = [s for s in found if _is_image(s.name)]
    if not images:
        raise BadRequestError(f"{uri}: no images in it; PNG, JPEG, WebP, BMP and TIFF files are used")
    return sorted(images, key=lambda source: source.name)


def read_source(source: Source) -> bytes:
    """The encoded image."""
    if not source.member:
        return storage.read_bytes(source.uri)
    with _open_zip(source.uri) as archive:
        return archive.read(source.member)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in _EXTENSIONS and not hidden


def _zip_members(uri: str) -> list[str]:
    with _open_zip(uri) as archive:
        return [info.filename for info in archive.infolist() if not info.is_dir()]


def _open_zip(uri: str) -> zipfile.ZipFile:
    filesystem, path = storage.resolve(uri)
    try:
        return zipfile.ZipFile(filesystem.open_input_file(path))
    except zipfile.BadZipFile as error:
        raise BadRequestError(f"{uri}: not a readable zip file ({error})") from error
