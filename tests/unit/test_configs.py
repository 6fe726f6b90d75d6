"""Every shipped config is one that a run could start with, and says what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.train import Train
from pipeline.cli import parse

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


def test_the_stages_of_the_quickstart_have_one_network_and_one_data_set():
    first, second = load("quickstart-spectral"), load("quickstart")
    assert first.model == second.model
    assert (first.data.bank, first.data.shards) == (second.data.bank, second.data.shards)
    assert second.train.start_from == f"{first.output}/{first.name}/model"
