"""The check of which images an evaluation can use."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping

import numpy as np

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.errors import BadRequestError
from pipeline.data.sources import list_sources, read_source
from pipeline.data.sources.source import suffix
from pipeline.evaluation.cases import crop_hr
from pipeline.evaluation.protocol import Protocol
from pipeline.images import BadImageError
from pipeline.images.decode import decode_image


def checked_images(
    uri: str, kernels: Mapping[int, np.ndarray], protocol: Protocol
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the sha256 of every image by its URI, and the reason for each image that cannot be read or compared.

    Raises:
        BadRequestError: no image can be used, or an image is too small for its cases.
    """
    if suffix(uri) != ".txt" and storage.is_file(uris.absolute(uri)):
        raise BadRequestError(
            f"{uri}: is a single file; name its folder, a .txt list of image files, or an s3:// prefix, and unpack "
            "zip, tar and Parquet files"
        )
    found: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for source in list_sources(uri, nested=False):
        if source.member >= 0:
            raise BadRequestError(f"{source.uri}: unpack it; the evaluation reads image files alone")
        data = read_source(source)
        try:
            image = decode_image(data)
        except BadImageError as error:
            _skip(source.uri, str(error), skipped)
            continue
        height, width = image.shape[:2]
        for scale, of_scale in kernels.items():
            multiple, border = protocol.size_multiple(scale), protocol.border_pixels(scale)
            sides = [min(n, protocol.crop or n) // multiple * multiple for n in (height, width)]
            side = protocol.assumed_kernel(of_scale[0], scale).shape[0]
            smallest = max(side, 2 * border + 11)  # SSIM's window inside the border
            if min(sides) < smallest:
                raise BadRequestError(
                    f"{source.uri}: {width} x {height} is too small for scale {scale}, a kernel of "
                    f"{side} pixels and a border of {border}; take it out of the folder or give smaller kernels"
                )
        if any(_has_one_colour(image, scale, protocol) for scale in kernels):
            _skip(source.uri, "what is compared of it has one colour, which every method restores", skipped)
            continue
        found[source.uri] = hashlib.sha256(data).hexdigest()
    if not found:
        raise BadRequestError(f"{uri}: none of its {len(skipped)} images can be used")
    return found, skipped


def _skip(uri: str, reason: str, skipped: dict[str, str]) -> None:
    skipped[uri] = reason
    print(f"{uri}: skipped: {reason}", file=sys.stderr, flush=True)


def _has_one_colour(image: np.ndarray, scale: int, protocol: Protocol) -> bool:
    """Return whether the compared part of an image is flat, which would make its PSNR and every mean infinite."""
    border = protocol.border_pixels(scale)
    compared = crop_hr(image, scale, protocol)[border:-border, border:-border]
    return bool((compared == compared[0, 0]).all())
