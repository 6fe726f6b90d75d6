"""Matrices in a file as 8 bit integers, each column with its own step: half of float16's bytes.

A column belongs to one input feature, and input features differ more than output features: steps per column leave half
the error of steps per row. The file has the integers under the matrix's name, and the steps under that name with the
suffix `.step`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_STEP = ".step"
_MOST = 127


def packed(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """Return a matrix in the file's format: integers and steps by their names.

    Args:
        name: name of the matrix.
        matrix: (rows, columns), finite. No value changes by more than half the step of its column, which is the
            column's largest magnitude / 127.
    """
    matrix = matrix.float()
    step = (matrix.abs().amax(0, keepdim=True) / _MOST).clamp_min(torch.finfo(torch.float32).tiny)
    return {name: (matrix / step).round().clamp(-_MOST, _MOST).to(torch.int8), name + _STEP: step}


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with its packed matrices as float32. All other entries are unchanged."""
    whole = {name: state[name].float() * state[name + _STEP] for name in state if _is_packed(state, name)}
    return {name: value for name, value in state.items() if name.removesuffix(_STEP) not in whole} | whole


def _is_packed(state: Mapping[str, Tensor], name: str) -> bool:
    integers, step = state[name], state.get(name + _STEP)
    return (
        step is not None
        and (integers.dtype, step.dtype) == (torch.int8, torch.float32)
        and integers.dim() == 2
        and step.shape == (1, integers.shape[1])
    )
