"""Matrices in a file as 8 bit integers, each column with a step of its own: half of float16's bytes.

A column is what one feature of the input is multiplied by, and features differ more than what is made of them: steps
of the columns leave half the error that steps of the rows leave. The file has the integers under the matrix's name, and
the steps under that name and `.step`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_STEP = ".step"
_MOST = 127


def packed(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """Return a matrix as a file keeps it: integers and steps by their names.

    Args:
        name: of the matrix.
        matrix: (rows, columns), finite. Of a column no value changes by more than half its step, which is its
            largest value / 127.
    """
    matrix = matrix.float()
    step = (matrix.abs().amax(0, keepdim=True) / _MOST).clamp_min(torch.finfo(torch.float32).tiny)
    return {name: (matrix / step).round().clamp(-_MOST, _MOST).to(torch.int8), name + _STEP: step}


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with its packed matrices as float32. What is not packed as here stays as it is."""
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
