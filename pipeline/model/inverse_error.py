"""Estimate how much a wrong kernel worsens a restoration, without restoring anything.

The sum of |k' - k| says little: a kernel that is slightly too wide causes ringing, while one that is slightly too
narrow only leaves some blur. What matters is the error of the inverse filter made from the estimate, over the power
spectrum of natural images (`inverse_error`). It is differentiable, so a net can be trained on it.

Only frequencies in the LR image count. Those beyond are lost with any kernel and make up the larger part of a
restoration's error, so a wrong kernel costs little where the blur is narrow for the scale. The constants are chosen so
that Gaussians that are wrong by 10 to 60% of their width cost what they cost the shipped restorer at x2 and x3
(docs/training-log.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.fourier import transfer_function

_GRID = 64  # frequencies per side
_FALL = 1.5  # the power of natural images falls as 1/f^(2 * this)
_WITHOUT_NOISE, _BY_NOISE = 1e-3, 0.25  # the inverse filter's regularisation; the second times sigma
_LOST = 0.7  # share of the power beyond the LR image's frequencies that is lost even with the true kernel
_FLOOR = 1e-3  # share of the picture's power; smaller errors are not distinguished


def inverse_error(estimate: Tensor, kernel: Tensor, sigma: Tensor, scale: int) -> Tensor:
    """Return the dB that inverting with an estimated kernel costs against inverting with the true one.

    Args:
        estimate: (B, k, k) kernels.
        kernel: (B, k, k) true ones, on the same grid.
        sigma: (B,) noise levels on the [0, 1] scale; more noise regularises the inverse filter more.
        scale: s: the LR image holds frequencies up to 1 / 2s.

    Returns:
        (B,) in the dtype of `estimate`. The measure is rough: it ignores aliasing and the image prior.
    """
    found, true = (transfer_function(k, _GRID, _GRID)[:, 0] for k in (estimate, kernel))
    held, lost = _natural_power(found.real, scale)
    noise = (_WITHOUT_NOISE + _BY_NOISE * sigma.to(held))[:, None, None]
    left = 1 - true * found.conj() / (found.real.square() + found.imag.square() + noise)
    best = noise / (true.real.square() + true.imag.square() + noise)
    error = (held * (left.real.square() + left.imag.square())).sum((-2, -1))
    least = (held * best.square()).sum((-2, -1))
    return 10 * ((error + lost).log10() - (least + lost).log10())


def _natural_power(like: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Return (64, 33) shares of a picture's power at the frequencies in its LR image, and the error outside them."""
    f = torch.fft.fftfreq(_GRID, dtype=like.dtype, device=like.device)[:, None]
    g = torch.fft.rfftfreq(_GRID, dtype=like.dtype, device=like.device)
    power = (f.square() + g.square() + _GRID**-2.0) ** -_FALL
    power[:, 1:-1] *= 2  # both halves of the spectrum count
    power = power / power.sum()
    held = power * ((f.abs() <= 0.5 / scale) & (g <= 0.5 / scale))
    return held, _LOST * (1 - held.sum()) + _FLOOR
