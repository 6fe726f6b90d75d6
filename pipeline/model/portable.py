"""The restorer in operations that every runtime has: real numbers, no FFT, any image size.

The data step of `fourier.py` uses complex FFTs of any length, which exchange formats lack. Here blur and adjoint are
convolutions, and the only step in frequencies, (D + alpha)^-1 on the LR grid, consists of products with matrices of
cosines and sines. Both compute the same function: `export.py` compares them in the other runtime.

Sizes stay symbolic while a module is traced. No branch and no slice may depend on them, so edges are gathered by index.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.prior import SIDE_MULTIPLE, ResUNet
from pipeline.model.upsample import upsample
from pipeline.model.usrnet import USRNet

Waves = tuple[Tensor, Tensor]  # cosines and sines, (frequencies, places) each


class PortableRestorer(nn.Module):
    """Restore one image with a known kernel at one scale: the function of `USRNet.forward` in eval mode."""

    def __init__(self, network: USRNet, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, lr: Tensor, kernel: Tensor, sigma: Tensor) -> Tensor:
        """Map (1, 3, h, w) in [0, 1], kernel (1, k, k) of odd side and sum 1, and sigma (1,) to (1, 3, s*h, s*w)."""
        config, scale = self.network.config, self.scale
        height, width = lr.shape[-2:]
        alphas, betas = self.network.h(sigma, scale)
        power = _folded_power(kernel, height, width, scale)
        rows, columns = _waves(height, height, 0, lr), _waves(width, width, 0, lr)
        half, weight = kernel.shape[-1] // 2, kernel[:, None]
        x = upsample(lr, scale, config.x0)
        for i in range(config.unfoldings):
            # conv2d correlates: with the flipped kernel it convolves; with the kernel as it is, it applies the adjoint.
            blurred = F.conv2d(_wrapped(x, half), weight.flip(-2, -1), stride=scale).transpose(0, 1)
            solved = _solved(lr - blurred, power + alphas[:, i, None, None, None], rows, columns)
            spread = F.pad(solved[:, :, :, None, :, None], (0, scale - 1, 0, 0, 0, scale - 1))
            spread = spread.reshape(1, 3, scale * height, scale * width)
            x = x + F.conv2d(_wrapped(spread, half), weight).transpose(0, 1)
            x = _denoised(self.network.p, x, betas[:, i])
        return x


def _wrapped(x: Tensor, half: int) -> Tensor:
    """Pad (1, C, H, W) periodically to (C, 1, H + 2 half, W + 2 half); each channel becomes an image of the batch."""
    x = torch.cat((x[..., x.shape[-1] - half :], x, x[..., :half]), -1)
    x = torch.cat((x[..., x.shape[-2] - half :, :], x, x[..., :half, :]), -2)
    return x.transpose(0, 1)


def _waves(length: int, places: int, first: int, like: Tensor) -> Waves:
    """Return cosines and sines of a DFT of this length at places `first`, `first` + 1, ...: (length, places) each."""
    frequency = torch.arange(length, device=like.device)
    count = frequency[-1] + 1  # the length as a tensor: exporters cannot express a remainder by a size
    # Whole periods are removed in integers, since float32 would round the product.
    turns = frequency[:, None] * (torch.arange(places, device=like.device) + first) % count
    angle = turns.to(like.dtype) * (2 * math.pi) / count.to(like.dtype)
    return angle.cos(), angle.sin()


def _folded_power(kernel: Tensor, height: int, width: int, scale: int) -> Tensor:
    """Compute D of `fourier.py`, (1, 1, h, w): the mean over aliases of |F(k)|^2, on the whole spectrum."""
    size = kernel.shape[-1]
    cosines, sines = _waves(scale * height, size, -(size // 2), kernel)
    across = _waves(scale * width, size, -(size // 2), kernel)
    real, imaginary = kernel @ across[0].T, kernel @ across[1].T
    power = (cosines @ real - sines @ imaginary).square() + (cosines @ imaginary + sines @ real).square()
    return power.reshape(1, scale, height, scale, width).mean((1, 3))[:, None]


def _solved(residual: Tensor, denominator: Tensor, rows: Waves, columns: Waves) -> Tensor:
    """Divide the spectrum of a real image (1, C, h, w) by real, even numbers (1, 1, h, w)."""
    (ch, sh), (cw, sw) = rows, columns
    real, imaginary = residual @ cw, residual @ sw  # minus the imaginary part
    real, imaginary = (ch @ real - sh @ imaginary) / denominator, -(ch @ imaginary + sh @ real) / denominator
    real, imaginary = ch @ real - sh @ imaginary, ch @ imaginary + sh @ real
    return (real @ cw - imaginary @ sw) / (ch[0].sum() * cw[0].sum())  # cos 0 = 1: the number of pixels


def _denoised(prior: ResUNet, x: Tensor, beta: Tensor) -> Tensor:
    """Compute the function of `ResUNet.forward`."""
    height, width = x.shape[-2:]
    image = torch.cat((x, beta[:, None, None, None].expand(-1, 1, height, width)), 1)
    for axis, side in ((2, height), (3, width)):
        whole = (side + SIDE_MULTIPLE - 1) // SIDE_MULTIPLE * SIDE_MULTIPLE
        last = torch.arange(side, device=x.device)[-1]
        image = image.index_select(axis, torch.arange(whole, device=x.device).minimum(last))
    out = prior.unet(image)
    for axis, side in ((2, height), (3, width)):
        out = out.index_select(axis, torch.arange(side, device=x.device))
    return x + out if prior.global_skip else out
