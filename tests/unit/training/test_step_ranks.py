"""Two ranks, one of which has a broken batch: both stop, before anything moves, and name that batch."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.config import TrainConfig
from pipeline.data.batch import Batch
from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.training.learner import Learner, parameter_groups
from pipeline.training.ledger import NonFiniteLossError
from pipeline.training.objective import TrainingObjective
from pipeline.training.step import train_step

TRAIN = TrainConfig(steps=4, batch_size=4)
MODEL = ModelConfig(
    restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, global_skip=True),
    kernel=KernelConfig(rounds=1),
)


def batch_of(rank: int) -> Batch:
    hr = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    kernel = torch.from_numpy(sample_gaussian(2, 11, rng=np.random.default_rng(rank)))
    keys = (f"r{rank}-a", f"r{rank}-b")
    return Batch(lr=degrade(hr, kernel, 2), hr=hr, kernel=kernel, sigma=torch.zeros(2), scale=2, keys=keys, replaced=0)


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        codec = KernelCodec.fit(sample_gaussian(60, 11, rng=np.random.default_rng(0)), components=4)
        torch.manual_seed(0)
        network = BlindUSRNet(MODEL, codec)
        task = DistributedDataParallel(TrainingObjective(network, TRAIN))
        optimizer = torch.optim.Adam(parameter_groups(network, TRAIN))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0)
        ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        learner = Learner(task, network, ema, optimizer, schedule)
        train_step(learner, batch_of(rank), TRAIN, 1)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        batch = batch_of(rank)
        if rank == 1:
            batch = replace(batch, hr=torch.full_like(batch.hr, float("nan")))
        with pytest.raises(NonFiniteLossError) as caught:
            train_step(learner, batch, TRAIN, 2)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert int(ema.n_averaged) == 1
        Path(folder, f"{rank}.txt").write_text(str(caught.value))
    except BaseException:
        Path(folder, f"{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def test_one_bad_rank_stops_both_and_is_named(tmp_path: Path):
    torch.multiprocessing.spawn(rank_main, args=(str(tmp_path),), nprocs=2)
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("step 2: loss nan, gradient norm ")
    assert messages[0].endswith(" in worker 1 on samples r1-a, r1-b")
