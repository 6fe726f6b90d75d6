"""The fit of the initial kernel on stored features: same samples each time, and it learns what it is to answer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from kernels_bank.runtime.progress import Progress
from pipeline.config import RunConfig
from pipeline.model import BlindUSRNet
from pipeline.model.weights import load_model, save_model
from pipeline.model_folder import read_manifest
from tools import fit_initial_kernel as tool

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("cluster")]


@pytest.fixture
def file(bank: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tool, "PART", 60)
    settings = {
        "name": "fit",
        "model": {
            "scales": [2, 3],
            "restorer": {"unfoldings": 2, "widths": [4, 4, 4, 4], "residual_blocks": 1},
            "kernel": {"reductions": True, "rounds": 0},
        },
        "data": {
            "shards": shards,
            "bank": bank,
            "patch": 96,
            "camera": {"reductions": {"direct": 0.5, "area": 0.5}, "centred": 0.0, "jpeg": 0.3},
        },
        "train": {
            "steps": 240,
            "learn": "spectral",
            "smallest_window": 24,
            "batch_size": 32,
            "warmup_steps": 30,
            "ema_decay": 0.9,
            "kernel_learning_rate": 2.0e-3,
            "loss": {"code": 0.0, "kernel": 0.05, "inverse": 0.25},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_part_is_a_function_of_its_number(file, tmp_path):
    config = RunConfig.model_validate(yaml.safe_load(file.read_text()))
    with Progress("features", total=180, unit="sample") as bar:
        for name, number in (("a", 0), ("b", 0), ("c", 1)):
            tool.write_part(config, tmp_path / f"{name}.npz", number, bar)
    one, again, other = (tool.read_part(tmp_path / f"{name}.npz") for name in "abc")
    for first, second in zip(one, again, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one.features, other.features)
    assert len(one.scale) == 120
    assert set(one.scale.tolist()) == {2, 3}
    assert (one.side[1::2] <= one.side[::2]).all()
    assert one.side.min() >= 24
    assert set(one.reduction.tolist()) == {0, 1}


def test_it_learns_and_goes_on_with_the_parts_that_are_there(file, tmp_path, monkeypatch):
    output, features = tmp_path / "model", tmp_path / "features"
    arguments = ["fit", "--config", str(file), "--features", str(features), "--parts", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    threads = torch.get_num_threads()
    tool.main()
    written = {part: part.stat().st_mtime_ns for part in features.iterdir()}
    assert len(written) == 2
    fitted = load_model(output)
    assert isinstance(fitted, BlindUSRNet)
    seen = tool.read_part(features / "part-000.npz")
    rows = seen.scale == 2
    code = fitted.encode(seen.blur[rows])
    with torch.no_grad():
        answer = fitted.spectral.answer(seen.features[rows].float(), 2, seen.sigma[rows], seen.side[rows])
    assert float((answer.start - code).abs().mean()) < 0.8 * float(code.abs().mean())  # 0 is the untrained answer
    monkeypatch.setattr(tool, "write_part", lambda *_: pytest.fail("drawn again"))
    tool.main()
    assert {part: part.stat().st_mtime_ns for part in features.iterdir()} == written
    for name, value in load_model(output).state_dict().items():
        assert torch.equal(value, fitted.state_dict()[name]), name
    other, copy = tmp_path / "other", tmp_path / "copy"
    with torch.no_grad():
        for parameter in fitted.parameters():
            parameter += 1
    save_model(fitted, other, provenance={"restorer": "theirs"})
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], str(copy), "--into", str(other)])
    tool.main()
    kept, found = fitted.state_dict(), load_model(output).state_dict()
    for name, value in load_model(copy).state_dict().items():
        assert torch.equal(value, found[name] if name.startswith("spectral.") else kept[name]), name
    assert read_manifest(copy).provenance.keys() > {"restorer", "initial_kernel.bank"}
    torch.set_num_threads(threads)


def test_a_net_for_other_codes_is_refused_before_any_work(file, tmp_path, monkeypatch, capsys):
    into = "shipped:blind-sr-camera"
    arguments = ["--config", str(file), "--features", str(tmp_path / "f"), "--output", str(tmp_path), "--into", into]
    monkeypatch.setattr(sys, "argv", ["fit", *arguments])
    with pytest.raises(SystemExit, match="2"):
        tool.main()
    assert f"--into {into}: its kernel code is not that of" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
