"""The optimizer step learns, stops before harm, and goes on bit-equal from a checkpoint."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelCodec, sample_gaussian
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import DataConfig, LossConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.data.feed import Batch
from pipeline.data.plan import Stage
from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet
from pipeline.model.weights import RAW, load_model
from pipeline.training import checkpoint
from pipeline.training.learner import Learner, learning_rate_factor, parameter_groups
from pipeline.training.objective import TrainingObjective, objective
from pipeline.training.step import NonFiniteLossError, train_step
from pipeline.training.validate import score_of, validate

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
    task = TrainingObjective(network, train)
    optimizer = torch.optim.Adam(parameter_groups(network, train))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 / (1 + done / 100))
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay))
    return Learner(task, network, ema, optimizer, schedule)


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
    ids = [id(p) for group in parameter_groups(network, TRAIN) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())


def test_a_non_finite_loss_stops_before_anything_moves(codec, batch):
    learner = make_learner(codec)
    before = weights(learner)
    bad = replace(batch, hr=batch.hr.clone().index_fill_(0, torch.tensor([2]), float("nan")))
    with pytest.raises(NonFiniteLossError, match=r"step 7: loss nan.* in worker 0 on samples a, b, c, d$"):
        train_step(learner, bad, TRAIN, 7)
    assert same(weights(learner), before)
    assert int(learner.ema.n_averaged) == 0


def test_weights_that_have_left_the_finite_stop_the_same_way(codec, batch):
    """A collapsed estimator's code is NaN: it must come through decoding and data steps to the one check."""
    learner = make_learner(codec)
    with torch.no_grad():
        next(learner.network.estimator.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="step 3: loss nan"):
        train_step(learner, batch, TRAIN, 3)


def test_a_checkpoint_continues_bit_equal(codec, batch, tmp_path: Path):
    undisturbed, first, second = make_learner(codec), make_learner(codec), make_learner(codec)
    for step in range(6):
        train_step(undisturbed, batch, TRAIN, step)
    for step in range(3):
        train_step(first, batch, TRAIN, step)
    state = checkpoint.State(step=3, stages=(Stage(workers=1, consumed=12),), score=1.5, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, first.network, first.ema, first.optimizer, first.schedule)
    assert checkpoint.load_state(tmp_path, DIGESTS) == state
    checkpoint.load_into(tmp_path, second.network, second.ema, second.optimizer, second.schedule)
    for step in range(3, 6):
        train_step(second, batch, TRAIN, step)
    assert same(weights(second), weights(undisturbed))
    assert same(second.ema.module.state_dict(), undisturbed.ema.module.state_dict())


def test_a_learning_rate_changed_between_two_sittings_counts(codec, batch, tmp_path: Path):
    before = make_learner(codec)
    for step in range(3):
        train_step(before, batch, TRAIN, step)
    state = checkpoint.State(step=3, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, before.network, before.ema, before.optimizer, before.schedule)
    after = make_learner(codec, TRAIN.model_copy(update={"learning_rate": 1e-4}))
    checkpoint.load_into(tmp_path, after.network, after.ema, after.optimizer, after.schedule)
    factor = 1 / (1 + 3 / 100)
    assert [group["lr"] for group in after.optimizer.param_groups] == pytest.approx([1e-4 * factor, 2e-3 * factor])
    train_step(after, batch, TRAIN, 4)
    assert after.schedule.get_last_lr() == pytest.approx([1e-4 / 1.04, 2e-3 / 1.04])


def test_a_checkpoint_keeps_its_code_and_refuses_kernels_of_another_size(codec, tmp_path: Path):
    learner = make_learner(codec)
    state = checkpoint.State(step=1, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    other = KernelCodec.fit(sample_gaussian(400, 11, rng=np.random.default_rng(9)), components=8)
    assert checkpoint.codec_of(tmp_path, other).digest == codec.digest != other.digest
    larger = KernelCodec.fit(sample_gaussian(400, 13, rng=np.random.default_rng(0)), components=8)
    with pytest.raises(ArtefactError, match="11 pixels wide, those of the bank 13"):
        checkpoint.codec_of(tmp_path, larger)


def test_the_exported_model_holds_the_averaged_weights(codec, batch, tmp_path: Path):
    learner = make_learner(codec)
    for step in range(3):
        train_step(learner, batch, TRAIN, step)
    (tmp_path / "c").mkdir()
    state = checkpoint.State(step=3, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path / "c", state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    checkpoint.export(tmp_path / "c", tmp_path / "model")
    exported = load_model(tmp_path / "model").state_dict()
    assert same(exported, learner.ema.module.state_dict())
    assert not same(exported, weights(learner))
    assert same(load_model(tmp_path / "model", RAW).state_dict(), weights(learner))
    assert RAW in json.loads((tmp_path / "model" / "model.json").read_text())["sha256"]


def test_other_data_than_the_checkpoint_was_made_from_is_refused(codec, tmp_path: Path):
    learner = make_learner(codec)
    state = checkpoint.State(step=1, stages=(), score=0.0, config=CONFIG, digests=DIGESTS)
    checkpoint.save(tmp_path, state, learner.network, learner.ema, learner.optimizer, learner.schedule)
    with pytest.raises(ArtefactError, match="another bank"):
        checkpoint.load_state(tmp_path, DIGESTS | {"bank": "3"})


def test_learning_rate_rises_linearly_then_falls():
    train = TrainConfig(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(done, train) for done in range(101)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert factors[10] == pytest.approx(1)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.05)


def test_halving_schedule():
    train = TrainConfig(steps=100, warmup_steps=2, schedule="halving", halve_at=(10, 20))
    factors = [learning_rate_factor(done, train) for done in (0, 1, 9, 10, 19, 20, 99)]
    assert factors == [0.5, 1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_gradients_of_parts_add_up_to_those_of_the_batch(codec, batch, micro_batch):
    """The same step, whole and in parts (also uneven ones), in float64: equal to rounding."""
    whole, parts = (make_learner(codec, TRAIN.model_copy(update={"clip_norm": 1e9})) for _ in range(2))
    double = replace(batch, **{name: getattr(batch, name).double() for name in ("lr", "hr", "kernel", "sigma")})
    for learner, size in ((whole, None), (parts, micro_batch)):
        learner.network.double()
        train = TRAIN.model_copy(update={"micro_batch": size, "clip_norm": 1e9})
        metrics = train_step(learner, double, train, 1)
        if size is None:
            expected = metrics
    for ours, theirs in zip(parts.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-10)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-9)


@pytest.mark.parametrize("learn", ["restorer", "kernel", "spectral"])
def test_only_what_is_learned_moves(codec, batch, learn):
    train = TRAIN.model_copy(update={"learn": learn})
    learner = make_learner(codec, train)
    before = weights(learner)
    for step in range(3):
        metrics = train_step(learner, batch, train, step)
    moved = {name.partition(".")[0] for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert moved == {"restorer": {"restorer"}, "kernel": {"estimator", "spectral"}, "spectral": {"spectral"}}[learn]
    assert ("psnr" in metrics) == (learn != "spectral")


def test_every_loss_term_is_its_definition(codec, batch):
    network = make_learner(codec).network
    out = network(batch.lr, 2, 0.0)
    loss = LossConfig(code=0.5, kernel=0.25, consistency=2.0, image_rounds="all")
    code = network.encode(batch.kernel)
    terms = objective(out, batch.lr, batch.hr, batch.kernel, code, 2, loss)
    by_hand = {
        "loss_image": torch.stack([(r.sr - batch.hr).abs().mean() for r in out.rounds]).mean(),
        "loss_code": torch.stack([(r.code - code).abs().mean() for r in out.rounds]).mean(),
        "loss_kernel": torch.stack([(r.kernel - batch.kernel).abs().sum((1, 2)).mean() for r in out.rounds]).mean(),
        "loss_consistency": (degrade(out.sr, out.kernel, 2) - batch.lr).abs().mean(),
    }
    for name, value in by_hand.items():
        torch.testing.assert_close(terms[name], value)
    weights = {"loss_image": 1.0, "loss_code": 0.5, "loss_kernel": 0.25, "loss_consistency": 2.0}
    torch.testing.assert_close(terms["loss"], sum(weights[n] * v for n, v in by_hand.items()))
    seed = objective(out, batch.lr, batch.hr, batch.kernel, code, 2, LossConfig(code=1.0))
    torch.testing.assert_close(seed["loss"], (out.sr - batch.hr).abs().mean() + by_hand["loss_code"])
    assert set(seed) == {"loss", "loss_image", "loss_code"}


def test_validation_is_the_mean_over_images_of_all_batches(codec, batch):
    network = make_learner(codec).network
    parts = [
        replace(batch, **{n: getattr(batch, n)[part] for n in ("lr", "hr", "kernel", "sigma")}, keys=batch.keys[part])
        for part in (slice(0, 3), slice(3, 4))
    ]
    found = validate(network, parts, TRAIN, torch.device("cpu"))
    with torch.no_grad():
        out = network.eval()(batch.lr, 2, batch.sigma)
    each = [-10 * ((sr.clamp(0, 1) - hr) ** 2).mean().log10() for sr, hr in zip(out.sr, batch.hr, strict=True)]
    assert found["val_psnr"] == pytest.approx(float(torch.stack(each).mean()), abs=1e-4)
    errors = (out.kernel - batch.kernel).abs().sum((1, 2))
    assert found["val_kernel_error"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert validate(network, [], TRAIN, torch.device("cpu")) == {}


@pytest.mark.parametrize("learn", ["all", "restorer", "kernel", "spectral"])
def test_the_best_checkpoint_is_chosen_by_what_the_stage_learns(codec, batch, learn):
    found = validate(
        make_learner(codec).network, [batch], TRAIN.model_copy(update={"learn": learn}), torch.device("cpu")
    )
    assert set(found) == {
        "restorer": {"val_psnr"},
        "spectral": {"val_kernel_error"},
    }.get(learn, {"val_psnr", "val_kernel_error"})
    assert score_of(found, 7) == found.get("val_psnr", -found.get("val_kernel_error", 0))
    assert score_of({}, 7) == 7.0
