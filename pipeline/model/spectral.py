"""The spectral initial kernel: the LR image's own log power spectrum -> kernel code.

Natural images share a power spectrum that falls as 1/f^2, so the averaged periodogram of the LR image shows the
kernel's |F(k)|^2 through the decimation. It is blind to phase: k(x) and k(-x) look the same, so motion kernels are
left to the estimator.

The same decimation folds the same spectrum differently at each scale, so the scale must turn the whole first layer:
every hidden unit has a gain and an offset per scale (FiLM: Perez et al., AAAI 2018). One more input does not do it, and
nets of their own are no better (docs/training-log.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW, FEATURES = 32, 3
_FLOOR = 1e-7  # power of about 0.02 grey levels a pixel: below it a spectrum is rounding


class SpectralInit(nn.Module):
    """Estimate the standardised kernel code (B, components) from the power spectrum of LR images (B, 3, h, w)."""

    def __init__(self, scales: tuple[int, ...], components: int, hidden: tuple[int, int] = (512, 256)) -> None:
        super().__init__()
        features = FEATURES * WINDOW * (WINDOW // 2 + 1)
        self.scales = scales
        self.norm = nn.LayerNorm(features)
        self.first = nn.Linear(features + 1, hidden[0])
        self.by_scale = nn.Parameter(torch.zeros(len(scales), 2, hidden[0]))  # gain beyond 1, and offset
        self.rest = nn.Sequential(
            nn.GELU(), nn.Linear(hidden[0], hidden[1]), nn.GELU(), nn.Linear(hidden[1], components)
        )
        window = torch.hann_window(WINDOW, periodic=False)
        frequency = torch.fft.fftfreq(WINDOW)[:, None].square() + torch.fft.rfftfreq(WINDOW).square()
        self.register_buffer("window", window[:, None] * window, persistent=False)
        self.register_buffer("whitening", (frequency + WINDOW**-2.0).log(), persistent=False)

    def forward(self, lr: Tensor, scale: int, sigma: Tensor) -> Tensor:
        """Return (B, components), in float32 also under autocast."""
        with torch.autocast(lr.device.type, enabled=False):
            features = self.norm(self.features(lr).to(self.norm.weight.dtype))
            level = (10 * sigma)[:, None].to(features.dtype)
            gain, offset = self.by_scale[self.scales.index(scale)]
            code: Tensor = self.rest(self.first(torch.cat((features, level), 1)) * (1 + gain) + offset)
        return code

    def features(self, lr: Tensor) -> Tensor:
        """Compute (B, 3 * 32 * 17): log mean power, plain and per window, and mean log power, without 1/f^2."""
        window, whitening = self.get_buffer("window"), self.get_buffer("whitening")
        luma = _luma(lr.to(window.dtype))
        short = [max(WINDOW - side, 0) for side in luma.shape[-2:]]
        if any(short):
            luma = F.pad(luma[:, None], (0, short[1], 0, short[0]), mode="replicate")[:, 0]
        patches = luma.unfold(1, WINDOW, WINDOW // 2).unfold(2, WINDOW, WINDOW // 2).flatten(1, 2)
        patches = (patches - patches.mean((-2, -1), keepdim=True)) * window
        spectra = torch.fft.rfft2(patches)
        power = (spectra.real.square() + spectra.imag.square()) / window.square().sum()  # (B, N, 32, 17)
        shape = power / (power.sum((-2, -1), keepdim=True) + _FLOOR * WINDOW) + 1e-9
        logs = torch.stack(((power.mean(1) + _FLOOR).log(), shape.mean(1).log(), shape.log().mean(1)), 1) + whitening
        return (logs - logs.mean((-2, -1), keepdim=True)).flatten(1)


def _luma(image: Tensor) -> Tensor:
    """BT.601 luma (B, h, w) of RGB in [0, 1]."""
    red, green, blue = image.unbind(1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
