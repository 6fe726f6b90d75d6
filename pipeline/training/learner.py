"""The network with everything needed to train it, the same on every rank before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from kernels_bank import KernelCodec
from pipeline.config import RunConfig, TrainConfig
from pipeline.model import BlindUSRNet
from pipeline.seeds import torch_seed
from pipeline.training.objective import TrainingObjective, learns


@dataclass(frozen=True)
class Learner:
    """Hold all that a step changes. `objective` is wrapped if several workers train."""

    objective: nn.Module  # TrainingObjective(network)
    network: BlindUSRNet
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR

    @property
    def learning_rate(self) -> float:
        """Return the restorer's learning rate; if the restorer is frozen, that of the trained part."""
        return float(self.schedule.get_last_lr()[0])


class WeightAverage(AveragedModel):
    """Average the weights exponentially, without waiting for their device.

    The result is that of `AveragedModel` with `get_ema_multi_avg_fn`, which copies its count to the device at every
    step and so waits for all queued work. Here the count stays on the CPU.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self._decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the averages towards the weights of `model`; the first call copies the weights."""
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(model.parameters())
        if int(self.n_averaged) == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        self.n_averaged += 1


def build_learner(
    config: RunConfig,
    codec: KernelCodec,
    device: torch.device,
    wrap: Callable[[nn.Module], nn.Module] = lambda objective: objective,
) -> Learner:
    """Build network, objective, average, optimizer and schedule.

    Args:
        config: configuration of the run.
        codec: the kernel code.
        device: device to train on.
        wrap: function that makes the objective sum gradients over ranks if there are several.
    """
    train = config.train
    network = build_network(config, codec).to(device)
    objective = TrainingObjective(network, train)
    fused = device.type in {"cpu", "cuda"}
    optimizer = torch.optim.Adam(parameter_groups(network, train), fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate_factor(done, train))
    return Learner(wrap(objective), network, WeightAverage(network, train.ema_decay), optimizer, schedule)


def build_network(config: RunConfig, codec: KernelCodec) -> BlindUSRNet:
    """Build the untrained network, a function of the config and the codec."""
    torch.manual_seed(torch_seed(config.seed, epoch=0, key="model", purpose="init"))
    # Convolutions read and write channels-last tensors without reordering, which saves 10% of a step on a CPU.
    return BlindUSRNet(config.model, codec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def parameter_groups(network: BlindUSRNet, train: TrainConfig) -> list[dict]:
    """Split the trained parameters in two groups, restorer and kernel estimation; empty groups are left out."""
    named = [(name, p) for name, p in network.named_parameters() if learns(train.learn, name)]
    groups = [
        {"params": [p for name, p in named if name.startswith("restorer.")], "lr": train.learning_rate},
        {"params": [p for name, p in named if not name.startswith("restorer.")], "lr": train.kernel_learning_rate},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(done: int, train: TrainConfig) -> float:
    """Compute the factor: linear warm-up, then half a cosine down to a twentieth, or halvings."""
    if done < train.warmup_steps:
        return (done + 1) / train.warmup_steps
    if train.schedule == "halving":
        return 0.5 ** sum(done >= step for step in train.halve_at)
    progress = (done - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
