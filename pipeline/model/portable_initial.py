"""The initial kernel in operations that every runtime has: spectra as matrix products, no eigenvalue routines.

It is the same function as `BlindUSRNet.initial_kernel` in eval mode; `export.py` compares the two in the other runtime.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.blind import BlindUSRNet
from pipeline.model.gaussian_fit import NARROWEST, NEAR, WIDEST, matched
from pipeline.model.spectral import WINDOW, luma
from pipeline.reduction import reduction_kernels

_BANDS = WINDOW // 2 + 1


class PortableInitialKernel(nn.Module):
    """Estimate the kernel that the blind restoration of one image at one scale starts from."""

    def __init__(self, network: BlindUSRNet, scale: int) -> None:
        super().__init__()
        assert network.spectral is not None
        self.network, self.spectral, self.scale = network, network.spectral, scale
        place = torch.arange(WINDOW, dtype=torch.float64)
        angle = torch.outer(place, place) * (2 * torch.pi / WINDOW)
        self.register_buffer("cosines", angle.cos())
        self.register_buffer("sines", angle.sin())
        self.register_buffer("window", self.spectral.get_buffer("window").double())
        self.register_buffer("reductions", reduction_kernels(scale, "corner"))

    def forward(self, lr: Tensor, sigma: Tensor) -> Tensor:
        """Map (1, 3, h, w) in [0, 1], h and w at least 48, and sigma (1,) to the kernel (1, k, k), corner grid."""
        side = torch.sqrt(torch.ones_like(lr[:, 0]).sum((-2, -1)))
        blurs, shares = [], []
        for quarters, mirrored in itertools.product(range(4), (False, True)):
            view = _turned(lr, quarters)
            answer = self.spectral.answer(
                self._features(view.flip(-1) if mirrored else view, sigma), self.scale, sigma, side
            )
            blur = self.network.decode(answer.code)
            blurs.append(_turned(blur.flip(-1) if mirrored else blur, -quarters % 4))
            if answer.shares is not None:
                shares.append(answer.shares)
        blur = _snapped(torch.stack(blurs).mean(0))
        if not shares:
            return blur
        # As in `pipeline.reduction.compose`, whose table of filters is not part of the traced program.
        filters = torch.einsum("br,rij->bij", torch.stack(shares).mean(0), self.get_buffer("reductions"))
        whole = F.conv2d(blur[None], filters.flip(-2, -1)[:, None], padding=filters.shape[-1] // 2)[0]
        return whole / whole.sum((-2, -1), keepdim=True)

    def _features(self, lr: Tensor, sigma: Tensor) -> Tensor:
        """Compute `SpectralInit.features` in float64, so that a flat window has no power in any runtime."""
        window, cosines, sines = (self.get_buffer(name) for name in ("window", "cosines", "sines"))
        windows = _windows(luma(lr.double())[0])
        windows = (windows - windows.mean((-2, -1), keepdim=True)) * window
        across, up = windows @ cosines[:, :_BANDS], windows @ sines[:, :_BANDS]
        real, imaginary = cosines @ across - sines @ up, cosines @ up + sines @ across
        power = (real.square() + imaginary.square()) / window.square().sum()
        return self.spectral.of_power(power[None], sigma.to(power.dtype))


def _windows(grey: Tensor) -> Tensor:
    """Cut (h, w) into windows (N, 32, 32) that overlap by half."""
    half, inside = WINDOW // 2, torch.arange(WINDOW)
    down, across = (torch.arange(side // half - 1)[:, None] * half + inside for side in (grey.shape[0], grey.shape[1]))
    return grey[down][:, :, across].transpose(1, 2).flatten(0, 1)


def _turned(image: Tensor, quarters: int) -> Tensor:
    """Apply `rot90` to the last two axes."""
    match quarters % 4:
        case 1:
            return image.transpose(-2, -1).flip(-2)
        case 2:
            return image.flip(-2, -1)
        case 3:
            return image.transpose(-2, -1).flip(-1)
    return image


def _snapped(kernel: Tensor) -> Tensor:
    """Compute `snap_to_gaussian` with the eigenvalues of 2 x 2 matrices in closed form."""
    gaussian = matched(kernel, _possible, _inverse)
    distance = (kernel - gaussian).abs().sum((-2, -1), keepdim=True)
    return torch.where(distance <= NEAR, gaussian, kernel)


def _possible(covariance: Tensor) -> Tensor:
    """Bring both variances of covariances (B, 2, 2) into range."""
    a, b, d = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    middle, half = (a + d) / 2, (a - d) / 2
    radius = (half.square() + b.square()).sqrt()
    high, low = ((middle + sign * radius).clamp(NARROWEST, WIDEST) for sign in (1, -1))
    mean, share = (high + low) / 2, (high - low) / 2 / radius.clamp_min(1e-20)
    return torch.stack((mean + share * half, share * b, share * b, mean - share * half), -1).reshape(-1, 2, 2)


def _inverse(covariance: Tensor) -> Tensor:
    a, b, d = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    return torch.stack((d, -b, -b, a), -1).reshape(-1, 2, 2) / (a * d - b * b)[:, None, None]
