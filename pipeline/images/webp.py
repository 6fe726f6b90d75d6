"""Parsing and assembly of WebP files, chunk by chunk."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pipeline.images import BadImageError
from pipeline.images.exif import exif_orientation
from pipeline.images.limits import MOST_ICC, MOST_XMP, bounded, bounded_exif
from pipeline.images.parts import Metadata, Parts

_ICC, _ALPHA, _EXIF, _XMP = 0x20, 0x10, 0x08, 0x04


def read_webp(data: bytes) -> Parts:
    """Parse a WebP file. Metadata is left out of `stream`.

    Raises:
        BadImageError: the file has no picture, or is animated.
    """
    found: dict[bytes, bytes] = {}
    frames = 0
    for kind, body in _chunks(data):
        frames += kind == b"ANMF"
        found.setdefault(kind, body)
    if frames:
        raise BadImageError(f"animated or multi-page ({frames} frames)")
    picture = b"VP8L" if b"VP8L" in found else b"VP8 "
    size = _size(picture, found.get(picture, b""))
    if size is None:
        raise BadImageError("not a readable image")
    alpha = found.get(b"ALPH") if picture == b"VP8 " else None
    metadata = Metadata(
        icc=bounded(found.get(b"ICCP"), MOST_ICC),
        exif=bounded_exif(found.get(b"EXIF")),
        xmp=bounded(found.get(b"XMP "), MOST_XMP),
    )
    chunks = [] if alpha is None else [_extended(_ALPHA, size), (b"ALPH", alpha)]
    return Parts(
        kind="WEBP",
        stored=size,
        stream=_file([*chunks, (picture, found[picture])]),
        metadata=metadata,
        orientation=exif_orientation(metadata.exif),
        lossy=picture == b"VP8 ",
    )


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Return a WebP file with metadata."""
    chunks = dict(_chunks(data))
    picture = b"VP8L" if b"VP8L" in chunks else b"VP8 "
    size = _size(picture, chunks[picture])
    if size is None or metadata == Metadata():
        return data
    has_alpha = b"ALPH" in chunks or (picture == b"VP8L" and bool(chunks[picture][4] & 0x10))
    flags = _ALPHA * has_alpha
    flags |= _ICC * (metadata.icc is not None) | _EXIF * (metadata.exif is not None) | _XMP * (metadata.xmp is not None)
    parts = [_extended(flags, size), (b"ICCP", metadata.icc), (b"ALPH", chunks.get(b"ALPH"))]
    parts += [(picture, chunks[picture]), (b"EXIF", metadata.exif), (b"XMP ", metadata.xmp)]
    return _file([(kind, body) for kind, body in parts if body is not None])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        yield kind, data[place + 8 : place + 8 + length]
        place += 8 + length + length % 2


def _file(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _extended(flags: int, size: tuple[int, int]) -> tuple[bytes, bytes]:
    height, width = size
    return b"VP8X", struct.pack("<I", flags) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]


def _size(picture: bytes, body: bytes) -> tuple[int, int] | None:
    """Return height and width from the compressed picture itself."""
    if picture == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if picture == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return height & 0x3FFF, width & 0x3FFF
    return None
