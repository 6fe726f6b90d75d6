"""How much worse a restoration gets by a wrong kernel, before anything is restored.

The sum of |k' - k| says little: a kernel that is a little too wide is inverted into ringing, one that is as much too
narrow only leaves some blur. What decides is the error of the inverse filter made from the estimate, over the power
spectrum of natural images (`inverse_error`). It can be differentiated, so a net that is trained on it, and is not sure,
errs on the harmless side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.fourier import transfer_function

_GRID = 64  # frequencies a side
# The inverse filter's regularisation: such that widths that are wrong by 10 to 50% cost in proportion to what they cost
# the shipped restorer (docs/training-log.md).
_WITHOUT_NOISE = 3e-4
_BY_NOISE = 0.25  # times sigma
_FLOOR = 1e-3  # share of the picture's power: smaller errors are alike


def inverse_error(estimate: Tensor, kernel: Tensor, sigma: Tensor) -> Tensor:
    """Return the dB that inverting with an estimated kernel costs against inverting with the true one.

    Args:
        estimate: (B, k, k) kernels.
        kernel: (B, k, k) true ones, on the same grid.
        sigma: (B,) noise levels on the [0, 1] scale: the more noise, the less is inverted.

    Returns:
        (B,) in the dtype of `estimate`. A rough measure: it knows no aliasing and no prior.
    """
    found, true = (transfer_function(k, _GRID, _GRID)[:, 0] for k in (estimate, kernel))
    weight = _natural_power(found.real)
    noise = (_WITHOUT_NOISE + _BY_NOISE * sigma.to(weight))[:, None, None]
    left = 1 - true * found.conj() / (found.real.square() + found.imag.square() + noise)
    best = noise / (true.real.square() + true.imag.square() + noise)
    error = (weight * (left.real.square() + left.imag.square())).sum((-2, -1))
    least = (weight * best.square()).sum((-2, -1))
    return 10 * ((error + _FLOOR).log10() - (least + _FLOOR).log10())


def _natural_power(like: Tensor) -> Tensor:
    """(64, 33) of sum 1: 1/f^2, with both halves of the spectrum counted."""
    f = torch.fft.fftfreq(_GRID, dtype=like.dtype, device=like.device)[:, None]
    g = torch.fft.rfftfreq(_GRID, dtype=like.dtype, device=like.device)
    power = 1 / (f.square() + g.square() + _GRID**-2.0)
    power[:, 1:-1] *= 2
    return power / power.sum()
