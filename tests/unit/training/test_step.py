"""The optimizer step learns, stops before harm, and goes on bit-equal from a checkpoint."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.data.feed import Batch
from pipeline.data.plan import Stage
from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet
from pipeline.model.weights import load_model
from pipeline.training import checkpoint
from pipeline.training.loop import kernel_parameters, learning_rate_factor
from pipeline.training.step import Learner, NonFiniteLossError, train_step

TRAIN = TrainConfig(steps=30, batch_size=4, learning_rate=2e-3, kernel_learning_rate=2e-3, ema_decay=0.9)
MODEL = ModelConfig(unfoldings=3, rounds=2, widths=(8, 8, 16, 16), residual_blocks=1, global_skip=True)
CONFIG = RunConfig(name="t", model=MODEL, data=DataConfig(shards="s", bank="b", patch=48), train=TRAIN)
DIGESTS = {"shards": "1", "bank": "2"}


@pytest.fixture(scope="session")
def codec() -> KernelCodec:
    return KernelCodec.fit(sample_gaussian(400, 11, rng=np.random.default_rng(0)), components=8)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    # Smooth random images: white noise cannot be restored from its blurred version.
    hr = torch.nn.functional.interpolate(torch.rand(4, 3, 12, 12, generator=generator), 48, mode="bicubic").clamp(0, 1)
    kernel = torch.from_numpy(sample_gaussian(4, 11, rng=np.random.default_rng(1)))
    return Batch(
        lr=degrade(hr, kernel, 2), hr=hr, kernel=kernel, sigma=torch.zeros(4), scale=2, keys=tuple("abcd"), replaced=0
    )


def make_learner(codec: KernelCodec, train: TrainConfig = TRAIN) -> Learner:
    torch.manual_seed(0)
    network = BlindUSRNet(MODEL, codec)
    groups = [
        {"params": list(network.restorer.parameters()), "lr": train.learning_rate},
        {"params": kernel_parameters(network), "lr": train.kernel_learning_rate},
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done / 100))
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay))
    return Learner(network, network, ema, optimizer, schedule)


def weights(learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.network.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_thirty_steps_on_one_batch_halve_the_loss(codec, batch):
    learner = make_learner(codec)
    losses = [train_step(learner, batch, TRAIN, step)["loss"] for step in range(30)]
    assert losses[-1] < losses[0] / 2


def test_every_parameter_learns_something(codec, batch):
    learner = make_learner(codec)
    before = weights(learner)
    for step in range(3):
        train_step(learner, batch, TRAIN, step)
    still = [name for name, value in weights(learner).items() if torch.equal(value, before[name])]
    assert still == []


def test_the_two_learning_rates_cover_every_parameter_once(codec):
    network = make_learner(codec).network
    ids = [id(p) for p in (*network.restorer.parameters(), *kernel_parameters(network))]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())


def test_a_non_finite_loss_stops_before_anything_moves(codec, batch):
    learner = make_learner(codec)
    before = weights(learner)
    bad = replace(batch, hr=batch.hr.clone().index_fill_(0, torch.tensor([2]), float("nan")))
    with pytest.raises(NonFiniteLossError, match=r"step 7: loss nan.* a, b, c, d"):
        train_step(learner, bad, TRAIN, 7)
    assert same(weights(learner), before)
    assert int(learner.ema.n_averaged) == 0


def test_a_checkpoint_continues_bit_equal(codec, batch, tmp_path: Path):
    undisturbed, first, second = make_learner(codec), make_learner(codec), make_learner(codec)
    for step in range(6):
        train_step(undisturbed, batch, TRAIN, step)
    for step in range(3):
        train_step(first, batch, TRAIN, step)
    state = checkpoint.State(step=3, stages=(Stage(workers=1, consumed=12),), config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, first.network, first.ema, first.optimizer, first.schedule)
    assert checkpoint.load_state(tmp_path, DIGESTS) == state
    checkpoint.restore(tmp_path, second.network, second.ema, second.optimizer, second.schedule)
    for step in range(3, 6):
        train_step(second, batch, TRAIN, step)
    assert same(weights(second), weights(undisturbed))
    assert same(second.ema.module.state_dict(), undisturbed.ema.module.state_dict())


def test_the_exported_model_holds_the_averaged_weights(codec, batch, tmp_path: Path):
    learner = make_learner(codec)
    for step in range(3):
        train_step(learner, batch, TRAIN, step)
    (tmp_path / "c").mkdir()
    state = checkpoint.State(step=3, stages=(), config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path / "c", state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    checkpoint.export(tmp_path / "c", tmp_path / "model")
    exported = load_model(tmp_path / "model").state_dict()
    assert same(exported, learner.ema.module.state_dict())
    assert not same(exported, weights(learner))


def test_other_data_than_the_checkpoint_was_made_from_is_refused(codec, tmp_path: Path):
    learner = make_learner(codec)
    state = checkpoint.State(step=1, stages=(), config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    with pytest.raises(ArtefactError, match="another bank"):
        checkpoint.load_state(tmp_path, DIGESTS | {"bank": "3"})


def test_learning_rate_rises_linearly_then_falls():
    factors = [learning_rate_factor(done, 10, 100) for done in range(101)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert factors[10] == pytest.approx(1)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.05)
