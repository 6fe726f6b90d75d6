"""What a training step costs, told without running it: the real step on fake tensors, which hold shapes and no numbers.

Counted are the bytes of every tensor alive at once, and the operations of convolutions, matrix products and FFTs.
Not seen: a library's own workspace (cuDNN, oneDNN), the allocator's rounding, the CUDA context.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from kernels_bank.codec import KernelCodec
from pipeline.config import ModelConfig, TrainConfig
from pipeline.model import BlindUSRNet
from pipeline.training.objective import Task


@dataclass(frozen=True)
class Cost:
    """One training step at one patch size: forward, loss, backward, Adam, weight average."""

    parameters: int
    forward_flops: float  # of one sample; a multiply-add is two
    backward_flops: float  # of one sample, what checkpointing computes again included
    fixed_bytes: float  # weights, gradients, Adam's two moments and the weight average: whatever the batch
    sample_bytes: float  # what each sample of the batch adds to the peak

    def peak_bytes(self, batch: int) -> float:
        """Peak memory of a step with `batch` samples."""
        return self.fixed_bytes + batch * self.sample_bytes

    def largest_batch(self, memory_bytes: float) -> int:
        """The largest batch whose peak fits, 0 if none does."""
        return max(0, math.floor((memory_bytes - self.fixed_bytes) / self.sample_bytes))

    def samples_per_second(self, flops_per_second: float) -> float:
        """Training throughput of a device that sustains this many operations a second on this network."""
        return flops_per_second / (self.forward_flops + self.backward_flops)


def training_cost(model: ModelConfig, train: TrainConfig, codec: KernelCodec, patch: int, scale: int) -> Cost:
    """The cost of a training step.

    Args:
        model: the network; it says whether activations are checkpointed.
        train: says what is learned, and by which loss.
        codec: of the kernels; only its sizes matter.
        patch: HR patch side in pixels, a multiple of `scale`.
        scale: one of `model.scales`.
    """
    small, large = (fake_step(model, train, codec, batch, patch, scale) for batch in (8, 16))
    sample = (large.peak_bytes - small.peak_bytes) / 8
    return Cost(
        parameters=small.parameters,
        forward_flops=small.forward_flops / 8,
        backward_flops=small.backward_flops / 8,
        fixed_bytes=small.peak_bytes - 8 * sample,
        sample_bytes=sample,
    )


@dataclass(frozen=True)
class FakeStep:
    """What was counted in one step of a whole batch."""

    parameters: int
    forward_flops: float
    backward_flops: float
    peak_bytes: int  # most bytes alive at any moment


def fake_step(
    model: ModelConfig, train: TrainConfig, codec: KernelCodec, batch: int, patch: int, scale: int
) -> FakeStep:
    """One step of `batch` samples on fake tensors; the other arguments as of `training_cost`."""
    with FakeTensorMode(), _Bookkeeper() as books:
        network = BlindUSRNet(model, codec).train()
        task = Task(network, train)
        parameters = list(network.parameters())
        # Adam's two moments of what is trained, and the weight average; the gradients come with the backward pass.
        state = [torch.zeros_like(p) for p in parameters for _ in range(3 if p.requires_grad else 1)]
        lr, hr = torch.zeros(batch, 3, patch // scale, patch // scale), torch.zeros(batch, 3, patch, patch)
        kernel = torch.zeros(batch, codec.size, codec.size)
        books.peak = books.alive
        loss = task(lr, hr, kernel, torch.zeros(batch), scale)["loss"]
        forward = books.flops
        loss.backward()
        del state
        return FakeStep(sum(p.numel() for p in parameters), forward, books.flops - forward, books.peak)


class _Bookkeeper(TorchDispatchMode):
    """Counts bytes alive and operations. A fake number, asked for its value ("all finite?"), answers yes."""

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
