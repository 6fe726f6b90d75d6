"""A learner of a small network, for tests of steps, checkpoints and validation."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelCodec
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.model import BlindUSRNet
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.training.learner import Learner, parameter_groups
from pipeline.training.objective import TrainingObjective

TRAIN = TrainConfig(steps=30, batch_size=4, learning_rate=2e-3, kernel_learning_rate=2e-3, ema_decay=0.9)
MODEL = ModelConfig(
    restorer=RestorerConfig(unfoldings=3, widths=(8, 8, 16, 16), residual_blocks=1, global_skip=True),
    kernel=KernelConfig(rounds=2),
)
CONFIG = RunConfig(name="t", model=MODEL, data=DataConfig(shards="s", bank="b", patch=48), train=TRAIN)
DIGESTS = {"shards": "1", "bank": "2"}


def make_learner(codec: KernelCodec, train: TrainConfig = TRAIN) -> Learner:
    torch.manual_seed(0)
    network = BlindUSRNet(MODEL, codec)
    task = TrainingObjective(network, train)
    optimizer = torch.optim.Adam(parameter_groups(network, train))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done / 100))
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay))
    return Learner(task, network, ema, optimizer, schedule)


def weights(learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.network.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
