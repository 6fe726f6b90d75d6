"""The spectral initial kernel: the LR image's own log power spectrum -> kernel code and reduction.

Natural images share a power spectrum that falls as 1/f^2, so the averaged periodogram of the LR image shows the
kernel's |F(k)|^2 through the decimation. It is blind to phase: k(x) and k(-x) look the same, so motion kernels are
left to kernel steps or the estimator.

A picture that was reduced with antialiasing shows no aliasing, which a net trained without such pictures takes for
blur. So the net may also estimate the reduction, as shares of the known reductions. It is then given the picture's
size: a small picture shows little of its spectrum, and the rest is better taken for sharp than for blurred. This kind
of net has two answers for the blur. The first is used to restore and errs on the harmless side: it is too narrow.
Kernel steps do not converge from there to a motion kernel, so they start from the second, which errs on neither side.

Decimation folds the same spectrum differently at each scale, so the scale must modulate the whole first layer: every
hidden unit has a gain and an offset per scale (FiLM: Perez et al., AAAI 2018). The scale as one more input is not
enough, and a separate net for each scale is no better (docs/training-log.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels_bank.reduction import REDUCTIONS

WINDOW, FEATURES = 32, 3
FLOOR = 1e-7  # power of about 0.02 grey levels per pixel; below it a spectrum is rounding error
_FINE = 3 / WINDOW  # cycles per pixel; slower changes are those of skies and shadows
_FAINT = 2 / 12 / 255**2  # power per pixel, twice that of rounding to 8 bit
_NOISE = 1.5 * (0.299**2 + 0.587**2 + 0.114**2)  # 1.5 times the power of the noise in the luma, per sigma^2
_USUAL = 64  # side in LR pixels of a picture that is neither large nor small


class Answer(NamedTuple):
    """Hold the net's answer for B images."""

    code: Tensor  # (B, c), standardised, of the blur to restore with
    shares: Tensor | None  # (B, 4) of `REDUCTIONS`; None from a net that knows only direct decimation
    start: Tensor | None  # (B, c), of the blur that kernel steps start from; None: the same as `code`


class SpectralInit(nn.Module):
    """Estimate the kernel's standardised code, and the reduction, from the power spectrum of LR images (B, 3, h, w).

    Args:
        scales: supported scales.
        components: number of components of the kernel code.
        reductions: whether it estimates the reduction; otherwise direct decimation is assumed.
        hidden: widths of its two hidden layers.
    """

    def __init__(
        self,
        scales: tuple[int, ...],
        components: int,
        *,
        reductions: bool = False,
        hidden: tuple[int, int] = (512, 256),
    ) -> None:
        super().__init__()
        self.components, self.reductions = components, reductions
        features = FEATURES * WINDOW * (WINDOW // 2 + 1)
        self.scales = scales
        self.norm = nn.LayerNorm(features)
        self.first = nn.Linear(features + (2 if reductions else 1), hidden[0])
        self.by_scale = nn.Parameter(torch.zeros(len(scales), 2, hidden[0]))  # gain beyond 1, and offset
        self.rest = nn.Sequential(
            nn.GELU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.GELU(),
            nn.Linear(hidden[1], components + (len(REDUCTIONS) + components if reductions else 0)),
        )
        # Created on the CPU first: on the meta device, torch would import its compiler, which takes two seconds.
        device, cpu = self.by_scale.device, torch.device("cpu")
        window = torch.hann_window(WINDOW, periodic=False, device=cpu)
        rows, columns = torch.fft.fftfreq(WINDOW, device=cpu), torch.fft.rfftfreq(WINDOW, device=cpu)
        frequency = rows[:, None].square() + columns.square()
        fine = (frequency >= _FINE**2).float()
        self.register_buffer("window", (window[:, None] * window).to(device), persistent=False)
        self.register_buffer("fine", (fine / fine.sum()).to(device), persistent=False)
        self.register_buffer("whitening", (frequency + WINDOW**-2.0).log().to(device), persistent=False)

    def forward(self, lr: Tensor, scale: int, sigma: Tensor) -> Answer:
        """Estimate from LR images (B, 3, h, w) of noise levels (B,), in float32 also under autocast."""
        side = torch.full((len(lr),), math.sqrt(lr.shape[-2] * lr.shape[-1]), device=lr.device)
        with torch.autocast(lr.device.type, enabled=False):
            return self.answer(self.features(lr, sigma), scale, sigma, side)

    def answer(self, features: Tensor, scale: int, sigma: Tensor, side: Tensor) -> Answer:
        """Answer for precomputed features.

        Args:
            features: (B, 3 * 32 * 17), from `features`.
            scale: scale of all images.
            sigma: (B,) noise levels on the [0, 1] scale.
            side: (B,) side in LR pixels of a square with the picture's area.
        """
        features = self.norm(features.to(self.norm.weight.dtype))
        level = (10 * sigma)[:, None].to(features.dtype)
        if self.reductions:
            level = torch.cat((level, (side / _USUAL).log2()[:, None].to(features.dtype)), 1)
        gain, offset = self.by_scale[self.scales.index(scale)]
        out: Tensor = self.rest(self.first(torch.cat((features, level), 1)) * (1 + gain) + offset)
        if not self.reductions:
            return Answer(out, None, None)
        code, shares, start = out.split((self.components, len(REDUCTIONS), self.components), 1)
        return Answer(code, shares.softmax(1), start)

    def features(self, lr: Tensor, sigma: Tensor) -> Tensor:
        """Compute (B, 3 * 32 * 17): log mean power, plain and per window, and mean log power, with 1/f^2 removed.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            sigma: (B,) noise levels on the [0, 1] scale.
        """
        window = self.get_buffer("window")
        grey = luma(lr.to(window.dtype))
        short = [max(WINDOW - side, 0) for side in grey.shape[-2:]]
        if any(short):
            grey = F.pad(grey[:, None], (0, short[1], 0, short[0]), mode="replicate")[:, 0]
        patches = grey.unfold(1, WINDOW, WINDOW // 2).unfold(2, WINDOW, WINDOW // 2).flatten(1, 2)
        patches = (patches - patches.mean((-2, -1), keepdim=True)) * window
        spectra = torch.fft.rfft2(patches)
        return self.of_power((spectra.real.square() + spectra.imag.square()) / window.square().sum(), sigma)

    def of_power(self, power: Tensor, sigma: Tensor) -> Tensor:
        """Compute the features of the windows' power spectra (B, N, 32, 17) at noise levels (B,).

        Windows that show nothing but a smooth surface, rounding and noise are left out, unless all do: they say nothing
        about the blur, and black or white areas would be taken for much of it.
        """
        whitening = self.get_buffer("whitening")
        textured = (power * self.get_buffer("fine")).sum((-2, -1)) > _FAINT + _NOISE * sigma.square()[:, None]
        counts = (textured | ~textured.any(1, keepdim=True)).to(power.dtype)
        weights = counts / counts.sum(1, keepdim=True)

        def mean(values: Tensor) -> Tensor:
            return torch.einsum("bn,bnij->bij", weights, values)

        shape = power / (power.sum((-2, -1), keepdim=True) + FLOOR * WINDOW) + 1e-9
        logs = torch.stack(((mean(power) + FLOOR).log(), mean(shape).log(), mean(shape.log())), 1) + whitening
        return (logs - logs.mean((-2, -1), keepdim=True)).flatten(1)


def luma(image: Tensor) -> Tensor:
    """Return the BT.601 luma (B, h, w) of RGB in [0, 1]."""
    red, green, blue = image.unbind(1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
