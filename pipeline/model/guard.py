"""The choice between two kernels for an image, judged by the images restored with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.model.fourier import BlurOperator
from pipeline.model.gaussian_fit import is_nearly_gaussian

_ALMOST_GAUSSIAN = 0.3  # sum |k - g|
_RINGING = 0.01  # overshoot of images restored with a wrong kernel, RMS on the [0, 1] scale


class Acceptance(NamedTuple):
    """Hold how clearly a new kernel has to win: a^score b^spread <= ratio a'^score b'^spread.

    a is the new kernel's `restoration_score`, b its `gradient_spread`; a' and b' are the old kernel's.
    """

    ratio: float | Tensor  # a number, or (B,) with one for each image
    score: float = 1.0
    spread: float = 0.0


EQUAL = Acceptance(1.0)


def acceptance(scale: int, old: Tensor, excess: Tensor, *, sure: bool, prior: bool) -> tuple[Acceptance, ...]:
    """Return the conditions for accepting refined kernels; all must hold.

    A refined kernel was fitted to explain the LR image, so it explains it well even where it is wrong: it has to win
    clearly. Measured without a prior (docs/training-log.md): where a Gaussian kernel was right before, the smallest
    ratio of the new score to the old is 0.67, 0.94 and 1.26 at x2, x3 and x4. Nearly all motion kernels are below the
    ratio at x2, two in three at x3, one in four at x4.

    Args:
        scale: s.
        old: (B, k, k) old kernels, without the reduction.
        excess: (B,) overshoot of the images restored with them.
        sure: whether the old kernel is from a net that errs on the harmless side. Its image is no worse than bicubic,
            and the gain of a refined kernel shows in the gradients.
        prior: whether a prior corrects kernels on the way. The errors that remain do not ring. So against a harmless
            old kernel the gradients decide, unless the new one explains the LR image far worse (twice as bad where
            the old one is almost a Gaussian, which such a net finds well). Any other old kernel that is a Gaussian is
            probably right if its image does not ring, so the new one must win in both; if not, no worse a score is
            enough, or three quarters of it at x2.
    """
    if prior and sure:
        most = torch.where(is_nearly_gaussian(old, _ALMOST_GAUSSIAN), 2.0, 6.0)
        return Acceptance(0.91, score=0.0, spread=1.0), Acceptance(most)
    if prior:
        doubtful = ~is_nearly_gaussian(old) | (excess > _RINGING)
        most = torch.where(doubtful, min(0.375 * scale, 1.0), scale / 4)
        return Acceptance(most), Acceptance(most.where(~doubtful, torch.inf), spread=5.0)
    if sure:
        return Acceptance(0.9), Acceptance(0.6, spread=15.0)
    return (Acceptance(0.2 * (scale + 1)),)


class Look(NamedTuple):
    """Hold how restored images look to the guard, (B,) each."""

    score: Tensor  # `restoration_score`
    spread: Tensor  # `gradient_spread`


def look(
    sr: Tensor, lr: Tensor, operator: BlurOperator, observed_size: tuple[int, int] | None = None, border: int = 0
) -> Look:
    """Judge restored images by both measures.

    Args:
        sr: (B, C, s*h, s*w) restored with the operator's kernel.
        lr: (B, C, h, w).
        operator: blur and decimation with that kernel.
        observed_size: (h', w') upper-left part of `lr` that a camera saw, if not all.
        border: LR pixels inside the edge of the observed part that are left out.
    """
    return Look(
        restoration_score(sr, lr, operator, observed_size, border),
        gradient_spread(sr, operator.scale, observed_size, border),
    )


def wins(new: Look, old: Look, terms: tuple[Acceptance, ...] = (EQUAL,)) -> Tensor:
    """Return (B,) bool: whether new kernels are accepted, by all of the terms."""
    won = [
        new.score**t.score * new.spread**t.spread <= t.ratio * old.score**t.score * old.spread**t.spread for t in terms
    ]
    return torch.stack(won).all(0)


def restoration_score(
    sr: Tensor, lr: Tensor, operator: BlurOperator, observed_size: tuple[int, int] | None = None, border: int = 0
) -> Tensor:
    """Score how implausible a restored image is: LR residual times total variation, lower is better.

    A kernel that is too wide or turned around makes the restorer ring. The variation rises, and since the blur does not
    remove all of it, the residual rises as well. With a kernel that is too narrow the image stays smooth, but explains
    the LR image less well. Either factor alone errs far more often, and the product has no weight to tune
    (docs/network.md has the measurement).

    Args:
        sr: (B, C, s*h, s*w) restored with the operator's kernel.
        lr: (B, C, h, w).
        operator: blur and decimation with the kernel in question.
        observed_size: (h', w') upper-left part of `lr` that a camera saw, if not all. No kernel explains the pixels
            added to make the image periodic, and they ring more the better the kernel inverts the blur.
        border: LR pixels inside the edge of the observed part that the added pixels affect.

    Returns:
        (B,), comparable only between kernels of one image at one stage of the restoration.
    """
    residual = _inside(operator.apply(sr) - lr, 1, observed_size, border).square().mean((1, 2, 3)).sqrt()
    sr = _inside(sr, operator.scale, observed_size, border)
    variation = sr.diff(dim=-1).abs().mean((1, 2, 3)) + sr.diff(dim=-2).abs().mean((1, 2, 3))
    return residual * variation


def gradient_spread(sr: Tensor, scale: int, observed_size: tuple[int, int] | None = None, border: int = 0) -> Tensor:
    """Return how evenly a restored image's gradients are spread: their l1 norm over their l2 norm; lower is sharper.

    A blurred image has its variation in broad slopes, a ringing one everywhere, a sharp one in few edges (Krishnan et
    al., CVPR 2011). Unlike the residual it is not affected by what surrounds a part of an image.

    Args:
        sr: (B, C, s*h, s*w).
        scale: s.
        observed_size: (h', w') upper-left part of the LR image that a camera saw, if not all.
        border: LR pixels inside the edge of the observed part that are left out.

    Returns:
        (B,) in (0, 1]: 1 for gradients that are all alike.
    """
    sr = _inside(sr, scale, observed_size, border)
    steps = torch.cat((sr.diff(dim=-1).flatten(1), sr.diff(dim=-2).flatten(1)), 1)
    return (steps.abs().mean(1) + 1e-12) / (steps.square().mean(1).sqrt() + 1e-12)


def overshoot(sr: Tensor, scale: int, observed_size: tuple[int, int] | None = None, border: int = 0) -> Tensor:
    """Return how far a restored image leaves [0, 1], as no image does: the RMS of what lies outside, (B,).

    Args:
        sr: (B, C, s*h, s*w).
        scale: s.
        observed_size: (h', w') upper-left part of the LR image that a camera saw, if not all.
        border: LR pixels inside the edge of that part that are left out.
    """
    sr = _inside(sr, scale, observed_size, border)
    return (sr - sr.clamp(0, 1)).square().mean((1, 2, 3)).sqrt()


def _inside(image: Tensor, scale: int, observed_size: tuple[int, int] | None, border: int) -> Tensor:
    """Return the observed part of an image at `scale` times the LR size, without its border if anything remains."""
    if observed_size is None or min(observed_size) <= 2 * border:
        return image
    (top, bottom), (left, right) = ((scale * border, scale * (side - border)) for side in observed_size)
    return image[..., top:bottom, left:right]
