"""Decoding of image bytes to pixels, either as they are in the file or as 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin

from pipeline.images import BadImageError
from pipeline.images.convert import from_opencv, has_alpha, orient, over_white, straight_alpha, to_depth
from pipeline.images.header import read_header
from pipeline.images.jpeg_history import earlier_coding
from pipeline.images.jpeg_level import jpeg_error
from pipeline.images.parts import Parts
from pipeline.images.photograph import FORMAT_OF_KIND, JpegCoding, Photograph
from pipeline.images.png import with_check_sum
from pipeline.images.quiet import quiet_decoders

_NUMPY = b"\x93NUMPY"
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# Error of a WebP of about quality 85, which the file does not state. Too large a value costs some tenths of a decibel,
# too small a value several.
_UNTOLD_ERROR = 3 / 255


def decode_photograph(data: bytes) -> Photograph:
    """Decode an image file with its depth, channels and metadata; its orientation is applied.

    1-bit and palette images become 8-bit ones.

    Raises:
        BadImageError: the image is not supported, animated, CMYK, damaged, floating point, or has too many pixels. Any
            other error of a decoder becomes this error, too.
        MemoryError: there is not enough memory for its pixels.
    """
    parts = read_header(data)
    stored = _pixels(parts)
    pixels = _upright(stored, parts)
    coding = _jpeg_coding(parts.stream) if parts.kind == "JPEG" else None
    file_error, notes = _coding_error(stored, coding)
    if parts.lossy:
        file_error = math.hypot(file_error, _UNTOLD_ERROR)
    return Photograph(pixels, FORMAT_OF_KIND[parts.kind], parts.metadata, coding, file_error, parts.notes + notes)


def _coding_error(stored: np.ndarray, coding: JpegCoding | None) -> tuple[float, tuple[str, ...]]:
    """Return the error of the pixels from this and earlier compressions, and notes for the user."""
    error = jpeg_error(stored, coding.tables, coding.subsampling) if coding else 0.0
    if stored.dtype != np.uint8:
        return error, ()
    opaque = stored if stored.ndim == 2 else stored[..., 0] if stored.shape[2] < 3 else stored[..., :3]
    earlier = earlier_coding(opaque, np.array(coding.tables[0]) if coding else None)
    if earlier is None:
        return error, ()
    return math.hypot(error, earlier.error), (f"it was a JPEG of quality {earlier.quality} or so before",)


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB, as displayed.

    16-bit values are rounded to 8 bit, grayscale becomes three equal channels, transparent pixels are blended over
    white, and the EXIF orientation is applied.

    Raises:
        BadImageError: as `decode_photograph`.
        MemoryError: as `decode_photograph`.
    """
    parts = read_header(data)
    return over_white(to_depth(_upright(_pixels(parts), parts), np.dtype(np.uint8)))


def decode_tile(data: bytes) -> np.ndarray:
    """Decode a tile written by this project to (H, W, 3) uint8 RGB, in a fast way.

    Args:
        data: a PNG, a lossless WebP or a NumPy file, recognised by its first bytes.

    Raises:
        BadImageError: damaged data.
    """
    if data.startswith(_NUMPY):
        return _from_numpy(data)
    return _imdecode(data, cv2.IMREAD_COLOR_RGB)


def _from_numpy(data: bytes) -> np.ndarray:
    try:
        pixels: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadImageError(f"damaged NumPy file ({error})") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadImageError(f"(H, W, 3) uint8 is expected, it holds {pixels.shape} {pixels.dtype}")
    return pixels


def picture_digest(image: np.ndarray) -> str:
    """Return a digest of the pixels of a uint8 image, which does not depend on its file format."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _upright(stored: np.ndarray, parts: Parts) -> np.ndarray:
    """Return the pixels in their displayed orientation. Raises BadImageError if the size differs from the header's."""
    pixels = np.require(orient(stored, parts.orientation), requirements=["C", "W"])
    if pixels.shape[:2] != (parts.height, parts.width):
        raise BadImageError(
            f"damaged: {pixels.shape[1]} x {pixels.shape[0]} pixels, its header says {parts.width} x {parts.height}"
        )
    return pixels


def _pixels(parts: Parts) -> np.ndarray:
    """Return the pixels as stored: grey, grey with alpha, RGB or RGBA."""
    match parts.kind:
        case "JPEG":
            with quiet_decoders():
                return _decode_jpeg(parts.stream)
        case "AVIF" | "HEIF":
            return _decode_with_pillow(parts.stream)
        case "TIFF" if parts.grey_alpha or parts.only_pillow:
            with quiet_decoders():
                return _as_told(_decode_with_pillow(parts.stream), parts)
    try:
        raw = _imdecode(parts.stream, cv2.IMREAD_UNCHANGED)
    except BadImageError:
        if parts.kind != "PNG" or (stream := with_check_sum(parts.stream)) == parts.stream:
            raise
        raw = _imdecode(stream, cv2.IMREAD_UNCHANGED)
    if raw.dtype not in (np.uint8, np.uint16):
        raise BadImageError(f"pixels of type {raw.dtype}; 8 or 16 bit integers are supported")
    return _as_told(from_opencv(raw), parts)


def _as_told(pixels: np.ndarray, parts: Parts) -> np.ndarray:
    """Convert a decoder's pixels to the meaning that the file defines."""
    if parts.grey_alpha and pixels.ndim == 3:
        pixels = pixels[..., [0, -1]]
    if parts.grey_key is not None and pixels.ndim == 2:
        seen = (pixels != parts.grey_key) * np.asarray(np.iinfo(pixels.dtype).max, pixels.dtype)
        pixels = np.dstack([pixels, seen])
    unset = parts.kind == "BMP" and has_alpha(pixels) and not pixels[..., -1].any()  # as written by Windows
    if has_alpha(pixels) and (parts.alpha == "none" or unset):
        pixels = pixels[..., :-1]
    if has_alpha(pixels) and parts.alpha == "premultiplied":
        pixels = straight_alpha(pixels)
    if parts.negative:
        grey = pixels if pixels.ndim == 2 else pixels[..., 0]
        grey[...] = np.iinfo(pixels.dtype).max - grey
    return pixels


def _decode_jpeg(stream: bytes) -> np.ndarray:
    """Decode by libjpeg and take its warnings for errors, since other decoders fill missing parts with grey."""
    try:
        try:
            grey = simplejpeg.decode_jpeg_header(stream, strict=False)[2] == "Gray"
            pixels = simplejpeg.decode_jpeg(stream, "GRAY" if grey else "RGB")
        except ValueError as error:
            text = str(error)
            padding = _EXTRANEOUS.search(text)
            if padding and not any(stream[-2 - int(padding[1]) : -2]):
                pixels = simplejpeg.decode_jpeg(stream, "GRAY" if grey else "RGB", strict=False)
            elif text.startswith(("Corrupt", "Premature", "Invalid", "Inconsistent")):
                raise BadImageError(f"damaged pixel data ({text})") from error
            else:  # an unusual subsampling
                return from_opencv(_imdecode(stream, cv2.IMREAD_UNCHANGED))
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        raise BadImageError("damaged pixel data") from error
    return np.asarray(pixels[..., 0] if grey else pixels)


def _decode_with_pillow(stream: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(stream)) as image:
            modes = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "P": "RGB"}
            return np.asarray(image.convert(modes.get(image.mode, "RGBA")))
    except MemoryError:
        raise
    except Exception as error:
        raise BadImageError("damaged pixel data") from error


def _imdecode(data: bytes, flags: int) -> np.ndarray:
    try:
        with quiet_decoders():
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        raise BadImageError("damaged pixel data") from error
    if raw is None:
        raise BadImageError("damaged pixel data")
    return np.asarray(raw)


def _jpeg_coding(stream: bytes) -> JpegCoding | None:
    """Return a JPEG's tables and subsampling; None if Pillow cannot write them."""
    try:
        with Image.open(io.BytesIO(stream)) as image:
            tables = [list(table) for _, table in sorted(image.quantization.items())]  # type: ignore[attr-defined]
            subsampling = JpegImagePlugin.get_sampling(image)
    except Exception:  # the image was decoded, so this is no reason to refuse it
        return None
    return JpegCoding(tables, max(subsampling, 0)) if max(map(max, tables)) < 256 else None
