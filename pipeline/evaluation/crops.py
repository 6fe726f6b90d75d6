"""The choice of images for the report's pictures, and of the most informative part of each.

An evaluation keeps numbers, not images, so the few images that are shown are restored again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels_bank.runtime import storage
from pipeline.evaluation.cases import BLIND, NONBLIND, Estimate, crop_hr, make_lr, restore_all
from pipeline.evaluation.protocol import Protocol
from pipeline.evaluation.row import Case, Row
from pipeline.images.decode import decode_image
from pipeline.inference import Restorer
from pipeline.inference.texture import textured_crops


@dataclass(frozen=True)
class Shown:
    """Hold a case that was restored again, and its square with the most structure."""

    case: Case
    hr: np.ndarray  # (H, W, 3) uint8
    lr: np.ndarray  # (H/s, W/s, 3) float32
    kernel: np.ndarray  # (k, k), true
    estimates: dict[str, Estimate]  # by method name
    psnr: dict[str, float]  # by method name, the protocol's headline metric, dB
    top: int  # top of the square, HR pixels, a multiple of the scale
    left: int
    side: int

    def part(self, image: np.ndarray) -> np.ndarray:
        """Cut the square out of an HR-sized image, uint8."""
        cut = image[self.top : self.top + self.side, self.left : self.left + self.side]
        return cut if cut.dtype == np.uint8 else (cut.clip(0, 1) * 255).round().astype(np.uint8)

    def lr_part(self) -> np.ndarray:
        """Cut the same square out of the LR image, (side/s, side/s, 3) uint8."""
        scale = self.case.scale
        cut = self.lr[self.top // scale : (self.top + self.side) // scale]
        cut = cut[:, self.left // scale : (self.left + self.side) // scale]
        return np.asarray((cut.clip(0, 1) * 255).round().astype(np.uint8))


def judged_method(methods: Sequence[str] | Mapping[str, object]) -> str:
    """Return the method that an evaluation judges: `blind` if the model is blind."""
    return BLIND if BLIND in methods else NONBLIND


def best_median_worst(rows: Sequence[Row], metric: str) -> dict[str, Row]:
    """Choose three rows by rank from those of one scale, noise level and method, from three images if possible.

    An image's rank is its mean over the kernels. It is shown with the kernel that has its median value.
    """
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.case.image, []).append(row)
    ranked = sorted(by_image.values(), key=lambda members: float(np.mean([row.psnr(metric) for row in members])))
    places = {"best": len(ranked) - 1, "median": (len(ranked) - 1) // 2, "worst": 0}
    chosen = {name: ranked[place] for name, place in places.items()} if len(ranked) > 2 else {}
    chosen = chosen or dict(zip(("worst", "best"), ranked, strict=False))
    return {
        name: sorted(members, key=lambda row: row.psnr(metric))[len(members) // 2] for name, members in chosen.items()
    }


def restore_again(
    case: Case,
    rows: Sequence[Row],
    kernels: Mapping[int, np.ndarray],
    models: Mapping[str, Restorer],
    protocol: Protocol,
    side: int,
) -> Shown:
    """Restore a case again by all methods, and find its square with the most structure.

    Args:
        case: image and degradation.
        rows: all results.
        kernels: kernels (N, k, k) by scale.
        models: models by method name.
        protocol: protocol of the evaluation.
        side: largest side of the square in pixels.
    """
    scale, sigma = case.scale, case.sigma
    hr = crop_hr(decode_image(storage.read_bytes(case.image)), scale, protocol)
    kernel = kernels[scale][case.kernel - 1]
    lr = make_lr(hr, kernel, scale, sigma, protocol)
    told = protocol.assumed_kernel(kernel, scale)
    values = {row.method: row.psnr(protocol.headline) for row in rows if row.case == case}
    top, left, side = detail(hr, scale, side)
    return Shown(case, hr, lr, told, restore_all(lr, told, scale, sigma, models, protocol), values, top, left, side)


def detail(hr: np.ndarray, scale: int, side: int) -> tuple[int, int, int]:
    """Find top, left and side, multiples of the scale, of the square of (H, W, 3) uint8 with the most structure."""
    side = min(side, *hr.shape[:2]) // scale * scale
    [(top, left)] = textured_crops(hr.astype(np.float32) / 255, side, 1)
    return top // scale * scale, left // scale * scale, side
