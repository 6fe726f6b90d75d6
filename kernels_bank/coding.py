"""Encoding and decoding of kernels, for arrays and tensors: the two formulas of `kernels_bank/codec.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kernels_bank.simplex import project_simplex, project_simplex_tensor

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", np.ndarray, Tensor)


def encode_codes(kernels: Array, mean: Array, basis: Array, std: Array) -> Array:
    """Encode kernels.

    Args:
        kernels: (..., k, k); arrays or tensors, all arguments of one kind and dtype.
        mean: (d,), d = k^2.
        basis: (d, c).
        std: (c,).

    Returns:
        (..., c). Tensors: differentiable, and never in half precision of an autocast region.
    """
    flat = kernels.reshape((*kernels.shape[:-2], mean.shape[0]))
    if isinstance(flat, np.ndarray):
        return ((flat - mean) @ basis) / std
    import torch

    with torch.autocast(flat.device.type, enabled=False):
        return ((flat.to(mean.dtype) - mean) @ basis) / std


def decode_codes(codes: Array, mean: Array, basis: Array, std: Array, size: int, *, signed: bool = False) -> Array:
    """Decode codes to kernels of sum 1, >= 0 unless `signed`.

    Args:
        codes: (..., c).
        mean: (d,), d = k^2.
        basis: (d, c).
        std: (c,).
        size: kernel side k.
        signed: whether to keep negative values; every column of the basis sums to 0, so the sum is already 1.

    Returns:
        (..., k, k). Tensors: differentiable, and never in half precision of an autocast region.
    """
    shape = (*codes.shape[:-1], size, size)
    if isinstance(codes, np.ndarray):
        flat = mean + (codes * std) @ basis.T
        return (flat if signed else project_simplex(flat)).reshape(shape)
    import torch

    with torch.autocast(codes.device.type, enabled=False):
        decoded = mean + (codes.to(mean.dtype) * std) @ basis.T
        return (decoded if signed else project_simplex_tensor(decoded)).reshape(shape)
