"""The kernel estimator of DAN (Luo et al., NeurIPS 2020, v1): LR image and current SR image -> kernel code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEAST_DEVIATION = 0.02  # smallest standard deviation to divide an LR image by, so that noise is not amplified


class ChannelAttention(nn.Module):
    """Scale each channel by a gate made from all channels' means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(channels // reduction, 1)
        self.body = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c, h, w) to (B, c, h, w)."""
        gate: Tensor = self.body(x.mean((-2, -1), keepdim=True))
        return x * gate


class ConditionalResBlock(nn.Module):
    """Compute basic + attention(convs([basic, condition])). The condition passes through unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            ChannelAttention(channels),
        )

    def forward(self, basic: Tensor, condition: Tensor) -> Tensor:
        """Map two (B, c, h, w) to one (B, c, h, w)."""
        out: Tensor = self.body(torch.cat((basic, condition), 1))
        return basic + out


class Estimator(nn.Module):
    """Estimate the change of the standardised kernel code (B, components) from LR (B, 3, h, w) and SR (B, 3, s*h, s*w).

    DAN estimates the code itself. Here the loop starts from an estimate, and the SR image shows how wrong that estimate
    is (ringing or remaining blur), so the net predicts the correction and starts near zero.
    Each scale has its own strided head for the SR image; all other layers are shared.

    A blur is the same in a dark or flat picture, so both images are shifted and scaled to the LR image's mean 0 and
    standard deviation 1: the code does not depend on a photograph's brightness or contrast. A net without this
    normalisation had learned only the mean code after 700 steps; a normalised net found the width after 300.
    """

    def __init__(
        self, scales: tuple[int, ...], channels: int, blocks: int, components: int, *, normalised: bool = True
    ) -> None:
        super().__init__()
        self._normalised = normalised
        self.head_LR = nn.Conv2d(3, channels, 1)
        self.head_HR = nn.ModuleDict({str(s): nn.Conv2d(3, channels, 9, stride=s, padding=4) for s in scales})
        self.body = nn.ModuleList(ConditionalResBlock(channels) for _ in range(blocks))
        self.out = nn.Conv2d(channels, components, 3, padding=1)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()  # type: ignore[union-attr]

    def forward(self, lr: Tensor, sr: Tensor, scale: int) -> Tensor:
        """Return (B, components). Raises ValueError for a scale that this estimator has no head for."""
        if str(scale) not in self.head_HR:
            raise ValueError(f"scale {scale} is not one of this model's: {', '.join(self.head_HR)}")
        if self._normalised:
            mean = lr.mean((-2, -1), keepdim=True)
            deviation = (lr - mean).std((-3, -2, -1), correction=0, keepdim=True) + _LEAST_DEVIATION
            lr, sr = (lr - mean) / deviation, (sr - mean) / deviation
        basic = self.head_LR(lr)
        condition = self.head_HR[str(scale)](sr)
        if self.training:
            # Every parameter takes part in every forward, as data-parallel training without a search for unused
            # parameters requires: the other scales' heads get a gradient of zero.
            idle = [p.sum() for name, head in self.head_HR.items() if name != str(scale) for p in head.parameters()]
            condition = condition + 0 * torch.stack(idle).sum() if idle else condition
        for block in self.body:
            basic = block(basic, condition)
        code: Tensor = self.out(basic).mean((-2, -1))
        return code.float() if code.dtype != torch.float64 else code
