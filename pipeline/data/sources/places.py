"""Listing of the files and containers of images in a user's source, before any container is opened."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from kernels_bank.runtime import folders, storage, uris
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.names import spelled
from pipeline.data.sources.source import (
    CONTAINERS,
    Source,
    in_words,
    is_hidden,
    is_image,
    refuse_compressed_tar,
    say_passed_over,
    suffix,
    suffixes,
)

_LIST = ".txt"
_LIST_BYTES = 1 << 30


@dataclass(frozen=True)
class Place:
    """Name one file of a source: an image, or a container of images."""

    uri: str
    name: str  # path below the user's source; empty for a source that is itself a container
    root: str  # the user's source
    stamp: str = field(default="", compare=False)  # of the file, if a listing has it

    @property
    def is_container(self) -> bool:
        """Return whether the file is a container."""
        return suffix(self.uri) in CONTAINERS


def holds_images(uri: str) -> bool:
    """Return whether a file is a container or a list of images, by its suffix."""
    return suffix(uri) in (*CONTAINERS, _LIST)


def list_places(uri: str, *, leave_out: str | None = None, nested: bool = True) -> list[Place]:
    """List the places in a folder, prefix, container or list. Files of other kinds are counted on stderr.

    Args:
        uri: URI of a folder (recursive), an s3:// prefix, a .zip, .tar or .parquet file, or a .txt with one of these or
            an image file per line.
        leave_out: URI of a subfolder that holds no sources.
        nested: whether the containers in a folder are listed.

    Raises:
        BadRequestError: the source does not exist or has no image.
    """
    root = _without_climbs(uris.absolute(uri))
    if suffix(root) == _LIST and storage.is_file(root):
        return _of_list(root)
    return _of_place(root, uri, leave_out, nested=nested)


def _of_place(root: str, uri: str, leave_out: str | None = None, *, nested: bool = True) -> list[Place]:
    refuse_compressed_tar(root)
    if not storage.exists(root):
        raise BadRequestError(f"{uri}: no such folder, zip, tar, Parquet file or prefix")
    if storage.is_file(root):
        if suffix(root) in CONTAINERS:
            return [Place(root, "", root)]
        raise BadRequestError(
            f"{uri}: is a single file; name its folder, a .zip, .tar or .parquet file, a .txt list, or an s3:// prefix"
        )
    if storage.is_special(root):
        raise BadRequestError(f"{uri}: a pipe or device, not a regular file; write the image to a file first")
    odd: list[str] = []
    files = folders.stamped_files(root, recursive=True, odd=odd)
    stamps = {file.name: file.stamp for file in files}
    kept = folders.outside(root, [(file.name, file.size) for file in files], leave_out)
    stamped = [(file_source(root, name), stamps[name]) for name in kept]
    seen = [(source, stamp) for source, stamp in stamped if not is_hidden(source.name)]
    found = [
        Place(s.uri, s.name, root, stamp)
        for s, stamp in seen
        if is_image(s.name) or (nested and suffix(s.name) in CONTAINERS)
    ]
    taken = {place.name for place in found}
    others = suffixes(s.name for s, _ in seen if s.name not in taken)
    if not found:
        there = f", but {in_words(others)}" if others else ""
        also = ", and tar, zip and Parquet files of them" if nested else ""
        raise BadRequestError(
            f"{uri}: no images in it{there}; PNG, JPEG, WebP, BMP, TIFF, AVIF and HEIC files are used{also}"
        )
    say_passed_over(uri, others)
    if named := [spelled(name) for name in odd if is_image(name) and not is_hidden(name)]:
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        what = f"passed over, links to nothing and what is no file: {', '.join(named[:3])}{more}"
        print(f"{uri}: {what}", file=sys.stderr, flush=True)
    return found


def _of_list(root: str) -> list[Place]:
    """List the places in the lines of a text file: URIs, or paths relative to it; skip empty lines and `#` comments."""
    try:
        text = storage.read_bytes(root, limit=_LIST_BYTES).decode("utf-8-sig")  # Windows writes a byte order mark
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{root}: not UTF-8; a list has one URI or path a line") from error
    folder = root.rpartition("/")[0]
    files: list[str] = []
    places: list[Place] = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        try:
            where = uris.absolute(entry if "://" in entry or entry.startswith(("/", "~")) else f"{folder}/{entry}")
            uris.path_of(where)  # refuses an unknown scheme
            where = _without_climbs(where)
            if is_image(where):
                files.append(where)
            elif suffix(where) == _LIST:
                raise BadRequestError(f"{entry}: a list in a list; name both with --source")
            else:
                places += _of_place(where, entry)
        except BadRequestError as error:
            raise BadRequestError(f"{root}, line {number}: {error}") from error
    if not files and not places:
        raise BadRequestError(f"{root}: no line names an image; a list has one URI or path a line")
    above = _common_folder(files)
    return [Place(uri, spelled(uri[len(above) :].lstrip("/")), above) for uri in files] + places


def _without_climbs(uri: str) -> str:
    """Return the same place without `..` in its URI, since names with `..` would lead out of an output folder."""
    parts = uri.split("/")
    if ".." not in parts:
        return uri
    if uris.is_s3(uri):
        raise BadRequestError(f"{uri}: holds '..', which is no folder above on S3; write the whole key")
    after = len(parts) - parts[::-1].index("..")
    # Not by the text alone: after a link to a folder, `..` is the parent of the link's target.
    return os.path.join(os.path.realpath("/".join(parts[:after])), *parts[after:])  # noqa: PTH118 - may be no text


def file_source(root: str, name: str) -> Source:
    """Return the source of a file below a folder or prefix.

    A name that is not UTF-8 or has control characters is escaped, and its URI percent-encoded.
    """
    path = uris.join(root, name)
    if spelled(path) != path and not uris.is_s3(path):
        return Source(f"file://{quote(os.fsencode(path))}", spelled(name))
    return Source(path, spelled(name))


def _common_folder(places: Sequence[str]) -> str:
    """Return the deepest folder that contains all places."""
    if not places:
        return ""
    first, last = (uri.split("/")[:-1] for uri in (min(places), max(places)))
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "/".join(part for part, _ in shared)
