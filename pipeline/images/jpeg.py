"""Parsing and assembly of JPEG files, segment by segment."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from pipeline.images import BadImageError
from pipeline.images.exif import exif_orientation
from pipeline.images.limits import MOST_SCANS
from pipeline.images.parts import Metadata, Parts

_SOI, _EOI, _SOS, _APP0, _APP1, _APP2, _APP14, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
# Start of frame: all codes except DHT, JPG and DAC, which are among them.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_MOST_BODY = 2**16 - 3
# In entropy-coded data 0xFF is followed by 0 or a restart marker; anything else (except a padding 0xFF) ends it.
_END_OF_SCAN = re.compile(rb"\xff(?=[^\x00\xd0-\xd7\xff])", re.DOTALL)


class _Frame(NamedTuple):
    height: int
    width: int
    bits: int
    components: bytes  # ids of the components


def read_jpeg(data: bytes) -> Parts:
    """Parse a JPEG.

    Metadata and any data after the image are left out of `stream`, and a missing end marker is added. The decoder
    checks whether all pixels exist.

    Raises:
        BadImageError: the JPEG has no frame or no scan, is CMYK, has more than 8 bits or too many scans, or lacks scans
            at the end.
    """
    stream, notes = [b"\xff\xd8"], []
    icc: dict[int, tuple[int, bytes]] = {}
    exif = xmp = frame = None
    missing: dict[int, set[int]] = {}  # coefficients of each component that are not yet complete to the last bit
    place, scans, ended = 2, 0, False
    while (segment := _next_segment(data, place)) is not None:
        marker, body, place = segment
        if marker == _EOI:
            ended = True
            break
        if marker == _APP1 and body.startswith(_EXIF):
            exif = exif or body.removeprefix(_EXIF)
        elif marker == _APP1 and body.startswith(_XMP):
            xmp = xmp or body.removeprefix(_XMP)
        elif marker == _APP2 and body.startswith(_ICC) and len(body) > 14:
            icc.setdefault(body[12], (body[13], body[14:]))
        elif marker in {_APP0, _APP14} or not (_APP0 <= marker < _APP0 + 16 or marker == _COM):
            stream.append(bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body)
        if marker in _FRAMES and len(body) >= 6:
            if frame is not None:
                raise BadImageError("damaged: more than one frame")
            height, width, count = struct.unpack(">HHB", body[1:6])
            frame = _Frame(height, width, body[0], body[6 : 6 + 3 * count : 3])
            missing = {component: set(range(64)) for component in frame.components}
        if marker == _SOS:
            scans += 1
            if scans > MOST_SCANS:
                raise BadImageError(f"more than {MOST_SCANS} scans")
            end = _END_OF_SCAN.search(data, place)
            stop = end.start() if end else len(data)
            stream.append(data[place:stop])
            place = stop
            _complete(missing, body)
    if frame is None or not scans:
        raise BadImageError("damaged pixel data" if frame else "not a readable image")
    _refuse(frame)
    if not ended:
        if any(missing.values()):
            raise BadImageError("damaged: cut short, its last scans are missing")
        notes.append("its end is missing")
    return Parts(
        kind="JPEG",
        stored=(frame.height, frame.width),
        stream=b"".join(stream) + b"\xff\xd9",
        metadata=Metadata(_joined(icc), exif, xmp),
        orientation=exif_orientation(exif),
        notes=tuple(notes),
    )


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Return a JPEG with metadata inserted after its JFIF segment. The metadata must not be `too_large`."""
    bodies = []
    if metadata.exif is not None:
        bodies.append((_APP1, _EXIF + metadata.exif))
    if metadata.xmp is not None:
        bodies.append((_APP1, _XMP + metadata.xmp))
    if metadata.icc is not None:
        step = _MOST_BODY - 14
        parts = [metadata.icc[i : i + step] for i in range(0, len(metadata.icc), step)]
        bodies += [(_APP2, _ICC + bytes((i, len(parts))) + part) for i, part in enumerate(parts, start=1)]
    segments = b"".join(bytes((0xFF, m)) + struct.pack(">H", len(body) + 2) + body for m, body in bodies)
    start = 2
    if data[2:4] == b"\xff\xe0":
        start = 4 + struct.unpack(">H", data[4:6])[0]
    return data[:start] + segments + data[start:]


def too_large(metadata: Metadata) -> list[str]:
    """Name the parts of the metadata that a JPEG's segments cannot hold."""
    most = {"exif": _MOST_BODY - len(_EXIF), "xmp": _MOST_BODY - len(_XMP), "icc": 255 * (_MOST_BODY - 14)}
    return [name for name, size in most.items() if len(getattr(metadata, name) or b"") > size]


def _next_segment(data: bytes, place: int) -> tuple[int, bytes, int] | None:
    """Return marker, body and end position of a segment; None if the file ends, also in the middle of a segment."""
    while True:
        place = data.find(b"\xff", place)
        if place < 0:
            return None
        while place < len(data) and data[place] == 0xFF:
            place += 1
        if place >= len(data):
            return None
        marker = data[place]
        place += 1
        if marker == _EOI:
            return marker, b"", place
        if marker in {0x00, 0x01, _SOI} or 0xD0 <= marker <= 0xD7:
            continue  # these markers have no body
        if place + 2 > len(data):
            return None
        (length,) = struct.unpack_from(">H", data, place)
        if length < 2 or place + length > len(data):
            return None
        return marker, data[place + 2 : place + length], place + length


def _complete(missing: dict[int, set[int]], scan: bytes) -> None:
    """Remove coefficients from `missing` that a scan completes. A malformed header completes none."""
    count = scan[0] if scan else 0
    if len(scan) != 4 + 2 * count:
        return
    first, last, bits = scan[-3], scan[-2], scan[-1]
    for component in scan[1:-3:2]:
        if bits & 15 == 0 and component in missing:
            missing[component] -= set(range(first, last + 1))


def _refuse(frame: _Frame) -> None:
    if len(frame.components) == 4:
        raise BadImageError("CMYK colours; convert the file to RGB")
    if frame.bits != 8:
        raise BadImageError(f"a JPEG of {frame.bits} bits; 8 are supported")


def _joined(parts: dict[int, tuple[int, bytes]]) -> bytes | None:
    """Join the numbered parts of a colour profile; return None unless all exist."""
    count = len(parts)
    if not count or sorted(parts) != list(range(1, count + 1)) or parts[1][0] != count:
        return None
    return b"".join(parts[number][1] for number in range(1, count + 1))
