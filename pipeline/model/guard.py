"""Which of two kernels is better for an image: judged by what the restorer makes of it."""

from __future__ import annotations

from torch import Tensor

from pipeline.model.fourier import BlurOperator


def restoration_score(
    sr: Tensor, lr: Tensor, operator: BlurOperator, observed_size: tuple[int, int] | None = None, border: int = 0
) -> Tensor:
    """Score how implausible a restored image is: LR residual times total variation, lower is better.

    A kernel that is too wide or turned around makes the restorer ring: the variation rises, and not all of it is
    taken back by the blur, so the residual rises as well. Of a kernel that is too narrow the image stays smooth,
    but it explains the LR image less well. Either factor alone errs far more often, and the product has no weight
    to tune (docs/network.md has the measurement).

    Args:
        sr: (B, C, s*h, s*w) restored with the operator's kernel.
        lr: (B, C, h, w).
        operator: blur and decimation with the kernel in question.
        observed_size: (h', w') upper-left part of `lr` that a camera saw, if not all. No kernel explains what was added
            to make the image periodic, and it rings the more the better the kernel inverts the blur.
        border: LR pixels inside the edge of that part which the added pixels reach.

    Returns:
        (B,), comparable between kernels of one image at one stage of the restoration only.
    """
    error = operator.apply(sr) - lr
    if observed_size is not None and min(observed_size) > 2 * border:
        (top, bottom), (left, right) = ((border, side - border) for side in observed_size)
        scale = operator.scale
        error = error[..., top:bottom, left:right]
        sr = sr[..., scale * top : scale * bottom, scale * left : scale * right]
    residual = error.square().mean((1, 2, 3)).sqrt()
    variation = sr.diff(dim=-1).abs().mean((1, 2, 3)) + sr.diff(dim=-2).abs().mean((1, 2, 3))
    return residual * variation
