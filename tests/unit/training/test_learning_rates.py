"""Learning rates rise, fall, and cover every parameter once."""

from __future__ import annotations

import itertools

import pytest

from pipeline.config import TrainConfig
from pipeline.training.learner import learning_rate_factor, parameter_groups
from tests.unit.training.small_learner import TRAIN, make_learner


def test_the_two_learning_rates_cover_every_parameter_once(codec):
    network = make_learner(codec).network
    ids = [id(p) for group in parameter_groups(network, TRAIN) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())


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
