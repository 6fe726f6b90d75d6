"""The cost of a training step, measured by the real step on fake tensors, which hold shapes and no numbers.

Counted are the bytes of all tensors alive at once, and the operations of convolutions, matrix products and FFTs.
Not counted: a library's own workspace (cuDNN, oneDNN), the allocator's rounding, the CUDA context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels_bank.codec import KernelCodec
from pipeline.config import TrainConfig
from pipeline.model import BlindUSRNet
from pipeline.model_config import ModelConfig
from pipeline.training.objective import TrainingObjective
from pipeline.training.planning.bookkeeping import Bookkeeper


@dataclass(frozen=True)
class Cost:
    """Hold the cost of one training step at one patch size: forward, loss, backward, Adam, weight average."""

    parameters: int
    forward_flops: float  # of one sample; a multiply-add is two
    backward_flops: float  # of one sample, including recomputation by activation checkpointing
    fixed_bytes: float  # weights, gradients, Adam's two moments and the weight average, for any batch size
    sample_bytes: float  # peak memory per sample of the batch

    def peak_bytes(self, batch: int) -> float:
        """Return the peak memory of a step with `batch` samples."""
        return self.fixed_bytes + batch * self.sample_bytes

    def largest_batch(self, memory_bytes: float) -> int:
        """Return the largest batch size whose peak fits, 0 if none does."""
        return max(0, math.floor((memory_bytes - self.fixed_bytes) / self.sample_bytes))

    def samples_per_second(self, flops_per_second: float) -> float:
        """Return the throughput of a device that sustains this many operations per second on this network."""
        return flops_per_second / (self.forward_flops + self.backward_flops)


def training_cost(model: ModelConfig, train: TrainConfig, codec: KernelCodec, patch: int, scale: int) -> Cost:
    """Compute the cost of a training step.

    Args:
        model: the network, including whether activations are checkpointed.
        train: settings of the trained parts and the loss.
        codec: codec of the kernels; only its sizes matter.
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
    """Hold the counts of one step of a whole batch."""

    parameters: int
    forward_flops: float
    backward_flops: float
    peak_bytes: int  # most bytes alive at any moment


def fake_step(
    model: ModelConfig, train: TrainConfig, codec: KernelCodec, batch: int, patch: int, scale: int
) -> FakeStep:
    """Run one step on fake tensors and count.

    Args:
        model: the network.
        train: settings of the trained parts and the loss.
        codec: codec of the kernels; only its sizes matter.
        batch: samples of the step.
        patch: HR patch side in pixels, a multiple of `scale`.
        scale: one of `model.scales`.
    """
    with FakeTensorMode(), Bookkeeper() as books:
        network = BlindUSRNet(model, codec).train()
        task = TrainingObjective(network, train)
        parameters = list(network.parameters())
        # Adam's two moments of the trained weights, and the weight average; the backward pass adds the gradients.
        state = [torch.zeros_like(p) for p in parameters for _ in range(3 if p.requires_grad else 1)]
        lr, hr = torch.zeros(batch, 3, patch // scale, patch // scale), torch.zeros(batch, 3, patch, patch)
        kernel = torch.zeros(batch, codec.size, codec.size)
        books.peak = books.alive
        loss = task(lr, hr, kernel, torch.zeros(batch), scale)["loss"]
        forward = books.flops
        loss.backward()
        del state
        return FakeStep(sum(p.numel() for p in parameters), forward, books.flops - forward, books.peak)
