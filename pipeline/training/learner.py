"""The network with all that trains it, the same on every rank before the first step."""

from __future__ import annotations

import math

import ray.train
import ray.train.torch
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelBank, KernelCodec
from kernels_bank.runtime.errors import BadRequestError
from pipeline.config import RunConfig, TrainConfig
from pipeline.inference import Restorer
from pipeline.model import BlindUSRNet
from pipeline.seeds import torch_seed
from pipeline.training.objective import Task, learns
from pipeline.training.step import Learner


def build_learner(config: RunConfig, device: torch.device) -> Learner:
    """Network, task, EMA, optimizer and schedule; the task is wrapped for data-parallel training if there are ranks."""
    train = config.train
    network = build_network(config, KernelBank.open(config.data.bank).codec).to(device)
    task = Task(network, train)
    fused = device.type in {"cpu", "cuda"}
    optimizer = torch.optim.Adam(parameter_groups(network, train), fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate_factor(done, train))
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay), use_buffers=False)
    alone = ray.train.get_context().get_world_size() == 1
    return Learner(task if alone else ray.train.torch.prepare_model(task), network, ema, optimizer, schedule)


def build_network(config: RunConfig, codec: KernelCodec) -> BlindUSRNet:
    """The untrained network: a function of the config and the codec."""
    torch.manual_seed(torch_seed(config.seed, epoch=0, key="model", purpose="init"))
    # Convolutions read and write channels last without reordering (measured on CPU: 10% of a step).
    return BlindUSRNet(config.model, codec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def parameter_groups(network: BlindUSRNet, train: TrainConfig) -> list[dict]:
    """What is trained, in two groups: the restorer, and what estimates the kernel; empty groups are left out."""
    named = [(name, p) for name, p in network.named_parameters() if learns(train.learn, name)]
    groups = [
        {"params": [p for name, p in named if name.startswith("restorer.")], "lr": train.learning_rate},
        {"params": [p for name, p in named if not name.startswith("restorer.")], "lr": train.kernel_learning_rate},
    ]
    return [group for group in groups if group["params"]]


def learning_rate_factor(done: int, train: TrainConfig) -> float:
    """Linear warm-up; then half a cosine down to a twentieth, or halvings."""
    if done < train.warmup_steps:
        return (done + 1) / train.warmup_steps
    if train.schedule == "halving":
        return 0.5 ** sum(done >= step for step in train.halve_at)
    progress = (done - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def starting_tensors(config: RunConfig, codec: KernelCodec) -> dict[str, Tensor] | None:
    """The weights a new run starts from, checked against its network.

    A blind model gives the parts that `start_parts` names, a published USRNet the restorer.

    Raises:
        BadRequestError: no such model, another kernel code, or tensors that do not fit.
    """
    uri = config.train.start_from
    if uri is None:
        return None
    found = Restorer.load(uri, device=torch.device("cpu")).network
    whole = isinstance(found, BlindUSRNet) and config.train.start_parts == "all"
    if isinstance(found, BlindUSRNet) and not whole:
        found = found.restorer
    if isinstance(found, BlindUSRNet):
        if found.codec.digest != codec.digest:
            raise BadRequestError(
                f"train.start_from {uri}: its kernel code is of another bank than {config.data.bank}; "
                "train.start_parts restorer takes the restorer alone"
            )
        tensors = dict(found.state_dict())
    else:
        tensors = {f"restorer.{name}": value for name, value in found.state_dict().items()}
    own = build_network(config, codec).state_dict()
    wrong = [name for name, value in tensors.items() if name not in own or own[name].shape != value.shape] + [
        name for name in own if whole and name not in tensors
    ]
    if wrong:
        raise BadRequestError(
            f"train.start_from {uri}: does not fit the network of this config: {', '.join(sorted(wrong)[:8])}"
            + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )
    return tensors
