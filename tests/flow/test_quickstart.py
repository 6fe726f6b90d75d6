"""The whole way with a few training steps: every artefact is there, belongs together, and is found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kernels_bank import store
from pipeline import quickstart as whole_way
from pipeline.config import RunConfig
from pipeline.data import manifest as shards
from pipeline.images.decode import decode_image
from pipeline.registry import fetch, versions

pytestmark = pytest.mark.flow
CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


def load(name: str, output: Path) -> RunConfig:
    """A config of the quickstart, short."""
    content = yaml.safe_load((CONFIGS / name).read_text())
    content["output"] = str(output)
    content["data"] |= {"bank": str(output / "quickstart/bank"), "shards": str(output / "quickstart/shards")}
    content["train"] |= {"steps": 4, "batch_size": 8, "log_every": 2, "image_every": 2, "checkpoint_every": 2}
    return RunConfig.model_validate(content)


@pytest.mark.usefixtures("cluster")
def test_photographs_in_a_registered_model_out(tmp_path: Path, monkeypatch, capsys):
    config = load("quickstart.yaml", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that the run's own store is used, and the variable put back
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text("name: tiny\ncrop: 64\nsigmas: {2: [0.0]}\n")
    result = whole_way.quickstart(config, protocol)

    assert sum(record.rows for record in store.verify(config.data.bank)) == 2000
    assert shards.verify(config.data.shards).images == 4

    version = versions.find(result.model)
    assert version.number == result.version == 1
    assert version.aliases == ("candidate",)
    looked_up = load_file(fetch.download(result.model) / "weights.safetensors")
    trained = load_file(result.home / "model" / "weights.safetensors")
    assert looked_up.keys() == trained.keys()
    assert all(torch.equal(looked_up[name], trained[name]) for name in trained)
    bank, data = store.read_manifest(config.data.bank), shards.read_manifest(config.data.shards)
    assert (version.tags["bank"], version.tags["shards"]) == (bank.digest, data.digest)

    assert {name.rpartition(".")[2] for name in result.headline} >= {"bicubic", "blind", "nonblind"}
    assert version.metrics == pytest.approx(result.headline)
    rows = json.loads((result.home / "evaluation-v1" / "summary.json").read_text())["means"]
    assert {row["method"] for row in rows} == {"bicubic", "bicubic-unaligned", "blind", "nonblind"}
    lr, restored = (decode_image(p.read_bytes()) for p in (result.lr, result.restored / "chelsea-x2.png"))
    assert restored.shape == (2 * lr.shape[0], 2 * lr.shape[1], 3)

    api = versions.client(result.tracking_uri)
    run = api.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    (folder,) = (f.path for f in api.list_artifacts(version.run_id, "evaluation/tiny"))
    recorded = {f.path for f in api.list_artifacts(version.run_id, folder)}
    assert {f"{folder}/{name}" for name in ("summary.json", "samples.png", "results.parquet")} <= recorded
    assert api.list_artifacts(version.run_id, "images")

    # Again: all is found, nothing is made anew.
    capsys.readouterr()
    again = whole_way.quickstart(config, protocol)
    assert (again.version, again.headline) == (result.version, result.headline)
    shown = capsys.readouterr().out
    assert shown.count("reused") == 3
    assert "nothing was computed" in shown
    assert len(versions.list_versions("blind-sr-x2", result.tracking_uri)) == 1
