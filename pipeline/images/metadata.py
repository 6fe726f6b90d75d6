"""Transfer of a photograph's metadata to a result of another size, depth or format."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from pipeline.images import jpeg
from pipeline.images.convert import is_grey
from pipeline.images.exif import has_orientation, upright
from pipeline.images.ifd import BrokenDirectoryError
from pipeline.images.parts import Metadata
from pipeline.images.photograph import Format
from pipeline.images.xmp import resized_xmp, upright_xmp

_SRGB_GAMMA = (45000, 46000)  # values of gAMA, in 1/100000, that stand for sRGB
_SRGB_CHROMA = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def carried(found: Metadata, pixels: np.ndarray, kind: Format, *, strip: bool = False) -> tuple[Metadata, list[str]]:
    """Return the metadata for a result, and a phrase for each lost part.

    EXIF and XMP are adapted: orientation 1 if it was applied, the result's sizes, no thumbnail. The colour profile, and
    a PNG's colour chunks, are kept if they fit the result's colour type and format; a damaged profile is dropped.

    Args:
        found: metadata of the input.
        pixels: pixels of the result.
        kind: format of the result.
        strip: whether to leave EXIF and XMP out.
    """
    lost: list[str] = []
    icc = found.icc
    if icc is not None and (reason := _misfit(icc, grey=is_grey(pixels) and _holds_grey(pixels, kind))):
        lost.append(reason)
        icc = None
    colour = found.colour
    if colour and kind != "png":
        if icc is None and (names := _telling(colour)):
            lost.append(f"{', '.join(names)} of the input says how it looks and a {kind} cannot; colours may differ")
        colour = ()
    height, width = pixels.shape[:2]
    exif = xmp = None
    if not strip:
        xmp = None if found.xmp is None else resized_xmp(found.xmp, width, height)
        # An orientation in XMP alone was not applied, as in most programs, and still holds.
        xmp = upright_xmp(xmp) if xmp is not None and has_orientation(found.exif) else xmp
        try:
            exif = None if found.exif is None else upright(found.exif, width, height)
        except BrokenDirectoryError:
            lost.append("EXIF that cannot be read left out")
    kept = Metadata(icc, exif, xmp, colour)
    if kind == "jpeg":
        for part in jpeg.too_large(kept):
            lost.append(f"{part} larger than a JPEG can hold left out")
            kept = replace(kept, **{part: None})  # type: ignore[arg-type]
    return kept, lost


def _holds_grey(pixels: np.ndarray, kind: Format) -> bool:
    """Return whether the format writes these grey pixels as grey."""
    return kind == "png" or (kind != "webp" and pixels.ndim == 2)


def _misfit(icc: bytes, *, grey: bool) -> str | None:
    """Return why a profile does not fit grey or coloured pixels; None if it fits or does not state its colour space."""
    if icc[:4] != struct.pack(">I", len(icc)) or icc[36:40] != b"acsp":
        return "damaged colour profile left out"
    space = icc[16:20]
    if space in {b"GRAY", b"RGB ", b"CMYK"} and space != (b"GRAY" if grey else b"RGB "):
        pixels = "grey" if grey else "colour"
        return f"colour profile for {space.decode().strip()} left out, the result has {pixels} pixels"
    return None


def _telling(colour: tuple[tuple[bytes, bytes], ...]) -> list[str]:
    """Name the chunks that make an image look different from plain sRGB."""
    chunks = dict(colour)
    if b"sRGB" in chunks and b"cICP" not in chunks:
        return []
    return [kind.decode() for kind, body in colour if not _is_plain(kind, body)]


def _is_plain(kind: bytes, body: bytes) -> bool:
    match kind:
        case b"gAMA":
            return bool(_SRGB_GAMMA[0] <= struct.unpack(">I", body)[0] <= _SRGB_GAMMA[1])
        case b"cHRM":
            points = struct.unpack(">8I", body)
            return all(abs(point - plain) <= 100 for point, plain in zip(points, _SRGB_CHROMA, strict=True))
        case b"cICP":
            return body[:2] == bytes((1, 13))
    return kind == b"sRGB"
