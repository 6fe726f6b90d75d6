"""The network with all that trains it, the same on every rank before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelBank, KernelCodec
from kernels_bank.runtime.errors import BadRequestError
from pipeline.catalogue import locate, open_network
from pipeline.config import RunConfig, TrainConfig
from pipeline.model import BlindUSRNet
from pipeline.seeds import torch_seed
from pipeline.training.objective import TrainingObjective, learns


@dataclass(frozen=True)
class Learner:
    """Hold all that a step changes. `objective` is wrapped where several workers train."""

    objective: nn.Module  # TrainingObjective(network)
    network: BlindUSRNet
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR


class InitialWeights(NamedTuple):
    """Hold what a new run starts from."""

    codec: KernelCodec
    # Of the parts that are not drawn anew: empty from scratch, None where the run resumes from a checkpoint.
    tensors: dict[str, Tensor] | None


def build_learner(config: RunConfig, codec: KernelCodec, device: torch.device) -> Learner:
    """Build network, objective, EMA, optimizer and schedule; the objective is wrapped where there are ranks."""
    train = config.train
    network = build_network(config, codec).to(device)
    task = TrainingObjective(network, train)
    fused = device.type in {"cpu", "cuda"}
    optimizer = torch.optim.Adam(parameter_groups(network, train), fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate_factor(done, train))
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay), use_buffers=False)
    alone = ray.train.get_context().get_world_size() == 1
    return Learner(task if alone else ray.train.torch.prepare_model(task), network, ema, optimizer, schedule)


def build_network(config: RunConfig, codec: KernelCodec) -> BlindUSRNet:
    """Build the untrained network: a function of the config and the codec."""
    torch.manual_seed(torch_seed(config.seed, epoch=0, key="model", purpose="init"))
    # Convolutions read and write channels last without reordering (measured on CPU: 10% of a step).
    return BlindUSRNet(config.model, codec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def parameter_groups(network: BlindUSRNet, train: TrainConfig) -> list[dict]:
    """Split what is trained in two groups: the restorer, and what estimates the kernel; empty groups are left out."""
    named = [(name, p) for name, p in network.named_parameters() if learns(train.learn, name)]
    groups = [
        {"params": [p for name, p in named if name.startswith("restorer.")], "lr": train.learning_rate},
        {"params": [p for name, p in named if not name.startswith("restorer.")], "lr": train.kernel_learning_rate},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(done: int, train: TrainConfig) -> float:
    """Compute a linear warm-up, then half a cosine down to a twentieth, or halvings."""
    if done < train.warmup_steps:
        return (done + 1) / train.warmup_steps
    if train.schedule == "halving":
        return 0.5 ** sum(done >= step for step in train.halve_at)
    progress = (done - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def starting_point(config: RunConfig) -> InitialWeights:
    """Load the kernel code and the weights that a new run starts from, checked against its network.

    A published USRNet gives the restorer, a blind model the parts that `start_parts` names. Taken whole it keeps its
    own kernel code, whatever bank it now learns from: its code is what its weights speak. Else the bank's is used.

    Raises:
        BadRequestError: no such model, kernels of another size, or tensors that do not fit.
    """
    bank, train = KernelBank.open(config.data.bank), config.train
    if train.start_from is None:
        return InitialWeights(bank.codec, {})
    found = open_network(locate(train.start_from))[0]
    if found.config.global_skip != config.model.global_skip:
        # The tensors would fit, and mean another function.
        how = "with" if found.config.global_skip else "without"
        raise BadRequestError(
            f"train.start_from {train.start_from}: its prior was trained {how} a global skip; "
            f"set model.global_skip to {str(found.config.global_skip).lower()}"
        )
    whole = found if isinstance(found, BlindUSRNet) and train.start_parts == "all" else None
    if whole is not None:
        codec, tensors = whole.codec, dict(whole.state_dict())
        if codec.size != bank.spec.size:
            raise BadRequestError(
                f"train.start_from {train.start_from}: its kernels are {codec.size} pixels wide, those of "
                f"{config.data.bank} {bank.spec.size}; train.start_parts restorer takes the restorer alone"
            )
    else:
        restorer = found.restorer if isinstance(found, BlindUSRNet) else found
        codec = bank.codec
        tensors = {f"restorer.{name}": value for name, value in restorer.state_dict().items()}
    own = build_network(config, codec).state_dict()
    wrong = [name for name, value in tensors.items() if name not in own or own[name].shape != value.shape]
    if whole is not None:
        wrong += own.keys() - tensors.keys()
    if wrong:
        raise BadRequestError(
            f"train.start_from {train.start_from}: does not fit the network of this config: "
            f"{', '.join(sorted(wrong)[:8])}" + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )
    return InitialWeights(codec, tensors)
