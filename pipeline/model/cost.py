"""What a training step costs, told without running it: the real step on fake tensors, which hold shapes and no numbers.

Counted are the bytes of every tensor alive at once, and the operations of convolutions, matrix products and FFTs.
Not seen: a library's own workspace (cuDNN, oneDNN), the allocator's rounding, the CUDA context.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from kernels_bank.codec import KernelCodec
from pipeline.config import ModelConfig
from pipeline.model.blind import BlindUSRNet


@dataclass(frozen=True)
class Cost:
    """One training step of a network at one patch size: forward, L1, backward, Adam, weight average."""

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


def training_cost(config: ModelConfig, codec: KernelCodec, patch: int, scale: int) -> Cost:
    """The cost of training a network.

    Args:
        config: the network; it says whether activations are checkpointed.
        codec: of its kernels; only its sizes matter.
        patch: HR patch side in pixels, a multiple of `scale`.
        scale: one of `config.scales`.
    """
    small, large = (step_peak_bytes(config, codec, batch, patch, scale) for batch in (8, 16))
    sample = (large - small) / 8
    with FakeTensorMode():
        network = BlindUSRNet(config, codec).train()
        parameters = sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False, custom_mapping=_FFTS) as counter, _Bookkeeper():
            loss = _loss(network, 1, patch, scale)
            forward = counter.get_total_flops()
            loss.backward()
            backward = counter.get_total_flops() - forward
    return Cost(parameters, forward, backward, fixed_bytes=small - 8 * sample, sample_bytes=sample)


def step_peak_bytes(config: ModelConfig, codec: KernelCodec, batch: int, patch: int, scale: int) -> int:
    """Most bytes alive at any moment of a training step; arguments as of `training_cost`."""
    with FakeTensorMode(), _Bookkeeper() as books:
        network = BlindUSRNet(config, codec).train()
        # Adam's two moments and the weight average; the gradients come with the backward pass.
        state = [torch.zeros_like(p) for p in network.parameters() for _ in range(3)]
        books.peak = books.alive
        _loss(network, batch, patch, scale).backward()
        del state
        return books.peak


def _loss(network: BlindUSRNet, batch: int, patch: int, scale: int) -> Tensor:
    lr, hr = torch.zeros(batch, 3, patch // scale, patch // scale), torch.zeros(batch, 3, patch, patch)
    out = network(lr, scale, torch.zeros(batch))
    return F.l1_loss(out.sr, hr) + out.codes.abs().mean()


class _Bookkeeper(TorchDispatchMode):
    """Counts the bytes alive. Fake tensors hold no numbers: a question such as "all finite?" is answered with yes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = WeakIdKeyDictionary()  # storages: views share theirs

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._born, out)
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


def _fft_flops(shape: Sequence[int], dims: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    """2.5 n log2 n for a real transform of n points, the usual count."""
    pixels = max(math.prod(shape[d] for d in dims), math.prod(out_shape[d] for d in dims))
    return round(math.prod(out_shape) / math.prod(out_shape[d] for d in dims) * 2.5 * pixels * math.log2(pixels))


_FFTS = {torch.ops.aten._fft_r2c: _fft_flops, torch.ops.aten._fft_c2r: _fft_flops}
