"""torch.compile where it works, plain PyTorch with one warning where it does not."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor


@functools.cache
def compiler_works(device_type: str) -> bool:
    """Check whether torch.compile can build code for this kind of device, by a trial compilation once per process.

    CPU code needs a C++ compiler; CUDA code needs Triton and a C compiler. On a machine that lacks them, a run would
    otherwise fail with a traceback in the middle of the first training step.
    """
    try:
        torch.compile(_probe)(torch.ones(16, device=device_type))
    except Exception as error:  # inductor's, dynamo's and the compiler's own errors have no common class
        warnings.warn(
            f"torch.compile does not work for {device_type} here ({_first_line(error)}); "
            "model.restorer.compile_prior is ignored and the network runs uncompiled",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _probe(x: Tensor) -> Tensor:
    return x.sin() + 1


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
