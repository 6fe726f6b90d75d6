"""Each loss term is its definition, and only what is learned moves."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import LossConfig
from pipeline.degrade import degrade
from pipeline.training.objective import objective
from pipeline.training.step import train_step
from tests.unit.training.small_learner import TRAIN, make_learner, weights


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
    bare = objective(out, batch.lr, batch.hr, batch.kernel, code, 2, LossConfig(code=1.0, image_rounds="none"))
    assert set(bare) == {"loss", "loss_code"}
    torch.testing.assert_close(bare["loss"], by_hand["loss_code"])


@pytest.mark.parametrize("term", ["code", "kernel", "inverse"])
def test_of_the_initial_kernel_only_what_is_weighted_is_computed(codec, batch, term):
    loss = LossConfig(**{"code": 0.0, "kernel": 0.0, term: 0.5})
    learner = make_learner(codec, TRAIN.model_copy(update={"learn": "spectral", "loss": loss}))
    terms = learner.objective(batch.lr, batch.hr, batch.kernel, batch.sigma, 2)
    assert set(terms) == {"loss", f"loss_{term}"}
    torch.testing.assert_close(terms["loss"], 0.5 * terms[f"loss_{term}"])
