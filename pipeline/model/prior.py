"""The prior step of USRNet: a small U-Net denoiser steered by a noise-level plane (Zhang et al., CVPR 2020).

Parameter names are those of the published checkpoints (`m_head`, `m_down1.0.res.0`, ...), so their files load as
they are. As in those, no convolution has a bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE_MULTIPLE = 8  # three 2x2 strided convolutions


class ResBlock(nn.Module):
    """Compute x + conv(relu(conv(x))), 3x3, same width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c, h, w) to (B, c, h, w)."""
        out: Tensor = self.res(x)
        return out.add_(x)  # in place: one feature map less to write


class ResUNet(nn.Module):
    """Denoise a (B, 3, H, W) image of noise level beta (B,), for any H, W >= 1.

    `global_skip` adds the input to the output and initialises the network as the identity, so training from scratch
    begins at the quality of the data steps alone. Published weights have no global skip.
    """

    def __init__(self, widths: tuple[int, int, int, int], blocks: int, *, global_skip: bool) -> None:
        super().__init__()
        c0, c1, c2, c3 = widths
        self.global_skip = global_skip
        self.m_head = nn.Conv2d(4, c0, 3, padding=1, bias=False)
        self.m_down1 = _down(c0, c1, blocks)
        self.m_down2 = _down(c1, c2, blocks)
        self.m_down3 = _down(c2, c3, blocks)
        self.m_body = nn.Sequential(*(ResBlock(c3) for _ in range(blocks)))
        self.m_up3 = _up(c3, c2, blocks)
        self.m_up2 = _up(c2, c1, blocks)
        self.m_up1 = _up(c1, c0, blocks)
        self.m_tail = nn.Conv2d(c0, 3, 3, padding=1, bias=False)
        self._initialise()

    def forward(self, x: Tensor, beta: Tensor) -> Tensor:
        """Map image (B, 3, H, W) and beta (B,) to (B, 3, H, W)."""
        height, width = x.shape[-2:]
        image = torch.cat((x, beta[:, None, None, None].expand(-1, 1, height, width).to(x.dtype)), 1)
        padding = (0, -width % SIDE_MULTIPLE, 0, -height % SIDE_MULTIPLE)
        if any(padding):
            image = F.pad(image, padding, mode="replicate")
        out = self.unet(image)[..., :height, :width]
        return x + out if self.global_skip else out

    def unet(self, image: Tensor) -> Tensor:
        """Map image and noise level (B, 4, H, W), H and W multiples of `SIDE_MULTIPLE`, to (B, 3, H, W)."""
        # Convolutions are fastest in the channels-last layout, on CPUs as well as on CUDA's tensor cores.
        level1 = self.m_head(image.contiguous(memory_format=torch.channels_last))
        level2 = self.m_down1(level1)
        level3 = self.m_down2(level2)
        level4 = self.m_down3(level3)
        out = self.m_body(level4)
        out = self.m_up3(out.add_(level4))
        out = self.m_up2(out.add_(level3))
        out = self.m_up1(out.add_(level2))
        with torch.autocast(image.device.type, enabled=False):
            # bf16 would round the image itself to steps of one grey level.
            restored: Tensor = self.m_tail(out.add_(level1).to(self.m_tail.weight.dtype))
        return restored

    def _initialise(self) -> None:
        """Initialise filters orthogonally, as KAIR does; small residual branches and tail make depth harmless."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.orthogonal_(module.weight)
            if isinstance(module, ResBlock):
                nn.init.orthogonal_(module.res[2].weight, gain=0.1)  # type: ignore[arg-type]
        if self.global_skip:
            nn.init.orthogonal_(self.m_head.weight, gain=0.2)
            nn.init.zeros_(self.m_tail.weight)


def _down(channels: int, wider: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(blocks)), nn.Conv2d(channels, wider, 2, 2, bias=False))


def _up(channels: int, narrower: int, blocks: int) -> nn.Sequential:
    up = nn.ConvTranspose2d(channels, narrower, 2, 2, bias=False)
    return nn.Sequential(up, *(ResBlock(narrower) for _ in range(blocks)))
