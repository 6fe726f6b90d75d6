"""Parsing and assembly of PNG files, chunk by chunk."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from pipeline.images import BadImageError
from pipeline.images.exif import exif_orientation
from pipeline.images.limits import MOST_ICC, MOST_XMP, bounded, bounded_exif
from pipeline.images.parts import Metadata, Parts

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_XMP = b"XML:com.adobe.xmp\0"
_UNPACKED_AT_ONCE = 1 << 20  # bytes
_MOST_NAMED = 3  # most kinds of damaged chunks in a message
# Chunks that affect how the pixels look, with their lengths.
_COLOUR = {b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}


def read_png(data: bytes) -> Parts:
    """Parse a PNG.

    Chunks other than pixels never prevent decoding: they are left out of `stream`, and a missing end is added.

    Raises:
        BadImageError: the header is missing, or the PNG is animated.
    """
    stream, end = [SIGNATURE], b""
    first: dict[bytes, bytes] = {}  # first chunk of metadata of each kind, valid or not; later ones are not unpacked
    colour: dict[bytes, bytes] = {}
    damaged: dict[bytes, None] = {}  # kinds, in order
    for kind, body, check in _chunks(data):
        intact = zlib.crc32(kind + body) == check
        if kind == b"IEND":
            end = kind
            break
        if kind == b"acTL" and len(body) == 8 and (frames := struct.unpack(">I", body[:4])[0]) > 1:
            raise BadImageError(f"animated or multi-page ({frames} frames)")
        if kind[:1].isupper() or kind == b"tRNS":
            stream.append(_chunk(kind, body, check))
        elif not intact:
            damaged[kind] = None
        elif kind in {b"iCCP", b"eXIf"} or (kind == b"iTXt" and body.startswith(_XMP)):
            first.setdefault(kind, body)
        elif len(body) == _COLOUR.get(kind):
            colour.setdefault(kind, body)
    if len(stream) < 2 or stream[1][4:8] != b"IHDR" or len(stream[1]) != 25:
        raise BadImageError("not a readable image")
    width, height, depth, colour_type = struct.unpack(">IIBB", stream[1][8:18])
    stream.append(_chunk(b"IEND", b""))
    notes = [_left_out(list(damaged))] if damaged else []
    icc = xmp = None
    if (profile := first.get(b"iCCP")) is not None:
        icc = _inflated(profile.partition(b"\0")[2][1:], MOST_ICC, "colour profile", notes)
    if (text := first.get(b"iTXt")) is not None:
        xmp = _xmp(text.removeprefix(_XMP), notes)
    exif = bounded_exif(first.get(b"eXIf"))
    return Parts(
        kind="PNG",
        stored=(height, width),
        stream=b"".join(stream),
        metadata=Metadata(icc, exif, xmp, tuple(colour.items())),
        orientation=exif_orientation(exif),
        grey_alpha=colour_type == 4,
        grey_key=_grey_key(stream, depth) if colour_type == 0 else None,
        notes=tuple(dict.fromkeys(notes if end else [*notes, "its end is missing"])),
    )


def with_check_sum(data: bytes) -> bytes:
    """Return a PNG with a complete checksum after its pixels, if only that was cut off from the file.

    Missing pixels remain missing, and the decoder reports them. This takes as long as unpacking, and little memory.
    """
    chunks = list(_chunks(data))
    packed = b"".join(body for kind, body, _ in chunks if kind == b"IDAT")
    width, height = struct.unpack(">II", data[16:24])
    missing = _missing_check_sum(packed[2:], most=16 * (width + 1) * (height + 1))
    if not missing:
        return data
    last = max(place for place, (kind, _, _) in enumerate(chunks) if kind == b"IDAT")
    parts = [_chunk(kind, body, check) for kind, body, check in chunks]
    parts[last] = _chunk(b"IDAT", chunks[last][1] + missing)
    return SIGNATURE + b"".join(parts)


def _missing_check_sum(deflated: bytes, most: int) -> bytes:
    """Return the missing bytes of the four-byte checksum after deflated data.

    The result is empty if data are missing, too, or are more than `most` bytes.
    """
    unpacker, check, length = zlib.decompressobj(wbits=-15), 1, 0
    try:
        while deflated and not unpacker.eof and length <= most:
            block = unpacker.decompress(deflated, _UNPACKED_AT_ONCE)
            check, length = zlib.adler32(block, check), length + len(block)
            deflated = unpacker.unconsumed_tail
    except zlib.error:
        return b""
    return check.to_bytes(4, "big")[len(unpacker.unused_data) :] if unpacker.eof else b""


def with_text(data: bytes, text: bytes) -> bytes:
    """Return a PNG with a tEXt chunk, `keyword NUL text`, after its header."""
    return data[:33] + _chunk(b"tEXt", text) + data[33:]


def has_text(data: bytes, text: bytes) -> bool:
    """Check whether the bytes are a PNG to which `with_text` added this text."""
    return data.startswith(SIGNATURE) and data[33:].startswith(_chunk(b"tEXt", text))


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Return a PNG with metadata after its header. libpng itself would refuse profiles with the smallest flaw."""
    chunks = []
    if metadata.icc is not None:
        chunks.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    chunks += [_chunk(kind, body) for kind, body in metadata.colour]
    if metadata.exif is not None:
        chunks.append(_chunk(b"eXIf", metadata.exif))
    if metadata.xmp is not None:
        chunks.append(_chunk(b"iTXt", _XMP + b"\0\0\0\0" + metadata.xmp))
    return data[:33] + b"".join(chunks) + data[33:]


def as_grey_alpha(data: bytes) -> bytes:
    """Return a PNG with the same bytes, declared as grey with alpha.

    A row of 8-bit grey with alpha has the bytes of 16-bit grey, and 16-bit grey with alpha those of 8-bit RGBA.
    """
    depth = {(16, 0): 8, (8, 6): 16}[data[24], data[25]]
    return data[:8] + _chunk(b"IHDR", data[16:24] + bytes([depth, 4]) + data[26:29]) + data[33:]


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield type, body and checksum of each chunk; a truncated body is yielded as it is, with a matching checksum."""
    place = len(SIGNATURE)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        end = data[place + 8 + length : place + 12 + length]
        yield kind, body, struct.unpack(">I", end)[0] if len(end) == 4 else zlib.crc32(kind + body)
        place += 12 + length


def _chunk(kind: bytes, body: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(kind + body) if check is None else check
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def _left_out(kinds: list[bytes]) -> str:
    """Describe damaged chunks; a kind may not be text, and there may be thousands of kinds."""
    names = [kind.decode("latin-1").encode("unicode_escape").decode("ascii") for kind in kinds[:_MOST_NAMED]]
    more = f" and {len(kinds) - len(names)} more" if len(kinds) > len(names) else ""
    return f"damaged chunk{'s' * (len(kinds) > 1)} {', '.join(names)}{more} left out"


def _inflated(packed: bytes, most: int, what: str, notes: list[str]) -> bytes | None:
    """Return the unpacked bytes, or None with a note if there are too many or they are damaged."""
    try:
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(packed, most)
    except zlib.error:
        notes.append(f"damaged {what} left out")
        return None
    if unpacker.unconsumed_tail:
        notes.append(f"{what} of more than {most / 2**20:g} MiB left out")
        return None
    return found or None


def _xmp(body: bytes, notes: list[str]) -> bytes | None:
    """Return the text of an iTXt chunk after its keyword."""
    packed, text = body[:1] == b"\1", body[2:].split(b"\0", 2)[-1]
    if packed:
        return _inflated(text, MOST_XMP, "XMP packet", notes)
    return bounded(text, MOST_XMP)


def _grey_key(stream: list[bytes], depth: int) -> int | None:
    """Return the transparent value of a grey PNG, scaled to 8 bit like its pixels."""
    for chunk in stream:
        if chunk[4:8] == b"tRNS" and len(chunk) == 14:
            value = struct.unpack(">H", chunk[8:10])[0] & (2**depth - 1)
            return int(value) if depth >= 8 else int(value) * 255 // (2**depth - 1)
    return None
