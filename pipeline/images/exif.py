"""EXIF blocks: their orientation, and the block for a restored image."""

from __future__ import annotations

from pipeline.images.ifd import (
    EXIF,
    GPS,
    MAKER_NOTE,
    SHORT,
    BrokenDirectoryError,
    Directory,
    Value,
    as_integer,
    byte_order,
    header,
    integer,
    narrowed,
    read_directory,
    swapped,
    write_directory,
)

ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_FURTHEST_NOTE = 2**16  # largest EXIF block of a JPEG
_THUMBNAIL = {0x0201, 0x0202}
# Tags of a TIFF's directory that describe the photograph and not the storage of its pixels.
_DESCRIPTIVE = {
    *(0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C),  # document, description, camera, date, artist
    *(0x4746, 0x4749, 0x8298, 0xC614, 0xC62F, 0xC68B),  # rating, copyright, camera and its number, file name
    *range(0x9C9B, 0x9CA0),  # Windows' title, comment, author, keywords, subject
    *(EXIF, GPS),
}


def orientation_of(directory: Directory, order: str) -> int:
    """Return the orientation, 1 to 8; 1 if the tag is missing or invalid."""
    found = as_integer(directory.get(ORIENTATION), order)
    return found if found is not None and 1 <= found <= 8 else 1


def has_orientation(block: bytes | None) -> bool:
    """Return whether an EXIF block has an orientation, valid or not."""
    try:
        return block is not None and ORIENTATION in read_directory(block)
    except BrokenDirectoryError:
        return False


def exif_orientation(block: bytes | None) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 if it has no valid one."""
    try:
        return orientation_of(read_directory(block), byte_order(block)) if block else 1
    except BrokenDirectoryError:
        return 1


def upright(block: bytes, width: int, height: int) -> bytes:
    """Return an EXIF block for an upright image of this size: no thumbnail, orientation 1, corrected sizes.

    The maker's note stays at its position, since offsets in it count from the block's start.

    Raises:
        BrokenDirectoryError: the block cannot be read.
    """
    order = byte_order(block)
    directory = {tag: value for tag, value in read_directory(block).items() if tag not in _THUMBNAIL}
    if ORIENTATION in directory:
        directory[ORIENTATION] = integer(1, order, SHORT)
    inner = directory.get(EXIF)
    for place, tag, size in (
        (directory, _WIDTH, width),
        (directory, _HEIGHT, height),
        (inner, _PIXEL_WIDTH, width),
        (inner, _PIXEL_HEIGHT, height),
    ):
        if isinstance(place, dict) and tag in place:
            place[tag] = integer(size, order)
    return _block(directory, order)


def from_tiff(data: bytes) -> bytes | None:
    """Return the description of the photograph in the first directory of a TIFF file, as an EXIF block.

    Raises:
        BrokenDirectoryError: the directory cannot be read.
    """
    order = byte_order(data)
    described = {tag: value for tag, value in read_directory(data).items() if tag in _DESCRIPTIVE}
    return _block(narrowed(described, order), order) if described else None


def for_tiff(block: bytes) -> Directory:
    """Return the tags of an EXIF block for the directory of a little-endian TIFF file.

    Raises:
        BrokenDirectoryError: the block cannot be read.
    """
    described = {tag: value for tag, value in read_directory(block).items() if tag in _DESCRIPTIVE}
    return described if byte_order(block) == "<" else swapped(described)


def _block(directory: Directory, order: str) -> bytes:
    inner = directory.get(EXIF)
    note = inner.get(MAKER_NOTE) if isinstance(inner, dict) else None
    start, body = 8, b""
    if isinstance(note, Value) and 8 <= note.at <= _FURTHEST_NOTE and len(note.data) > 4:
        body = bytes(note.at - 8) + note.data
        body += b"\0" * (len(body) % 2)
        start += len(body)
    else:
        note = None
    return header(order, start) + body + write_directory(directory, start, order, standing=note)
