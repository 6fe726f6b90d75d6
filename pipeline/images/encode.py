"""Pixels to image bytes."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

from pipeline.images import BadImageError
from pipeline.images.convert import to_opencv
from pipeline.images.photograph import SUFFIX, Photograph

_TIFF_ICC = 34675
# Of the lossless codecs measured (docs/data.md), the one that decodes fastest among the PNGs below 0.6 of the raw size.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
_LOSSLESS_WEBP = [cv2.IMWRITE_WEBP_LOSSLESS_MODE, cv2.IMWRITE_WEBP_LOSSLESS_PRESERVE_COLOR]


def encode_png(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) RGB or (H, W) grey, uint8 or uint16, as PNG; equal pixels give equal bytes."""
    ok, encoded = cv2.imencode(".png", to_opencv(image), _PNG)
    if not ok:
        raise BadImageError(f"an array of shape {image.shape} and type {image.dtype} cannot be written as PNG")
    return encoded.tobytes()


def encode_photograph(photograph: Photograph, quality: int) -> bytes:
    """Encode as `photograph.kind`, its colour profile in it. PNG and TIFF are lossless, WebP at quality 100.

    Args:
        photograph: for JPEG and WebP 8 bit, for JPEG without alpha.
        quality: of JPEG and WebP, 1 to 100.

    Raises:
        BadImageError: the format cannot hold these pixels.
    """
    pixels, kind = photograph.pixels, photograph.kind
    if kind == "jpeg" and pixels.ndim == 3 and pixels.shape[2] == 4:
        raise BadImageError("a JPEG has no alpha; choose --format png, webp or tiff")
    if kind in {"jpeg", "webp"} and pixels.dtype != np.uint8:
        raise BadImageError(f"a {kind} has 8 bits; choose --depth 8, or --format png or tiff")
    bgr = to_opencv(pixels)
    parameters = {
        "png": _PNG,
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, quality],
        "webp": _LOSSLESS_WEBP if quality == 100 else [cv2.IMWRITE_WEBP_QUALITY, quality],
        "tiff": [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_DEFLATE],
    }[kind]
    if photograph.icc is None or kind in _PROFILE_WRITERS:
        ok, encoded = cv2.imencode(SUFFIX[kind], bgr, parameters)
    else:
        profile = [np.frombuffer(photograph.icc, np.uint8)]
        ok, encoded = cv2.imencodeWithMetadata(SUFFIX[kind], bgr, [cv2.IMAGE_METADATA_ICCP], profile, parameters)
    if not ok:
        raise BadImageError(f"an image of {pixels.shape[1]} x {pixels.shape[0]} pixels cannot be written as {kind}")
    data: bytes = encoded.tobytes()
    if photograph.icc is not None and kind in _PROFILE_WRITERS:
        data = _PROFILE_WRITERS[kind](data, photograph.icc)
    return data


def _png_with_profile(data: bytes, profile: bytes) -> bytes:
    """A PNG with an iCCP chunk behind its header; libpng itself refuses profiles with the smallest flaw."""
    chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    size, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + size + chunk + check + data[33:]


def _tiff_with_profile(data: bytes, profile: bytes) -> bytes:
    """A TIFF of one page with one more tag: its directory is written anew behind everything else."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entries = [data[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    body = data + b"\0" * (len(data) % 2)  # offsets are even
    entries.append(struct.pack(f"{order}HHII", _TIFF_ICC, 7, len(profile), len(body)))
    body += profile + b"\0" * (len(profile) % 2)
    entries.sort(key=lambda entry: struct.unpack_from(f"{order}H", entry)[0])
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack(f"{order}I", 0)
    return body[:4] + struct.pack(f"{order}I", len(body)) + body[8:] + directory


_PROFILE_WRITERS = {"png": _png_with_profile, "tiff": _tiff_with_profile}
