"""Exact Euclidean projection onto the set of blur kernels: non-negative, sum one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Held, Wolfe & Crowder 1974; Duchi et al., ICML 2008, Fig. 1: the projection is max(v - theta, 0) with the
# theta that makes the sum 1. Sorted descending, entry j stays positive iff v_j > (v_1 + ... + v_j - 1) / j.


def project_simplex(values: np.ndarray) -> np.ndarray:
    """Project to the nearest point with entries >= 0 and sum 1, along the last axis.

    Args:
        values: (..., d) float.

    Returns:
        (..., d) of the same dtype.

    >>> project_simplex(np.array([0.5, 0.75, -0.25])).tolist()
    [0.375, 0.625, 0.0]
    """
    descending = -np.sort(-values, axis=-1)
    rank = np.arange(1, values.shape[-1] + 1, dtype=values.dtype)
    kept = (descending * rank > np.cumsum(descending, axis=-1) - 1).sum(axis=-1, keepdims=True)
    support = values >= np.take_along_axis(descending, kept - 1, axis=-1)
    theta = ((values * support).sum(axis=-1, keepdims=True) - 1) / support.sum(axis=-1, keepdims=True)
    return np.maximum(values - theta.astype(values.dtype), 0)


def project_simplex_tensor(values: Tensor) -> Tensor:
    """Project tensors of any device as `project_simplex` does.

    Differentiable (the gradient is centred on the support).
    """
    import torch

    with torch.no_grad():
        descending = values.sort(dim=-1, descending=True).values
        rank = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
        kept = (descending * rank > running_sum(descending) - 1).sum(-1, keepdim=True)
        # No entry is kept if values are not finite. The result is then NaN, which the caller detects.
        support = values >= descending.gather(-1, (kept - 1).clamp_min(0))
    theta = ((values * support).sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
    return (values - theta).clamp_min(0)


def running_sum(values: Tensor) -> Tensor:
    """Return the running sum along the last axis.

    `cumsum` on CUDA is not deterministic, and is refused when deterministic algorithms are requested. There the sum is
    computed by log2(n) shifted additions instead.
    """
    import torch

    if values.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(-1)
    return shifted_sums(values)


def shifted_sums(values: Tensor) -> Tensor:
    """Return the running sum along the last axis, added up in a fixed order by doubling strides."""
    import torch

    step = 1
    while step < values.shape[-1]:
        values = torch.cat((values[..., :step], values[..., step:] + values[..., :-step]), -1)
        step *= 2
    return values
