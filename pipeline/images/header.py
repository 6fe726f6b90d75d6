"""Inspection of image files without decoding their pixels."""

from __future__ import annotations

import io
import struct
import warnings

from PIL import Image

from pipeline.images import BadImageError
from pipeline.images.exif import exif_orientation
from pipeline.images.ifd import BYTE_ORDERS
from pipeline.images.jpeg import read_jpeg
from pipeline.images.limits import MAX_PIXELS, MAX_SIDE, MOST_ICC, MOST_XMP, bounded, bounded_exif
from pipeline.images.parts import Metadata, Parts
from pipeline.images.png import SIGNATURE, read_png
from pipeline.images.tiff import read_tiff
from pipeline.images.webp import read_webp

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def read_header(data: bytes) -> Parts:
    """Parse an image file by its content, without unpacking pixels, so that a decompression bomb does no harm.

    Raises:
        BadImageError: the format is not supported, or the image is CMYK, animated, or has too many pixels. Any other
            error of a reader becomes this error, too.
    """
    try:
        parts = _read(data)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        raise BadImageError("not a readable image") from error
    if not parts.height or not parts.width:
        raise BadImageError("not a readable image")
    if parts.height * parts.width > MAX_PIXELS:
        raise BadImageError(f"more than {MAX_PIXELS} pixels")
    if max(parts.stored) > MAX_SIDE:
        raise BadImageError(f"a side of {max(parts.stored)} pixels; at most {MAX_SIDE} can be read")
    return parts


def _read(data: bytes) -> Parts:
    if data.startswith(SIGNATURE):
        return read_png(data)
    if data.startswith(b"\xff\xd8"):
        return read_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return read_webp(data)
    if data[:4] in BYTE_ORDERS:
        return read_tiff(data)
    if data[4:8] == b"ftyp":
        return _read_with_pillow(data, heif=data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64])
    if data[:2] == b"BM":
        return _read_bmp(data)
    return _unsupported(data)


def _read_bmp(data: bytes) -> Parts:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    # Without its own mask, which shorter headers cannot have, the fourth byte of a pixel is not alpha.
    alpha_mask = struct.unpack_from("<I", data, 66)[0] if header >= 56 else 0
    return Parts("BMP", (abs(height), width), data, alpha="straight" if alpha_mask else "none")


def _read_with_pillow(data: bytes, *, heif: bool) -> Parts:
    """Read AVIF, and HEIC if its package is installed."""
    if heif:
        try:
            import pillow_heif
        except ImportError as error:
            raise BadImageError("HEIC needs the extra [heic]: pip install pillow-heif") from error
        pillow_heif.register_heif_opener()
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        if (frames := getattr(image, "n_frames", 1)) > 1 and not heif:
            raise BadImageError(f"animated or multi-page ({frames} frames)")
        info = image.info
        exif = bounded_exif(info.get("exif"))
        icc, xmp = bounded(info.get("icc_profile"), MOST_ICC), bounded(info.get("xmp"), MOST_XMP)
        deep = info.get("bit_depth", 8) > 8 if heif else _is_deep_avif(data)
        return Parts(
            kind="HEIF" if heif else "AVIF",
            stored=(image.height, image.width),
            stream=data,
            metadata=Metadata(icc, exif, xmp, _nclx(data)),
            orientation=1 if heif else exif_orientation(exif),
            lossy=True,
            notes=("read as 8 bit; it has more",) if deep else (),
        )


def _is_deep_avif(data: bytes) -> bool:
    place = data.find(b"av1C", 0, 2**16)
    return place >= 0 and place + 6 < len(data) and bool(data[place + 6] & 0x40)


def _nclx(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the colour space of an AVIF or HEIC as a PNG's cICP chunk, unless it is sRGB or unspecified."""
    place = data.find(b"colrnclx", 0, 2**16)
    if place < 0 or place + 14 > len(data):
        return ()
    primaries, transfer = struct.unpack_from(">HH", data, place + 8)
    if (primaries in {1, 2} and transfer in {1, 2, 6, 13}) or max(primaries, transfer) > 255:
        return ()
    return ((b"cICP", bytes((primaries, transfer, 0, 1))),)


def _unsupported(data: bytes) -> Parts:
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        raise BadImageError(f"{image.format} is not supported; use PNG, JPEG, WebP, BMP, TIFF or AVIF")
