"""Blends of restorers: sums of weights, in a copy that is otherwise the first model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.model.weights import load_model
from pipeline.model_folder import read_manifest
from tools import blend_restorers as tool

SHIPPED = Path(__file__).parents[3] / "pipeline/shipped"


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["blend_restorers", *arguments, "--output", str(output)])
    tool.main()


def test_a_blend_is_the_sum_of_the_shares():
    one, other = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    torch.testing.assert_close(tool.blend([one, other], [0.75, 0.25])["w"], torch.tensor([1.5, 1.0]))
    assert tool.blend([one, other], [1, 0])["w"].equal(one["w"])


def test_the_copy_has_the_blended_restorer_and_all_else_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = ("shipped:blind-sr-camera", "shipped:blind-sr")
    run(monkeypatch, tmp_path / "blend", "--models", *models, "--shares", "0.75", "0.25")
    first, second, made = (
        load_file(folder / "weights.safetensors")
        for folder in (SHIPPED / "blind-sr-camera", SHIPPED / "blind-sr", tmp_path / "blend")
    )
    for name, value in made.items():
        if name.startswith("restorer."):
            expected = 0.75 * first[name].float() + 0.25 * second[name].float()
            assert value.equal(expected.half())
        else:
            assert value.equal(first[name])
    assert load_model(str(tmp_path / "blend")).config == load_model(str(SHIPPED / "blind-sr-camera")).config
    assert (
        "0.75 shipped:blind-sr-camera, 0.25 shipped:blind-sr"
        in read_manifest(tmp_path / "blend").provenance["restorer"]
    )


@pytest.mark.parametrize(
    ("models", "shares", "said"),
    [
        (["shipped:blind-sr"], ["0.5"], "--shares"),
        (["shipped:blind-sr", "shipped:blind-sr-camera"], ["1"], "--shares"),
    ],
)
def test_shares_that_do_not_add_up_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    models: list[str],
    shares: list[str],
    said: str,
):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path / "blend", "--models", *models, "--shares", *shares)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "blend").exists()
