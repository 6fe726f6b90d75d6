"""The optimizer step learns, stops before harm, and adds up parts of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.training.learner import WeightAverage
from pipeline.training.ledger import NonFiniteLossError
from pipeline.training.step import train_step
from tests.unit.training.small_learner import TRAIN, make_learner, same, weights


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


def test_the_weight_average_is_pytorchs(codec):
    """Bit by bit, over some steps; only where the count is kept differs."""
    network = make_learner(codec).network
    ours = WeightAverage(network, 0.9)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False)
    for step in range(4):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * step + torch.linspace(0, 1, parameter.numel()).reshape(parameter.shape))
        ours.update_parameters(network)
        theirs.update_parameters(network)
    assert same(ours.state_dict(), theirs.state_dict())
