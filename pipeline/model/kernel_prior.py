"""The kernel prior: a small net that corrects the kernels of kernel steps.

A kernel step uses an image that is not right yet, so its kernels are too short and have speckles at every second pixel,
which LR pixels hardly show. No penalty on the kernel removes these errors without harm (docs/training-log.md). The net
is trained on kernels from such steps; its loss is how much worse an image restored with its answer gets.

It sees only small maps, never the image. Similar nets: Zheng, Yong, Zhang, Unfolded Deep Kernel Estimation for Blind
Image Super-resolution, ECCV 2022; Laroche, Almansa, Coupete, Fast Diffusion EM, WACV 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAPS = 4  # number of maps from `kernel_maps`
_SCALES = (2, 3, 4)  # scales that it was fitted on
_WIDTH = 32
_DILATIONS = (1, 1, 2, 2, 3, 1)  # with the first and the last convolution each value sees 25 x 25
_USUAL = 1 / 40  # typical value of a camera-shake kernel; inputs are divided by it
_USUAL_SIGMA = 1 / 30


class KernelPrior(nn.Module):
    """Correct kernels: eight convolutions on the maps of a kernel step, six of them in residual pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(MAPS + 2 + len(_SCALES), _WIDTH, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=d, dilation=d) for d in _DILATIONS)
        self.last = nn.Conv2d(_WIDTH, 1, 3, padding=1)
        for start in (self.last.weight, self.last.bias):  # untrained, it leaves kernels as they are
            assert start is not None
            nn.init.zeros_(start)

    def forward(self, maps: Tensor, sigma: Tensor, progress: float | Tensor, scale: int | Tensor) -> Tensor:
        """Return the corrected kernels (B, k, k), >= 0, of sum 1.

        Args:
            maps: (B, 4, k, k) of `kernel_maps`; the first map is the kernel.
            sigma: (B,) noise level on the [0, 1] scale.
            progress: share of the kernel steps done before this one, in [0, 1], a number or (B,).
            scale: s, a number or (B,).
        """
        with torch.autocast(maps.device.type, enabled=False):
            return self._corrected(maps, sigma, progress, scale)

    def _corrected(self, maps: Tensor, sigma: Tensor, progress: float | Tensor, scale: int | Tensor) -> Tensor:
        maps = maps.to(self.last.weight.dtype)
        level = sigma.to(maps) / _USUAL_SIGMA
        done, s = (torch.as_tensor(value, dtype=maps.dtype, device=maps.device) for value in (progress, scale))
        facts = [level, done.expand_as(level), *((s == one).to(maps).expand_as(level) for one in _SCALES)]
        planes = torch.stack(facts, 1)[:, :, None, None].expand(-1, -1, *maps.shape[-2:])
        seen = self.first(torch.cat((maps / _USUAL, planes), 1))
        for inner, outer in zip(self.body[::2], self.body[1::2], strict=True):
            seen = seen + outer(F.relu(inner(F.relu(seen))))
        kernel = F.relu(maps[:, 0] + _USUAL * self.last(F.relu(seen))[:, 0])
        total = kernel.sum((-2, -1), keepdim=True)
        return torch.where(total > 0, kernel / total.clamp_min(torch.finfo(kernel.dtype).tiny), maps[:, 0])
