"""Photographs as files: 8 and 16 bit, grey, alpha, orientation and colour profile, in and out without loss."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from pipeline.data.images import BadImageError, orient, read_header

Format = Literal["png", "jpeg", "webp", "tiff"]
SUFFIX: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
_OURS = {"PNG": "png", "JPEG": "jpeg", "MPO": "jpeg", "WEBP": "webp", "TIFF": "tiff", "BMP": "png"}
_TIFF_ICC = 34675
_LOSSLESS_WEBP = [cv2.IMWRITE_WEBP_LOSSLESS_MODE, cv2.IMWRITE_WEBP_LOSSLESS_PRESERVE_COLOR]


@dataclass(frozen=True)
class Photograph:
    """The pixels of an image file as a person sees them, and what they mean."""

    pixels: np.ndarray  # (h, w) grey, (h, w, 3) RGB or (h, w, 4) RGBA; uint8 or uint16
    icc: bytes | None  # colour profile
    kind: Format  # of its file; png for BMP


def decode_photograph(data: bytes) -> Photograph:
    """Decode PNG, JPEG, WebP, TIFF or BMP with its depth, channels and colour profile; its EXIF orientation is applied.

    Grey with alpha becomes RGBA; 1-bit and palette images become 8-bit ones.

    Raises:
        BadImageError: not a supported image, animated, CMYK, damaged, too many pixels, or floating point.
    """
    header = read_header(data)
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None:
        raise BadImageError("damaged pixel data")
    if raw.dtype not in (np.uint8, np.uint16):
        raise BadImageError(f"pixels of type {raw.dtype}; 8 or 16 bit integers are supported")
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
        kind, icc = _OURS[str(image.format)], image.info.get("icc_profile")
    return Photograph(np.ascontiguousarray(orient(_rgb(raw), header.orientation)), icc or None, kind)  # type: ignore[arg-type]


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
    bgr = (
        pixels
        if pixels.ndim == 2
        else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    )
    parameters = {
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP],
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


def as_depth(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """8 bit to 16 (times 257) or 16 to 8 (rounded), or as it is."""
    if pixels.dtype == dtype:
        return pixels
    if dtype == np.uint16:
        return pixels.astype(np.uint16) * 257
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _rgb(raw: np.ndarray) -> np.ndarray:
    """OpenCV's (h, w), (h, w, 1), grey + alpha, BGR or BGRA to ours."""
    if raw.ndim == 2 or raw.shape[2] == 1:
        return raw.reshape(raw.shape[:2])
    if raw.shape[2] == 2:
        return np.concatenate([np.repeat(raw[..., :1], 3, axis=2), raw[..., 1:]], axis=2)
    if raw.shape[2] not in (3, 4):
        raise BadImageError(f"{raw.shape[2]} channels")
    return np.concatenate([raw[..., 2::-1], raw[..., 3:]], axis=2)


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
