"""TIFF files: their pages, what they tell of the photograph, and a page with more tags."""

from __future__ import annotations

import struct

from pipeline.images import BadImageError
from pipeline.images.exif import for_tiff, from_tiff, orientation_of
from pipeline.images.ifd import (
    UNDEFINED,
    BrokenDirectoryError,
    Directory,
    Value,
    as_integer,
    byte_order,
    first_directory,
    next_directory,
    read_directory,
    write_directory,
)
from pipeline.images.limits import MOST_ICC, MOST_XMP
from pipeline.images.parts import Metadata, Parts

_WIDTH, _HEIGHT, _PHOTOMETRIC, _XMP, _ICC = 0x0100, 0x0101, 0x0106, 0x02BC, 0x8773
_UNREAD_COLOURS = {5: "CMYK", 8: "Lab", 9: "Lab", 10: "Lab"}
_BYTE = 1


def read_tiff(data: bytes) -> Parts:
    """Take a TIFF apart. Its decoder turns pixels upright by itself.

    Raises:
        BadImageError: no page, more than one page, or page directories that lead outside of the file.
    """
    try:
        order, at = byte_order(data), first_directory(data)
        pages = _pages(data, at)
        page = read_directory(data, at)
    except BrokenDirectoryError as error:
        raise BadImageError(f"damaged: {error}") from error
    if pages > 1:
        raise BadImageError(f"animated or multi-page ({pages} frames)")
    width, height = as_integer(page.get(_WIDTH), order), as_integer(page.get(_HEIGHT), order)
    if not width or not height:
        raise BadImageError("not a readable image")
    colours = _UNREAD_COLOURS.get(as_integer(page.get(_PHOTOMETRIC), order) or 0)
    if colours:
        raise BadImageError(f"{colours} colours; convert the file to RGB")
    turned = orientation_of(page, order) >= 5
    return Parts(
        kind="TIFF",
        stored=(width, height) if turned else (height, width),
        stream=data,
        metadata=Metadata(_bytes(page, _ICC, MOST_ICC), from_tiff(data), _bytes(page, _XMP, MOST_XMP)),
    )


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Return a little-endian TIFF of one page with more tags: its directory is written anew behind everything else."""
    if metadata == Metadata():
        return data
    page: Directory = for_tiff(metadata.exif) if metadata.exif is not None else {}
    page |= read_directory(data)
    if metadata.icc is not None:
        page[_ICC] = Value(UNDEFINED, len(metadata.icc), metadata.icc)
    if metadata.xmp is not None:
        page[_XMP] = Value(_BYTE, len(metadata.xmp), metadata.xmp)
    data += b"\0" * (len(data) % 2)  # offsets are even
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + write_directory(page, len(data), "<")


def _pages(data: bytes, at: int) -> int:
    """Count the pages, no further than one sees that it is more than one file can hold."""
    seen: set[int] = set()
    while at and at not in seen and len(seen) < 1000:
        seen.add(at)
        at = next_directory(data, at)
    return len(seen)


def _bytes(page: Directory, tag: int, most: int) -> bytes | None:
    value = page.get(tag)
    return value.data if isinstance(value, Value) and 0 < len(value.data) <= most else None
