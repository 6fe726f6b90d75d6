"""Parsing of TIFF files, and insertion of tags."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pipeline.images import BadImageError
from pipeline.images.exif import ORIENTATION, for_tiff, from_tiff, orientation_of
from pipeline.images.ifd import (
    SHORT,
    UNDEFINED,
    BrokenDirectoryError,
    Directory,
    Value,
    as_integer,
    as_numbers,
    byte_order,
    first_directory,
    first_tag,
    header,
    integer,
    narrowed,
    next_directory,
    read_directory,
    write_directory,
)
from pipeline.images.limits import MOST_ICC, MOST_XMP
from pipeline.images.parts import Metadata, Parts
from pipeline.images.xmp import upright_xmp

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _XMP, _ICC = 0x0100, 0x0101, 0x0102, 0x0106, 0x02BC, 0x8773
_CHANNELS, _PLANES, _EXTRA, _COLOURS, _SAMPLES = 0x0115, 0x011C, 0x0152, 0x0140, 0x0153
_SUBFILE, _COMPRESSION, _TILES = 0x00FE, 0x0103, 0x0144
_STRIPS = ((0x0111, 0x0117), (_TILES, 0x0145))  # where they are, and their bytes
_MOST_PREVIEWS = 16  # that are looked for: a pyramid halves its sides
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE = 0, 1, 3  # photometric
_UNSPECIFIED, _PREMULTIPLIED, _STRAIGHT = 0, 1, 2  # extra channel
_UNREAD_COLOURS = {5: "CMYK", 8: "Lab", 9: "Lab", 10: "Lab"}
_BYTE = 1
_READ_BITS = {8, 10, 12, 14, 16, 32, 64}  # bits of a value; the decoder decides about the last two
_READ_BITS_OF_ONE = _READ_BITS | {1, 2, 4}  # for pixels of one value, grey or palette
_UNREAD_VALUES = {2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}
# Tags for the decoder: size, bits, compression, colours, strips, tiles, predictor, palette, JPEG tables, YCbCr. It
# would copy the values of all other tags, even if many tags point to one large value.
_PIXEL_TAGS = {
    *(0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0112, 0x0115, 0x0116, 0x0117, 0x011C, 0x0124, 0x0125),
    *(0x013D, 0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x014C, 0x0152, 0x0153, 0x0154, 0x0155, 0x015B),
    *range(0x0200, 0x020A),
    *range(0x0211, 0x0215),
}


class _Channels(NamedTuple):
    """Describe the channels of a page."""

    grey_alpha: bool
    negative: bool
    only_pillow: bool
    alpha: Literal["straight", "premultiplied", "none"]
    told: Directory  # tags that make a decoder keep their values unchanged


def read_tiff(data: bytes) -> Parts:
    """Parse a TIFF. Its decoder applies the orientation itself.

    Raises:
        BadImageError: the TIFF has no page or more than one, page directories or pixels outside of the file, or
            unsupported channels.
    """
    try:
        order, at = byte_order(data), first_directory(data)
        pages = _pages(data, at, order)
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
    channels = _channels(page, order)
    _refuse_cut(page, order, (width, height), len(data))
    pixel_tags = {tag: page[tag] for tag in _PIXEL_TAGS & page.keys()} | channels.told
    turned, xmp = orientation_of(page, order) >= 5, _bytes(page, _XMP, MOST_XMP)
    if xmp is not None and ORIENTATION in page:
        xmp = upright_xmp(xmp)
    return Parts(
        kind="TIFF",
        stored=(width, height) if turned else (height, width),
        stream=_with_directory(data, pixel_tags, order),
        metadata=Metadata(_bytes(page, _ICC, MOST_ICC), from_tiff(data), xmp),
        grey_alpha=channels.grey_alpha,
        negative=channels.negative,
        only_pillow=channels.only_pillow,
        alpha=channels.alpha,
    )


def _channels(page: Directory, order: str) -> _Channels:
    """Describe how decoded values relate to the page: OpenCV multiplies 8-bit RGB by alpha, and drops grey's alpha.

    Raises:
        BadImageError: no decoder supports the channels.
    """
    photometric = as_integer(page.get(_PHOTOMETRIC), order)
    count = as_integer(page.get(_CHANNELS), order) or 1
    told_bits, extra = _first(page, _BITS, order), _first(page, _EXTRA, order)
    bits = told_bits or 1
    single = photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE}
    if kind := _UNREAD_VALUES.get(_first(page, _SAMPLES, order) or 0):
        raise BadImageError(
            f"a TIFF of {kind} of {bits} bits; convert the file to whole numbers of 8 or 16 bits from 0"
        )
    if told_bits is not None and told_bits not in (_READ_BITS_OF_ONE if single else _READ_BITS):
        raise BadImageError(f"a TIFF of {told_bits} bits a value; convert the file to 8 or 16 bits")
    if (photometric == _PALETTE and _COLOURS not in page) or (count > 1 and _BITS not in page):
        raise BadImageError("damaged: its palette or its bits a value are missing, as where it was cut short")
    more = count - (1 if single else 3)
    if more > 1 or (more == 1 and single and (bits != 8 or photometric == _PALETTE)):
        raise BadImageError(
            f"a TIFF of {count} channels of {bits} bits, {more} of them beside its "
            f"{'grey' if single else 'colours'}; convert the file to PNG"
        )
    grey_alpha = more == 1 and single and extra != _UNSPECIFIED
    if count > 1 and as_integer(page.get(_PLANES), order) == 2 and (bits > 8 or grey_alpha):
        raise BadImageError("a TIFF whose channels are stored one after the other; store them interleaved, or as PNG")
    told: Directory = {}
    if grey_alpha:
        told = {_EXTRA: integer(_STRAIGHT, order, SHORT), _PHOTOMETRIC: integer(_BLACK_IS_ZERO, order, SHORT)}
    elif more == 1 and not single:
        told = {_EXTRA: integer(_PREMULTIPLIED, order, SHORT)}
    few_bits = single and (1 < bits < 8 or (bits == 1 and photometric == _PALETTE))
    # OpenCV's libtiff takes the bytes of a plain tile of 8-bit grey or RGB for a multiple of 1024.
    plain_tiles = _TILES in page and not more and bits <= 8 and _is_plain(page, order)
    return _Channels(
        grey_alpha=grey_alpha,
        negative=photometric == _WHITE_IS_ZERO and (bits > 8 or grey_alpha),
        only_pillow=few_bits or plain_tiles,
        alpha="none" if extra == _UNSPECIFIED else "premultiplied" if extra == _PREMULTIPLIED else "straight",
        told=told,
    )


def _refuse_cut(page: Directory, order: str, size: tuple[int, int], length: int) -> None:
    """Check that the pixels lie inside of the file: what is written behind it for a decoder would be read as pixels.

    Raises:
        BadImageError: they do not.
    """
    width, height = size
    channels, bits = as_integer(page.get(_CHANNELS), order) or 1, _first(page, _BITS, order) or 1
    whole = (width * channels * bits // 8 + channels) * height
    most = whole if _is_plain(page, order) and _TILES not in page else length  # some say too many bytes
    for places, counts in _STRIPS:
        starts, sizes = as_numbers(page.get(places), order), as_numbers(page.get(counts), order).clip(max=most)
        told = min(len(starts), len(sizes))
        if (starts[:told] + sizes[:told] > length).any():
            raise BadImageError("damaged: cut short, pixels lie outside of the file")


def _is_plain(page: Directory, order: str) -> bool:
    """Tell whether the pixels are not compressed."""
    return as_integer(page.get(_COMPRESSION), order) in {None, 1}


def _first(page: Directory, tag: int, order: str) -> int | None:
    """Return the first number of a tag, which is the same for all channels in supported files."""
    value = page.get(tag)
    if not isinstance(value, Value) or value.kind != SHORT:
        return None
    return as_integer(Value(SHORT, 1, value.data[:2]), order)


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Return a little-endian TIFF of one page with more tags; a new directory is written at the end."""
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
    """Return a TIFF of one page, possibly from a BigTIFF, with a new directory at the end."""
    data += b"\0" * (len(data) % 2)  # offsets are even
    directory = write_directory(narrowed(page, order), len(data), order)
    return b"".join([header(order, len(data)), memoryview(data)[8:], directory])


def _pages(data: bytes, at: int, order: str) -> int:
    """Count the pages, up to the most that one file can hold.

    Smaller copies of the first page, previews and the levels of a pyramid, do not count.
    """
    pages: dict[int, None] = {}
    while at and at not in pages and len(pages) < 1000:
        pages[at] = None
        at = next_directory(data, at)
    first, *others = pages or (0,)
    if not others or len(others) > _MOST_PREVIEWS or _is_preview(data, first, order):
        return len(pages)
    return 1 + sum(not _is_preview(data, page, order) for page in others)


def _is_preview(data: bytes, at: int, order: str) -> bool:
    """Tell whether a page is said to be a smaller copy of another one, and no mask."""
    tag, value = first_tag(data, at) or (0, None)
    return tag == _SUBFILE and as_integer(value, order) == 1


def _bytes(page: Directory, tag: int, most: int) -> bytes | None:
    value = page.get(tag)
    return value.data if isinstance(value, Value) and 0 < len(value.data) <= most else None
