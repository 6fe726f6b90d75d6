"""Every shipped config is one that a run could start with, and says what its name says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from jobs.train import Train
from pipeline.cli import parse
from pipeline.inference import Restorer
from pipeline.quickstart import BANK

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
RUNS = sorted(path for path in CONFIGS.glob("*.yaml"))


def load(name: str) -> Train:
    return parse(Train, ["--config", str(CONFIGS / f"{name}.yaml")])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_loads_and_is_named_after_its_file(path):
    assert load(path.stem).name == path.stem


def test_the_seeds_experiments_are_all_there():
    expected = {"gaussian-x2", "gaussian-x4", "mixed-x2", "mixed-x3", "mixed-x4", "nonblind", "mixed-all-scales"}
    assert expected | {"quickstart", "tiny-x2-cpu"} <= {path.stem for path in RUNS}
    for name in expected - {"nonblind", "mixed-all-scales"}:
        config = load(name)
        kind, _, scale = name.partition("-x")
        assert config.model.scales == (int(scale),)
        assert config.data.kernel_source == ("online" if kind == "gaussian" else "bank")
        assert (config.model.unfoldings, config.model.widths) == (8, (64, 128, 256, 512))
        assert config.train.loss.code == 1.0
    assert load("nonblind").train.learn == "restorer"


def test_the_stages_of_the_shipped_model_follow_each_other():
    stages = [load(f"shipped-x2-{stage}") for stage in ("restorer", "denoise", "spectral")]
    for before, after in itertools.pairwise(stages):
        assert after.model == before.model
        assert after.data.shards == before.data.shards
        assert after.train.start_from == f"{before.output}/{before.name}/model"
        assert after.data.bank == before.data.bank or after.train.start_parts == "restorer"
    assert load("quickstart").model == stages[-1].model


def test_the_quickstart_starts_from_what_ships():
    config = load("quickstart")
    assert config.train.start_from == "shipped:blind-sr-x2"
    network = Restorer.load(config.train.start_from, device=torch.device("cpu")).network
    assert network.config == config.model
    assert network.kernel_size == BANK.size
