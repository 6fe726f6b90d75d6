"""Narrow a kernel for as long as the image restored with it leaves the range that images have.

No photograph has values below 0 or above 1. A restored one has them where it rings next to strong edges, and it rings
where its kernel is too wide. What deceives a power spectrum, such as stripes, does not deceive this test
(docs/training-log.md has the measurement).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.rounds import Round, choose

ALLOWED = 0.004  # overshoot, RMS on the [0, 1] scale
_FACTOR = 0.8  # of the variance, each time
_TIMES = 8  # after which 17% of it is left


def narrow(
    first: Round, stands: Tensor, *, restore: Callable[[Tensor], Round], judge: Callable[[Tensor], Tensor]
) -> Round:
    """Shrink the kernel of each image that overshoots, until it does so no more or a narrower one makes it worse.

    Args:
        first: images and their kernels.
        stands: (B,) bool, whose kernels may be narrowed; the others are returned as they are.
        restore: restores the same images with blurs (B, k, k), without the reduction.
        judge: maps restored images (B, 3, s*h, s*w) to their overshoot (B,).
    """
    accepted, least = first, judge(first.sr)
    wide = stands & (least > ALLOWED)
    for time in range(1, _TIMES + 1):
        if not bool(wide.any()):
            break
        new = restore(narrower(first.blur, _FACTOR**time))
        overshoot = judge(new.sr)
        wide = wide & (overshoot <= least)
        accepted, least = choose(wide, new, accepted), overshoot.where(wide, least)
        wide = wide & (least > ALLOWED)
    return accepted


def narrower(kernel: Tensor, factor: float) -> Tensor:
    """Shrink kernels (B, k, k), >= 0 and of sum 1, about their middle so that their variances are `factor` of before.

    Kernels of two or three pixels become points, since values are read off between pixels by bicubic interpolation.
    """
    shrink = torch.eye(2, 3, dtype=kernel.dtype, device=kernel.device) * factor**-0.5
    grid = F.affine_grid(shrink.expand(len(kernel), 2, 3), [len(kernel), 1, *kernel.shape[-2:]], align_corners=False)
    small = F.grid_sample(kernel[:, None], grid, mode="bicubic", align_corners=False)[:, 0].clamp_min(0)
    return small / small.sum((-2, -1), keepdim=True)
