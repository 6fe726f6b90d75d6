"""The network as it was published, in the plainest form: what tests, benchmarks and figures compare ours with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model import BlurOperator, USRNet
from pipeline.model.fourier import spectrum
from pipeline.model.prior import ResUNet
from pipeline.model_config import RestorerConfig

TINY = RestorerConfig(x0="nearest", global_skip=False)
FULL = RestorerConfig(x0="nearest", global_skip=False, unfoldings=8, widths=(64, 128, 256, 512), hyper_hidden=64)
Samples = tuple[Tensor, Tensor, Tensor, Tensor]  # LR images, HR images, kernels, noise levels


def random_samples(count: int, side: int, scale: int) -> Samples:
    """Draw LR images, HR images of this side, 25 x 25 kernels and noise levels, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.rand(count, 25, 25, generator=generator)
    lr = torch.rand(count, 3, side // scale, side // scale, generator=generator)
    hr = torch.rand(count, 3, side, side, generator=generator)
    return lr, hr, kernel / kernel.sum((1, 2), keepdim=True), torch.full((count,), 0.01)


def training_step(
    net: nn.Module, samples: Samples, scale: int, *, fused: bool, bf16: bool = False
) -> Callable[[], None]:
    """Return a training step on the CPU, with Adam fused or one parameter at a time."""
    lr, hr, kernel, sigma = samples
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=fused, foreach=False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.l1_loss(net(lr, kernel, scale, sigma), hr)
        loss.backward()
        optimizer.step()

    return step


def published_data_step(x: Tensor, y: Tensor, kernel: Tensor, alpha: Tensor, scale: int) -> Tensor:
    """USRNet's Eq. 5-7 as in the paper: full complex FFTs and a division by alpha; kernels are (B, k, k)."""
    height, width = x.shape[-2:]
    size = kernel.shape[-1]
    padded = F.pad(kernel, (0, width - size, 0, height - size)).roll((-(size // 2), -(size // 2)), (-2, -1))
    FB = torch.fft.fft2(padded)[:, None]
    spread = torch.zeros_like(x)
    spread[..., ::scale, ::scale] = y
    FR = FB.conj() * torch.fft.fft2(spread) + torch.fft.fft2(alpha * x)

    def fold(full: Tensor) -> Tensor:
        return full.reshape(*full.shape[:2], scale, height // scale, scale, width // scale).mean((2, 4))

    quotient = fold(FB * FR) / (fold(FB.abs() ** 2) + alpha)
    return torch.fft.ifft2((FR - FB.conj() * quotient.repeat(1, 1, scale, scale)) / alpha).real


class PublishedUSRNet(USRNet):
    """The same weights in the plainest form; `real_fft` and `channels_last` add one gain of ours each."""

    def __init__(self, config: RestorerConfig, *, real_fft: bool = False, channels_last: bool = False) -> None:
        super().__init__(config)
        self.real_fft, self.channels_last = real_fft, channels_last

    def forward(self, lr: Tensor, kernel: Tensor, scale: int, sigma: Tensor, x0: Tensor | None = None) -> Tensor:
        alphas, betas = self.h(sigma, scale)
        x = F.interpolate(lr, scale_factor=scale)
        operator, y_spectrum = BlurOperator.of(kernel, scale, lr), spectrum(lr)
        for i in range(self.config.unfoldings):
            alpha = alphas[:, i, None, None, None]
            if self.real_fft:
                z = operator.step(x, y_spectrum, alpha)
            else:
                z = published_data_step(x, lr, kernel, alpha, scale)
            x = self.prior(self.p, z, betas[:, i])
        return x

    def prior(self, p: ResUNet, x: Tensor, beta: Tensor) -> Tensor:
        """The ResUNet of image sides that are multiples of 8."""
        image = torch.cat((x, beta[:, None, None, None].expand(-1, 1, *x.shape[-2:])), 1)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        level1 = p.m_head(image)
        level2 = p.m_down1(level1)
        level3 = p.m_down2(level2)
        level4 = p.m_down3(level3)
        out = p.m_up2(p.m_up3(p.m_body(level4) + level4) + level3)
        return p.m_tail(p.m_up1(out + level2) + level1)
