"""A first kernel from the edges of the LR image, without any training: the start of kernel steps on camera shake.

A power spectrum cannot distinguish a kernel from its mirror image, and the spectral net answers with something between
the two. Edges can. At the LR image's own scale two steps alternate, from coarse to fine. The first restores the image
with as few gradients as explain it (an L0 prior), which leaves only sharp edges. The second finds the kernel that blurs
these edges into the LR image. Aliasing counts as noise. The estimate is rough; kernel steps refine it.

Xu, Zheng, Jia: Unnatural L0 Sparse Representation for Natural Image Deblurring, CVPR 2013; the pyramid and its
constants follow Anger, Facciolo, Delbracio: Blind Image Deblurring using the l0 Gradient Prior, IPOL 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.centring import recentre
from pipeline.model.fourier import transfer_function
from pipeline.model.upsample import upsample

# Scales at which kernel steps without a kernel prior start from edges. On camera shake this gains 1.2 dB at x2. At x3
# it gains little or nothing, since too much of the edges is aliased (docs/training-log.md).
EDGE_SCALES = (2,)

_RATIO = 0.5  # size ratio of neighbouring pyramid levels
_TURNS = 5  # alternations of image and kernel per level
_WEIGHT, _LEAST_WEIGHT, _FADE = 4e-3, 1e-4, 1.1  # weight of the L0 prior: first, smallest, and divisor per turn
_DOUBLINGS = 24  # of the coupling, from twice the weight; at the end the image has exactly the gradients that were kept
_RIDGE = 20.0  # regularisation of the kernel, for images in [0, 1]
_FAINT = 0.05  # smaller values, relative to a kernel's largest, are noise
_SMALLEST, _SMALLEST_SIDE = 3, 8  # smallest sides of a kernel and of an image, pixels


def edge_kernel(lr: Tensor, size: int, scale: int, sigma: Tensor) -> Tensor:
    """Estimate a kernel from the edges of an LR image.

    Args:
        lr: (B, 3, h, w) in [0, 1], periodic.
        size: side of the kernel, odd, in HR pixels.
        scale: s.
        sigma: (B,) noise levels on the [0, 1] scale.

    Returns:
        (B, size, size) float32, >= 0, of sum 1.
    """
    with torch.no_grad(), torch.autocast(lr.device.type, enabled=False):
        grey, least = lr.float().mean(1), (0.5 * sigma.float()).clamp_min(_LEAST_WEIGHT)
        sides = _sides(2 * (size // (2 * scale)) + 1)
        kernel = torch.full((len(lr), 1, 1), 1.0, device=lr.device)
        for level, side in reversed(list(enumerate(sides))):
            height, width = (max(min(n, _SMALLEST_SIDE), round(n * _RATIO**level)) for n in grey.shape[-2:])
            side = min(side, (min(height, width) - 1) // 2 * 2 + 1)
            kernel = _unit(_resized(kernel, side, side)) if kernel.shape[-1] > 1 else _beginning(kernel, side)
            kernel = _level(_resized(grey, height, width), kernel, least)
        return _enlarged(kernel, size, scale)


def _sides(largest: int) -> list[int]:
    """List the odd sides of the kernel, from the finest level to the coarsest."""
    sides = [largest]
    while sides[-1] > _SMALLEST:
        sides.append(max(_SMALLEST, 2 * (round(sides[-1] * _RATIO) // 2) + 1))
    return sides


def _level(grey: Tensor, kernel: Tensor, least: Tensor) -> Tensor:
    """Estimate image and kernel in turn, starting from the kernel (B, n, n) of a coarser level."""
    weight, spectrum = torch.full_like(least, _WEIGHT), torch.fft.rfft2(grey)
    for _ in range(_TURNS):
        sharp = _few_gradients(grey, spectrum, kernel, torch.maximum(weight, least))
        kernel = recentre(_explaining(sharp, grey, kernel.shape[-1]))
        weight = weight / _FADE
    return kernel


def _few_gradients(grey: Tensor, spectrum: Tensor, kernel: Tensor, weight: Tensor) -> Tensor:
    """Restore images (B, h, w) with few gradients by half-quadratic splitting; `spectrum` is that of `grey`."""
    size, weight = grey.shape[-2:], weight[:, None, None]
    transfer = transfer_function(kernel, *size)[:, 0]
    slopes = _differences(size[0], size[1], grey)
    power, steep = _power(transfer), sum(_power(slope) for slope in slopes)
    explained, sharp = transfer.conj() * spectrum, grey
    coupling = 2 * weight
    for _ in range(_DOUBLINGS):
        down, right = _gradients(sharp)
        kept = (down.square() + right.square() >= weight / coupling).to(grey.dtype)
        drawn = sum(s.conj() * torch.fft.rfft2(g * kept) for s, g in zip(slopes, (down, right), strict=True))
        sharp = torch.fft.irfft2((explained + coupling * drawn) / (power + coupling * steep + 1e-12), s=size)
        coupling = 2 * coupling
    return sharp


def _explaining(sharp: Tensor, grey: Tensor, side: int) -> Tensor:
    """Solve for the kernel (B, side, side), >= 0 and of sum 1, that turns the gradients of `sharp` into `grey`'s."""
    onto, power = torch.zeros((), device=grey.device), torch.zeros((), device=grey.device)
    for ours, theirs in zip(_gradients(sharp), _gradients(grey), strict=True):
        spectrum = torch.fft.rfft2(ours)
        onto, power = onto + spectrum.conj() * torch.fft.rfft2(theirs), power + _power(spectrum)
    half = side // 2
    whole = torch.fft.irfft2(onto / (power + _RIDGE), s=grey.shape[-2:])
    kernel = whole.roll((half, half), (-2, -1))[:, :side, :side].clamp_min(0)
    return _unit(kernel.where(kernel >= _FAINT * kernel.amax((-2, -1), keepdim=True), 0))


def _gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    return image.roll(-1, -2) - image, image.roll(-1, -1) - image


def _differences(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the transfer functions of `_gradients`, (height, 1) and (1, width // 2 + 1)."""
    rows = torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)[None]
    down, right = (torch.polar(torch.ones_like(f), 2 * torch.pi * f) - 1 for f in (rows, columns))
    return down, right


def _power(spectrum: Tensor) -> Tensor:
    return spectrum.real.square() + spectrum.imag.square()


def _unit(kernel: Tensor) -> Tensor:
    """Scale kernels to sum 1; an empty kernel becomes a delta."""
    kernel = kernel.clamp_min(0)
    total, half = kernel.sum((-2, -1), keepdim=True), kernel.shape[-1] // 2
    point = torch.zeros_like(kernel)
    point[:, half, half] = 1
    return torch.where(total > 0, kernel / total.clamp_min(torch.finfo(kernel.dtype).tiny), point)


def _beginning(like: Tensor, side: int) -> Tensor:
    """Return a first kernel of two adjacent pixels; a delta would leave the image unchanged."""
    if side == 1:
        return torch.ones(len(like), 1, 1, device=like.device)
    kernel = torch.zeros(len(like), side, side, device=like.device)
    kernel[:, side // 2, side // 2 - 1 : side // 2 + 1] = 0.5
    return kernel


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image[:, None], (height, width), mode="bicubic", align_corners=False, antialias=True)[:, 0]


def _enlarged(kernel: Tensor, size: int, scale: int) -> Tensor:
    """Enlarge a kernel from LR to HR pixels about its middle."""
    whole = upsample(kernel[:, None], scale, "bicubic")[:, 0]
    first = scale * (kernel.shape[-1] // 2) - size // 2
    before, after = max(0, -first), max(0, first + size - whole.shape[-1])
    whole = F.pad(whole, (before, after, before, after))
    start = first + before
    return _unit(whole[:, start : start + size, start : start + size])
