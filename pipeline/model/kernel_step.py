"""The kernel's data step: given a sharp image, solve for the kernel that explains the LR image best, in closed form.

USRNet's data step solves y = (x * k) down_s for x with k known. With x known the same equation is linear in k, and a
kernel has so few pixels that its normal equations fit a small matrix. The equations compare differences between
neighbouring LR pixels, not grey values (as in Cho & Lee, Fast Motion Deblurring, 2009), so that flat regions and a
wrong brightness have no effect on the kernel.

No shifted copies of x are made. Column u of the equations is x[s*p - u]; with u = s*a + r it is the polyphase
component P_r[p] = x[s*p - r] shifted by a, so every entry of the normal matrix is one value of a cross-correlation
between two of the s^2 components, and all of those come from FFTs of the LR size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pipeline.model.usrnet import Tick

RIDGE = 1e-3  # relative to the normal matrix's mean diagonal
_HINT_RIDGES = (1e-2, 1e-1)  # ridges of the unconstrained solutions that the prior sees
_ITERATIONS = 100
# Steps whose kernels the prior corrects. The steps after them fit the kernel to the picture itself.
CORRECTED = (1, 3)
Prior = Callable[[Tensor, Tensor, float, int], Tensor]  # maps (B, 4, k, k), sigma (B,), progress, s -> (B, k, k)
# Noise levels assumed by the restorer while the kernel is still wrong, first and last. With a low noise level it would
# invert the wrong kernel faithfully, and the ringing would explain the LR image as well as the true image does.
_ASSUMED_SIGMA = (0.1, 0.01)


def refine_kernel(
    restore: Callable[[Tensor, Tensor], Tensor],
    lr: Tensor,
    kernel: Tensor,
    scale: int,
    sigma: Tensor,
    steps: int,
    tick: Tick | None = None,
    prior: Prior | None = None,
    corrected: Collection[int] = CORRECTED,
) -> list[Tensor]:
    """Restore and estimate the kernel in turn; return the kernel (B, k, k) after each step.

    Args:
        restore: function from kernel (B, k, k) and noise level (B,), up to 0.1, to the image (B, 3, s*h, s*w), within
            [0, 1] except for overshoot by a reduction's lobes at edges.
        lr: (B, 3, h, w) in [0, 1], periodic.
        kernel: (B, k, k) first estimate.
        scale: s.
        sigma: (B,) noise level.
        steps: number of kernel steps, each after a restoration.
        tick: called after each step.
        prior: function that corrects kernels, as `KernelPrior` does; None leaves them as they are.
        corrected: indices of the steps whose kernels the prior corrects, from 0.
    """
    first, last = _ASSUMED_SIGMA
    found = []
    for number in range(steps):
        progress = number / max(steps - 1, 1)
        sharp = restore(kernel, sigma.clamp_min(first * (last / first) ** progress))
        if prior is not None and number in corrected:
            kernel = prior(kernel_maps(sharp, lr, kernel, scale), sigma, progress, scale)
        else:
            kernel = kernel_step(sharp, lr, kernel, scale)
        found.append(kernel)
        if tick is not None:
            tick("kernel step")
    return found


def kernel_step(x: Tensor, y: Tensor, kernel: Tensor, scale: int, ridge: float = RIDGE) -> Tensor:
    """Solve for the kernel that minimises |grad(y - (x * k) down_s)|^2 + ridge |k|^2, >= 0 and of sum 1.

    Args:
        x: (B, C, s*h, s*w) estimate of the sharp image, periodic.
        y: (B, C, h, w) LR image.
        kernel: (B, k, k), k odd: start of the search.
        scale: s.
        ridge: share of the normal matrix's mean diagonal.

    Returns:
        (B, k, k) float32 (float64 for float64 inputs), without a graph.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _solved(*_scaled_equations(x, y, kernel.shape[-1], scale), kernel, ridge)


def kernel_maps(x: Tensor, y: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """Return the maps of a kernel step, the inputs of `KernelPrior`.

    Args:
        x: (B, C, s*h, s*w) estimate of the sharp image, periodic.
        y: (B, C, h, w) LR image.
        kernel: (B, k, k), k odd: the kernel that x was restored with.
        scale: s.

    Returns:
        (B, 4, k, k): the kernel of `kernel_step`, the unconstrained least-squares solutions at two ridges, `kernel`.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        normal, right = _scaled_equations(x, y, kernel.shape[-1], scale)
        unit = torch.eye(normal.shape[-1], dtype=normal.dtype, device=x.device)
        free = [torch.linalg.solve(normal + r * unit, right).reshape(kernel.shape) for r in _HINT_RIDGES]
        return torch.stack((_solved(normal, right, kernel, RIDGE), *free, kernel.to(normal.dtype)), 1)


def _scaled_equations(x: Tensor, y: Tensor, size: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return the normal equations divided by the mean diagonal of their matrix."""
    normal, right = normal_equations(x, y, size, scale)
    level = normal.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None].clamp_min(torch.finfo(normal.dtype).tiny)
    return normal / level[..., None], right / level


def _solved(normal: Tensor, right: Tensor, start: Tensor, ridge: float) -> Tensor:
    """Solve scaled equations for the kernel (B, k, k), >= 0 and of sum 1."""
    unit = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    return _on_simplex(normal + ridge * unit, right, start.to(normal.dtype).flatten(1)).reshape(start.shape)


def normal_equations(x: Tensor, y: Tensor, size: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return A^T A (B, k^2, k^2) and A^T b (B, k^2) of A k = grad((x * k) down_s), b = grad(y), summed over channels.

    Args:
        x: (B, C, s*h, s*w) sharp image, periodic.
        y: (B, C, h, w) LR image.
        size: kernel side k, odd.
        scale: s.
    """
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    x, y = x.to(dtype), y.to(dtype)
    height, width = y.shape[-2:]
    half = size // 2
    # P_r[p] = x[s*p - r]: roll x by r, then decimate.
    parts = torch.stack(
        [x.roll((i, j), (-2, -1))[..., ::scale, ::scale] for i in range(scale) for j in range(scale)], 1
    )  # (B, s^2, C, h, w)
    spectra, target = torch.fft.rfft2(parts), torch.fft.rfft2(y)[:, None]
    weighted = spectra.conj() * _gradient_power(height, width, target.real)
    cross = torch.stack([(weighted[:, i : i + 1] * spectra).sum(2) for i in range(scale * scale)], 1)
    lags = torch.fft.irfft2(cross, s=(height, width))  # (B, s^2, s^2, h, w): C_rq[m]
    onto = torch.fft.irfft2((weighted * target).sum(2), s=(height, width))  # (B, s^2, h, w)

    offset = torch.arange(-half, half + 1, device=x.device)
    shift, phase = offset.div(scale, rounding_mode="floor"), offset % scale
    rows, columns = (grid.flatten() for grid in torch.meshgrid(shift, shift, indexing="ij"))
    part = (phase[:, None] * scale + phase).flatten()
    dy, dx = (rows[:, None] - rows) % height, (columns[:, None] - columns) % width
    return lags[:, part[:, None], part, dy, dx], onto[:, part, rows % height, columns % width]


def _gradient_power(height: int, width: int, like: Tensor) -> Tensor:
    """Return (height, width // 2 + 1): |1 - e^iw|^2 of neighbour differences, summed over both directions."""
    rows = 2 - 2 * (2 * torch.pi * torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)).cos()
    columns = 2 - 2 * (2 * torch.pi * torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)).cos()
    return rows[:, None] + columns


def _on_simplex(matrix: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """Minimise k^T M k / 2 - r^T k over k >= 0, sum k = 1, by accelerated projected gradient (FISTA)."""
    step = 1 / torch.linalg.eigvalsh(matrix)[:, -1:]
    now = ahead = start
    pace = 1.0
    for _ in range(_ITERATIONS):
        slope = torch.einsum("bij,bj->bi", matrix, ahead) - right
        new = project(ahead - step * slope)
        faster = (1 + (1 + 4 * pace * pace) ** 0.5) / 2
        now, ahead, pace = new, new + (pace - 1) / faster * (new - now), faster
    return now


def project(values: Tensor) -> Tensor:
    """Project (B, n) to the nearest point with entries >= 0 and sum 1 (Duchi et al., ICML 2008)."""
    ordered = values.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    kept = (ordered * count > excess).sum(-1, keepdim=True)
    return (values - excess.gather(-1, kept - 1) / kept).clamp_min(0)
