"""Every shipped config is one that a run could start with, and says what its name says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from jobs.train import Train
from pipeline.cli import parse
from pipeline.inference import Restorer
from pipeline.model_config import ModelConfig
from pipeline.quickstart import BANK
from tools.write_schema import SCHEMA, schema_text

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
RUNS = sorted(path for path in CONFIGS.glob("*.yaml"))


def load(name: str) -> Train:
    return parse(Train, ["--config", str(CONFIGS / f"{name}.yaml")])


def test_the_schema_for_editors_is_current_and_every_config_fits_it():
    assert SCHEMA.read_text() == schema_text(), "run: python tools/write_schema.py"
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    for path in RUNS:
        assert path.read_text().startswith("# yaml-language-server: $schema=run.schema.json\n"), path.name
        assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == [], path.name
    misspelt = {"name": "a", "data": {"shards": "s", "bank": "b"}, "train": {"stepz": 3}}
    assert "stepz" in " ".join(error.message for error in validator.iter_errors(misspelt))


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
        assert (config.model.restorer.unfoldings, config.model.restorer.widths) == (8, (64, 128, 256, 512))
        assert config.train.loss.code == 1.0
    assert load("nonblind").train.learn == "restorer"


@pytest.mark.parametrize(
    ("name", "stages"),
    [("shipped-x2", ("restorer", "denoise", "spectral")), ("shipped-all", ("restorer", "spectral"))],
)
def test_the_stages_of_a_shipped_model_follow_each_other(name, stages):
    configs = [load(f"{name}-{stage}") for stage in stages]
    for before, after in itertools.pairwise(configs):
        assert after.model == before.model
        assert after.data.shards == before.data.shards
        assert after.train.start_from == f"{before.output}/{before.name}/model"
        assert after.data.bank == before.data.bank or after.train.start_parts == "restorer"


@pytest.mark.parametrize(("kind", "scales"), [("gaussian", (2, 4)), ("mixed", (2, 3, 4))])
def test_the_articles_experiments_at_tiny_width_go_on_from_one_stage(kind, scales):
    first = load(f"article-{kind}-codes")
    assert first.model.scales == scales
    assert (first.train.learn, first.train.loss.image_rounds, first.train.loss.code) == ("kernel", "none", 1.0)
    for scale in scales:
        config, full = load(f"article-{kind}-x{scale}"), load(f"{kind}-x{scale}")
        assert config.model.scales == (scale,)
        assert config.model.kernel == full.model.kernel
        assert config.model.restorer == first.model.restorer
        assert (config.data.bank, config.data.kernel_source) == (first.data.bank, full.data.kernel_source)
        assert (config.train.learn, config.train.loss.code) == ("all", 1.0)
        assert config.train.start_from == f"{first.output}/{first.name}/model"


def without_prior(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"kernel": config.kernel.model_copy(update={"prior": False})})


@pytest.mark.parametrize(
    ("model", "last"),
    [
        ("blind-sr-x2", "shipped-x2-spectral"),
        ("blind-sr", "shipped-all-spectral"),
        ("blind-sr-camera", "shipped-camera-spectral"),
    ],
)
def test_what_ships_is_what_its_last_stage_trains(model, last):
    """But for the kernel prior, which tools/fit_kernel_prior.py adds to all of them."""
    shipped = Restorer.load(f"shipped:{model}", device=torch.device("cpu")).network.config
    assert shipped.kernel.prior
    assert without_prior(shipped) == load(last).model


def test_the_quickstart_starts_from_what_ships():
    config = load("quickstart")
    assert config.train.start_from == "shipped:blind-sr-x2"
    network = Restorer.load(config.train.start_from, device=torch.device("cpu")).network
    assert network.config == config.model
    assert without_prior(config.model) == load("shipped-x2-spectral").model
    assert network.kernel_size == BANK.size
