"""A model's largest matrix in 8 bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline.model import BlindUSRNet
from pipeline.model.weights import load_model, save_model
from pipeline.model_folder import read_manifest
from tools import pack_weights as tool


def test_the_copy_is_the_model_but_for_half_a_step_and_half_as_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shipped = load_model(Path(__file__).parents[3] / "pipeline/shipped/blind-sr")
    assert isinstance(shipped, BlindUSRNet)
    save_model(shipped, tmp_path / "model", {"made": "here"})
    for output in ("once", "twice"):  # what is packed already is the same to the bit
        source = "model" if output == "once" else "once"
        monkeypatch.setattr(
            sys, "argv", ["pack_weights", "--model", str(tmp_path / source), "--output", str(tmp_path / output)]
        )
        tool.main()
        made = load_model(tmp_path / output)
        for name, value in made.state_dict().items():
            before = shipped.state_dict()[name]
            if name == tool.MATRIX:
                step = before.abs().amax(0, keepdim=True) / 127
                assert ((value - before).abs() <= 0.501 * step).all()
            else:
                assert torch.equal(value, before)
        assert read_manifest(tmp_path / output).provenance == {
            "made": "here",
            "initial": "spectral.first.weight in 8 bit",
        }
    sizes = [(tmp_path / folder / "weights.safetensors").stat().st_size for folder in ("model", "once", "twice")]
    assert sizes[1] == sizes[2] < 0.7 * sizes[0]
