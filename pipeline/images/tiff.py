"""TIFF files: their pages, what they tell of the photograph, and a page with more tags."""

from __future__ import annotations

import numpy as np

from pipeline.images import BadImageError
from pipeline.images.exif import for_tiff, from_tiff, orientation_of
from pipeline.images.ifd import (
    LONG,
    LONG8,
    UNDEFINED,
    BrokenDirectoryError,
    Directory,
    Value,
    as_integer,
    byte_order,
    first_directory,
    header,
    next_directory,
    read_directory,
    write_directory,
)
from pipeline.images.limits import MOST_ICC, MOST_XMP
from pipeline.images.parts import Metadata, Parts

_WIDTH, _HEIGHT, _PHOTOMETRIC, _XMP, _ICC = 0x0100, 0x0101, 0x0106, 0x02BC, 0x8773
_UNREAD_COLOURS = {5: "CMYK", 8: "Lab", 9: "Lab", 10: "Lab"}
_BYTE = 1
# What a decoder needs: size, bits, compression, colours, strips, tiles, predictor, palette, JPEG tables, YCbCr. It
# keeps a copy of the values of every other tag, as often as one large value is pointed to.
_PIXEL_TAGS = {
    *(0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0112, 0x0115, 0x0116, 0x0117, 0x011C, 0x0124, 0x0125),
    *(0x013D, 0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014C, 0x0152, 0x0153, 0x0154, 0x0155, 0x015B),
    *range(0x0200, 0x020A),
    *range(0x0211, 0x0215),
}


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
        stream=_with_directory(data, {tag: page[tag] for tag in _PIXEL_TAGS & page.keys()}, order),
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
    return _with_directory(data, page, "<")


def _with_directory(data: bytes, page: Directory, order: str) -> bytes:
    """Return a TIFF of one page, also of a BigTIFF, whose directory is written anew behind everything else."""
    data += b"\0" * (len(data) % 2)  # offsets are even
    narrow = {tag: _narrow(value, order) if isinstance(value, Value) else value for tag, value in page.items()}
    return b"".join([header(order, len(data)), memoryview(data)[8:], write_directory(narrow, len(data), order)])


def _narrow(value: Value, order: str) -> Value:
    """Return numbers of 64 bits as such of 32; those that are larger lie outside of any file."""
    if value.kind != LONG8:
        return value
    numbers = np.frombuffer(value.data, f"{order}u8").clip(max=2**32 - 1)
    return Value(LONG, value.number, numbers.astype(f"{order}u4").tobytes())


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
