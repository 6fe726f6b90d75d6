"""Encoding of pixels to image bytes."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from pipeline.images import BadImageError, jpeg, png, tiff, webp
from pipeline.images.convert import has_alpha, to_opencv
from pipeline.images.photograph import SUFFIX, Codec, Format, JpegCoding, Photograph
from pipeline.images.quiet import quiet_decoders

# Of the lossless codecs measured (docs/data.md), the fastest to decode among the PNGs below 0.6 of the raw size.
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
_LOSSLESS_WEBP = [cv2.IMWRITE_WEBP_LOSSLESS_MODE, cv2.IMWRITE_WEBP_LOSSLESS_PRESERVE_COLOR]
# The longest side that the encoders support.
_MOST_SIDE: dict[Format, int] = {"jpeg": 65_500, "webp": 16_383, "png": 1_000_000}


def encode_png(image: np.ndarray) -> bytes:
    """Encode grey, grey with alpha, RGB or RGBA, uint8 or uint16, as PNG; equal pixels give equal bytes.

    Raises:
        BadImageError: unsupported pixels.
    """
    if image.ndim == 3 and image.shape[2] == 2:
        # Written as other pixels with the same bytes, since PNG is big-endian.
        wide = np.ascontiguousarray(image)
        if wide.dtype == np.uint8:
            return png.as_grey_alpha(encode_png(wide.view(">u2")[..., 0].astype(np.uint16)))
        return png.as_grey_alpha(encode_png(wide.astype(">u2").view(np.uint8)))
    return _imencode("png", image, _PNG)


def encode_tile(image: np.ndarray, codec: Codec) -> bytes:
    """Encode (H, W, 3) uint8 RGB without loss; equal pixels give equal bytes.

    Args:
        image: the pixels.
        codec: `png`; `webp`, smaller and slower; `raw`, uncompressed in a NumPy file.
    """
    match codec:
        case "png":
            return encode_png(image)
        case "webp":
            return _imencode("webp", image, _LOSSLESS_WEBP)
        case "raw":
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(image), allow_pickle=False)
            return buffer.getvalue()


def encode_photograph(photograph: Photograph, quality: int) -> bytes:
    """Encode as `photograph.kind`, with the metadata. PNG and TIFF are lossless, and so is WebP at quality 100.

    Args:
        photograph: photograph of 8 bit for JPEG and WebP, without alpha for JPEG; its metadata must suit the format
            (`metadata.carried`). A JPEG with a coding is written with it instead of `quality`.
        quality: quality of JPEG and WebP, 1 to 100.

    Raises:
        BadImageError: the format cannot hold these pixels.
    """
    pixels, kind = photograph.pixels, photograph.kind
    refuse_format(kind, pixels.shape[:2], alpha=has_alpha(pixels), dtype=pixels.dtype)
    match kind:
        case "png":
            return png.with_metadata(encode_png(pixels), photograph.metadata)
        case "jpeg":
            coding = photograph.jpeg
            data = _jpeg(pixels, coding) if coding else _imencode(kind, pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
            return jpeg.with_metadata(data, photograph.metadata)
        case "webp":
            lossy = [cv2.IMWRITE_WEBP_QUALITY, quality]
            data = _imencode(kind, pixels, _LOSSLESS_WEBP if quality == 100 else lossy)
            return webp.with_metadata(data, photograph.metadata)
        case "tiff":
            deflate = [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_DEFLATE]
            return tiff.with_metadata(_imencode(kind, pixels, deflate), photograph.metadata)


def refuse_format(kind: Format, size: tuple[int, ...], *, alpha: bool = False, dtype: np.dtype | None = None) -> None:
    """Check that a format can hold pixels of this size and type.

    Args:
        kind: the format.
        size: (h, w).
        alpha: whether there is an alpha channel.
        dtype: type of the pixels, if known.

    Raises:
        BadImageError: the format cannot hold them.
    """
    if kind == "jpeg" and alpha:
        raise BadImageError("a JPEG has no alpha; choose --format png, webp or tiff")
    if kind in {"jpeg", "webp"} and dtype is not None and dtype != np.uint8:
        raise BadImageError(f"a {kind} has 8 bits; choose --depth 8, or --format png or tiff")
    if max(size) > (most := _MOST_SIDE.get(kind, max(size))):
        raise BadImageError(f"a {kind} has up to {most} pixels a side, not {max(size)}; choose --format tiff")


def _imencode(kind: str, pixels: np.ndarray, parameters: list[int]) -> bytes:
    try:
        with quiet_decoders():  # libtiff warns for each file that its compression has a new number
            ok, encoded = cv2.imencode(SUFFIX[kind], to_opencv(pixels), parameters)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        ok = False
    if not ok:
        raise BadImageError(f"pixels of shape {pixels.shape} and type {pixels.dtype} cannot be written as {kind}")
    data: bytes = encoded.tobytes()
    return data


def _jpeg(pixels: np.ndarray, coding: JpegCoding) -> bytes:
    """Encode with the tables and the subsampling of another JPEG."""
    file = io.BytesIO()
    tables = coding.tables if pixels.ndim == 3 else coding.tables[:1]
    Image.fromarray(pixels).save(file, "JPEG", qtables=tables, subsampling=coding.subsampling)
    return file.getvalue()
