"""Small image files of every format, and their metadata."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:PixelXDimension="48"/>'
    b"<dc:title>cat</dc:title><xmp:Thumbnails>/9j/4AAQ</xmp:Thumbnails></x:xmpmeta>"
)
MAKER_NOTE = b"MAKER NOTE WITH OFFSETS"


def picture(height: int = 32, width: int = 48, channels: int = 3) -> np.ndarray:
    """Return smooth uint8 pixels that compress without ringing."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3).reshape(height, width, channels)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """Return the file that Pillow writes."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def camera(orientation: int = 6) -> Image.Exif:
    """Return the EXIF data of a photograph of 48 x 32 pixels."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132], exif[0x0112] = "Maker", "Camera 1", "2020:01:02 03:04:05", orientation
    inner = exif.get_ifd(0x8769)
    inner[0x829A], inner[0x9003] = IFDRational(1, 125), "2020:01:02 03:04:05"
    inner[0xA002], inner[0xA003], inner[0x927C] = 48, 32, MAKER_NOTE
    place = exif.get_ifd(0x8825)
    place[1], place[2], place[3], place[4] = "N", (52.0, 31.0, 12.5), "E", (13.0, 24.0, 18.0)
    return exif


def with_all(kind: str) -> bytes:
    """Return a file with EXIF and XMP."""
    return _with_xmp(kind, camera())


def with_xmp_alone(kind: str) -> bytes:
    """Return a file with XMP, and without EXIF."""
    return _with_xmp(kind, Image.Exif())


def _with_xmp(kind: str, exif: Image.Exif) -> bytes:
    pixels = picture()
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP.decode())
        return encoded(pixels, kind, exif=exif, pnginfo=text)
    if kind == "TIFF":
        exif[700] = XMP
        return encoded(pixels, kind, exif=exif.tobytes())
    return encoded(pixels, kind, exif=exif, xmp=XMP)


def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    """Return a PNG chunk; `wrong` spoils its check sum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Return a PNG with chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def profile(space: bytes, size: int = 200) -> bytes:
    """Return a colour profile's header for a colour space."""
    head = bytearray(size)
    struct.pack_into(">I", head, 0, size)
    head[4:8], head[8:12], head[12:16], head[16:20] = b"test", b"\x02\x10\0\0", b"mntr", space
    head[20:24], head[36:40] = b"XYZ ", b"acsp"
    return bytes(head)
