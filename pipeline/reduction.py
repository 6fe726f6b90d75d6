"""Composite kernels in torch (`kernels_bank/reduction.py`), and the position of pictures restored with them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels_bank.centring import centroid
from kernels_bank.names import Grid, Reduction
from kernels_bank.reduction import REDUCTIONS, offset, reduction_line, shift_line

_NO_SHIFT = 0.02  # pixels
_LOSS = 1e-3  # largest share of a shifted kernel that may be cut off


def reduction_kernels(scale: int, grid: Grid) -> Tensor:
    """Return the kernels of all `REDUCTIONS`, (4, m, m) float32, m odd."""
    # Made anew each time: a kept tensor would belong to the fake or inference mode of its first call.
    return torch.from_numpy(np.stack([np.outer(line, line) for line in _lines(scale, grid)]).astype(np.float32))


def _lines(scale: int, grid: Grid) -> np.ndarray:
    """Return the factors of the separable `REDUCTIONS`, (4, m) float64, m odd, padded with zeros."""
    lines = [reduction_line(name, scale, grid) for name in REDUCTIONS]
    side = max(len(line) for line in lines)
    return np.stack([np.pad(line, (side - len(line)) // 2) for line in lines])


def compose(kernel: Tensor, shares: Tensor, scale: int, grid: Grid) -> Tensor:
    """Return composite kernels: blurs followed by reductions, cut to the blurs' size.

    Args:
        kernel: (B, k, k) blurs, k odd, of sum 1.
        shares: (B, 4) weights of `REDUCTIONS`, of sum 1: one of them, or a mixture if the reduction is uncertain.
        scale: s.
        grid: where the LR pixels lie.

    Returns:
        (B, k, k) of the dtype of `kernel`, also under autocast, of sum 1, with the negative lobes of its reduction.
    """
    lines = _lines(scale, grid)
    half, side = lines.shape[-1] // 2, kernel.shape[-1]
    padded = np.pad(lines, [(0, 0), (side, side)])
    # Row i of a matrix is the flipped line around pixel i, so that one matrix on each side convolves both axes. A
    # convolution with one filter for each kernel takes ten times as long, and its gradient eighteen times.
    taps = half + side + np.arange(side)[:, None] - np.arange(side)
    matrices = torch.from_numpy(padded[:, taps]).to(kernel)[:, None]
    with torch.autocast(kernel.device.type, enabled=False):
        whole = torch.einsum("br,rbij->bij", shares.to(kernel), matrices @ kernel @ matrices.mT)
    return whole / whole.sum((-2, -1), keepdim=True)


def mixed_reductions(shares: Tensor, scale: int, grid: Grid) -> Tensor:
    """Return each sample's reduction as one kernel, (B, m, m) of the dtype of `shares` (B, 4)."""
    with torch.autocast(shares.device.type, enabled=False):
        return torch.einsum("br,rij->bij", shares, reduction_kernels(scale, grid).to(shares))


def one_hot(reductions: list[Reduction]) -> Tensor:
    """Return the shares (B, 4) of samples with one reduction each."""
    return F.one_hot(torch.tensor([REDUCTIONS.index(name) for name in reductions]), len(REDUCTIONS)).float()


def place(kernel: np.ndarray, scale: int, grid: Grid) -> np.ndarray:
    """Shift a kernel so that the picture restored with it lies on a grid.

    A kernel may be moved freely if the restored picture moves the other way. On the `centre` grid that picture lies
    where a bicubic enlargement of the LR image lies.

    Args:
        kernel: (k, k), k odd, of sum 1.
        scale: s.
        grid: `corner` leaves the kernel as it is; `centre` moves its centroid to minus the grid's offset.

    Returns:
        (k', k') float32, of sum 1, k' = k unless that would cut off more than a thousandth of it; the kernel itself
        if it needs no shift.
    """
    if grid == "corner":
        return kernel
    from scipy import ndimage  # imported here: every training worker imports this module, and none calls this function

    shifts = (-offset(scale, grid) - centroid(kernel[None])[0]).tolist()
    if max(map(abs, shifts)) < _NO_SHIFT:
        return kernel
    room = int(np.ceil(max(map(abs, shifts)))) + 1
    out = np.pad(kernel.astype(np.float64), room)
    for axis, shift in enumerate(shifts):
        taps = shift_line(np.ones(1), shift)
        out = ndimage.convolve1d(out, taps, axis=axis, mode="constant")
    inner = out[room:-room, room:-room]
    if np.abs(inner).sum() >= (1 - _LOSS) * np.abs(out).sum():
        out = inner
    return np.asarray(out / out.sum(), np.float32)
