"""Bytes and operations of a computation without running it: on fake tensors, which hold shapes and no numbers.

Not counted: a library's own workspace (cuDNN, oneDNN), the allocator's rounding, the CUDA context.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary


class Bookkeeper(TorchDispatchMode):
    """Count live bytes and operations. The truth value of a fake number ("all finite?") is True."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.flops = 0.0
        self._known = WeakIdKeyDictionary()  # storages: views share theirs

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._born, out)
        operation = func.overloadpacket
        if operation in flop_registry:
            self.flops += flop_registry[operation](*args, **(kwargs or {}), out_val=out)
        elif operation in _TRANSFORMS:
            self.flops += _fft_flops(args[0].shape, out.shape, args[1])
        return out

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = True
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._died, storage.nbytes())

    def _died(self, size: int) -> None:
        self.alive -= size


_TRANSFORMS = {torch.ops.aten._fft_r2c, torch.ops.aten._fft_c2r, torch.ops.aten._fft_c2c}


def _fft_flops(before: Sequence[int], after: Sequence[int], dims: Sequence[int]) -> float:
    """5 n log2 n for each complex transform of n points, half of that for a real one: the usual count."""
    shapes = [math.prod(shape[d] for d in dims) for shape in (before, after)]
    points, images = max(shapes), math.prod(after) / shapes[1]
    return images * (5 if shapes[0] == shapes[1] else 2.5) * points * math.log2(max(points, 2))
