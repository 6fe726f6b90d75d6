"""Tiles: an image cut without loss, and the WebDataset samples that hold them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
import webdataset

from pipeline.images.encode import encode_tile
from pipeline.images.photograph import Codec

_SUFFIX: dict[Codec, str] = {"png": "png", "webp": "webp", "raw": "npy"}  # raw pixels in NumPy's format
_CODEC = {suffix: codec for codec, suffix in _SUFFIX.items()}


@dataclass(frozen=True)
class TileSample:
    """Hold one sample of a tar: `<key>.png` (or .webp, .npy: a lossless tile) and `<key>.json` (its origin)."""

    key: str
    image: bytes
    json: bytes
    codec: Codec = "png"


def tile_starts(length: int, tile: int) -> list[int]:
    """Place the tiles along one axis; the last tile is aligned to the edge, so that no pixel is lost.

    >>> tile_starts(1000, 480)
    [0, 480, 520]
    """
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile), length - tile]


def is_flat(piece: np.ndarray, threshold: float) -> bool:
    """Check whether every channel of (H, W, 3) uint8 has a standard deviation below `threshold` grey levels.

    Such tiles, clear sky or a blown highlight, look the same blurred and sharp, so nothing can be learned from them.
    """
    return bool(cv2.meanStdDev(piece)[1].max() < threshold)


def cut(
    image: np.ndarray, tile: int, *, name: str, sha256: str, drop_flat: float = 0.0, codec: Codec = "png"
) -> Iterator[TileSample]:
    """Cut (H, W, 3) uint8 RGB into lossless samples, row by row; an image smaller than a tile is one sample.

    The key is made of the source's hash and the tile's place. It is unique, has no dots, and does not depend on the
    other images of the set, so neither do a sample's random draws.

    Args:
        image: (H, W, 3) uint8 RGB.
        tile: side in pixels.
        name: name of the source.
        sha256: digest of the source.
        drop_flat: smallest variation of a tile in grey levels, below which it is left out; 0 keeps all.
        codec: codec of the tiles.
    """
    height, width = image.shape[:2]
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            piece = image[top : top + tile, left : left + tile]
            if is_flat(piece, drop_flat):
                continue
            place = {
                "source": name,
                "source_sha256": sha256,
                "box": [top, left, top + piece.shape[0], left + piece.shape[1]],
                "source_size": [height, width],
            }
            key = f"{sha256[:16]}-{top:05d}-{left:05d}"
            yield TileSample(key, encode_tile(piece, codec), json.dumps(place, sort_keys=True).encode(), codec)


def tile_count(height: int, width: int, tile: int) -> int:
    """Count the tiles that an image of this size is cut into."""
    return len(tile_starts(height, tile)) * len(tile_starts(width, tile))


def write_samples(samples: Iterator[TileSample], stream: BinaryIO) -> int:
    """Write a tar that is byte-identical for equal samples (fixed times, owners and order); return their number."""
    count = 0
    with webdataset.TarWriter(stream, user="", group="", encoder=False, mtime=0) as tar:
        for sample in samples:
            tar.write({"__key__": sample.key, _SUFFIX[sample.codec]: sample.image, "json": sample.json})
            count += 1
    return count


def read_samples(tar_bytes: bytes) -> Iterator[TileSample]:
    """Yield the samples of a whole tar. The caller has checked its hash, so its structure can be trusted."""
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(tar_bytes), mode="r:") as tar:
        for info in tar:
            stream = tar.extractfile(info)
            if stream is None:
                continue
            key, _, extension = info.name.partition(".")
            members[extension] = stream.read()
            if len(members) == 2:  # webdataset writes a sample's members next to each other
                place = members.pop("json")
                ((suffix, image),) = members.items()
                yield TileSample(key, image, place, _CODEC[suffix])
                members = {}
