"""Sources of photographs: folders, s3:// prefixes, lists of URIs, and zips, tars and Parquet files of images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.names import spelled
from pipeline.data.sources.parquet_rows import parquet_rows, read_parquet_row
from pipeline.data.sources.places import Place, file_source, holds_images, list_places
from pipeline.data.sources.source import (
    MOST_BYTES,
    Source,
    climbs,
    is_hidden,
    is_image,
    say_passed_over,
    suffix,
    suffixes,
)
from pipeline.data.sources.tar_members import read_tar_member, tar_members
from pipeline.data.sources.zip_members import read_zip_member, zip_members

__all__ = [
    "Place",
    "Source",
    "file_source",
    "holds_images",
    "list_places",
    "list_sources",
    "members",
    "named",
    "read_source",
    "say_passed_over",
]

_AT_ONCE = 8  # containers whose contents are listed at a time


def list_sources(
    uri: str, *, leave_out: str | None = None, column: str | None = None, nested: bool = True
) -> list[Source]:
    """List every image of a source, sorted by name. Files of other suffixes are counted on stderr.

    The suffix decides whether a file is an image; its content decides how it is read. Hidden files are ignored. Every
    row of a Parquet file is an image.

    Args:
        uri: URI of a folder (recursive), an s3:// prefix, a zip, tar or Parquet file, or a .txt list of these.
        leave_out: URI of a subfolder that holds no sources.
        column: column of the images in Parquet files; None to find it by its type.
        nested: whether zips, tars and Parquet files in a folder are opened.

    Raises:
        BadRequestError: the source does not exist or has no image.
    """
    places = list_places(uri, leave_out=leave_out, nested=nested)
    containers = [place for place in places if place.is_container]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        inside = list(pool.map(lambda place: members(place.uri, column), containers))
    say_passed_over(uri, sum((others for _, others in inside), Counter()))
    return named(places, {place: images for place, (images, _) in zip(containers, inside, strict=True)}, uri)


def members(uri: str, column: str | None = None) -> tuple[list[Source], Counter[str]]:
    """List the images in a zip, tar or Parquet file, in its order.

    Args:
        uri: URI of the container.
        column: column of the images in a Parquet file; None to find it by its type.

    Returns:
        The images, and the number of other members by suffix, or by kind for members of a tar that are not plain files.

    Raises:
        BadRequestError: the container cannot be read.
    """
    if suffix(uri) == ".parquet":
        return parquet_rows(uri, column), Counter()
    every, others = tar_members(uri) if suffix(uri) == ".tar" else (zip_members(uri), Counter[str]())
    seen = [s for s in every if not is_hidden(s.name) and not climbs(s.name)]
    others += suffixes(s.name for s in seen if not _counts(s))
    others.update({"with .. in the name": count} if (count := sum(climbs(s.name) for s in every)) else {})
    return [replace(s, name=spelled(s.name)) for s in seen if _counts(s)], others


def _counts(source: Source) -> bool:
    """Return whether a member is an image, or unknown because the tar is damaged."""
    return is_image(source.name) or (suffix(source.uri) == ".tar" and source.size < 0)


def named(places: Sequence[Place], inside: dict[Place, list[Source]], asked: str) -> list[Source]:
    """Join the files and the members of the containers, sorted by name.

    A member keeps the name that it has in its container, so that its name does not depend on the container's place.
    Names that occur twice are prefixed by the container's name and, if that is not enough, by the user's own name of
    the source.

    Args:
        places: files and containers.
        inside: the members of each container.
        asked: the user's own name of the sources, for the message.

    Raises:
        BadRequestError: there is no image.
    """
    found = [(place, source) for place in places for source in _sources(place, inside)]
    if not found:
        raise BadRequestError(f"{asked}: no images in it")
    for prefix in (_container, _root):
        homes = defaultdict(set)
        for place, source in found:
            homes[source.name].add(place)
        found = [
            (place, replace(source, name=f"{prefix(place)}/{source.name}") if len(homes[source.name]) > 1 else source)
            for place, source in found
        ]
    return sorted((source for _, source in found), key=lambda source: (source.name, source.uri, source.member))


def _sources(place: Place, inside: dict[Place, list[Source]]) -> Iterable[Source]:
    return inside[place] if place.is_container else [Source(place.uri, place.name)]


def _container(place: Place) -> str:
    if not place.is_container:
        return place.root.rpartition("/")[2]
    return place.name or place.uri.rpartition("/")[2]


def _root(place: Place) -> str:
    return place.root.partition("://")[2].strip("/") or place.root.strip("/")


def read_source(source: Source) -> bytes:
    """Return the encoded image.

    Raises:
        BadImageError: a member of a container is damaged, or packed in an unsupported way.
        ArtefactError: the file is missing, larger than any image, or cannot be read.
    """
    if source.member < 0:
        return storage.read_bytes(source.uri, limit=MOST_BYTES)
    match suffix(source.uri):
        case ".tar":
            return read_tar_member(source)
        case ".parquet":
            return read_parquet_row(source)
    return read_zip_member(source)
