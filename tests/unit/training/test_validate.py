"""Validation is the mean over images, and the best checkpoint is chosen by what the stage learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels_bank.runtime.errors import JobFailedError
from pipeline.training.validate import score_of, validate
from tests.unit.training.small_learner import TRAIN, make_learner


def test_validation_is_the_mean_over_images_of_all_batches(codec, batch):
    network = make_learner(codec).network
    parts = [
        replace(batch, **{n: getattr(batch, n)[part] for n in ("lr", "hr", "kernel", "sigma")}, keys=batch.keys[part])
        for part in (slice(0, 3), slice(3, 4))
    ]
    found = validate(network, parts, TRAIN, torch.device("cpu"))
    with torch.no_grad():
        out = network.eval()(batch.lr, 2, batch.sigma)
    each = [-10 * ((sr.clamp(0, 1) - hr) ** 2).mean().log10() for sr, hr in zip(out.sr, batch.hr, strict=True)]
    assert found["val_psnr"] == pytest.approx(float(torch.stack(each).mean()), abs=1e-4)
    errors = (out.kernel - batch.kernel).abs().sum((1, 2))
    assert found["val_kernel_error"] == pytest.approx(float(errors.mean()), rel=1e-5)
    for number, each in enumerate(out.rounds):
        errors = (each.kernel - batch.kernel).abs().sum((1, 2))
        assert found[f"val_kernel_error_round_{number}"] == pytest.approx(float(errors.mean()), rel=1e-5)
    assert found[f"val_psnr_round_{len(out.rounds) - 1}"] == found["val_psnr"] != found["val_psnr_round_0"]
    assert validate(network, [], TRAIN, torch.device("cpu")) == {}


@pytest.mark.parametrize("learn", ["all", "restorer", "kernel", "spectral"])
def test_the_best_checkpoint_is_chosen_by_what_the_stage_learns(codec, batch, learn):
    found = validate(
        make_learner(codec).network, [batch], TRAIN.model_copy(update={"learn": learn}), torch.device("cpu")
    )
    assert {name for name in found if "round" not in name} == {
        "restorer": {"val_psnr"},
        "spectral": {"val_kernel_error"},
    }.get(learn, {"val_psnr", "val_kernel_error"})
    assert any("round" in name for name in found) == (learn in {"all", "kernel"})
    assert score_of(found, 7) == found.get("val_psnr", -found.get("val_kernel_error", 0))
    assert score_of({}, 7) == 7.0


@pytest.mark.parametrize("found", [{"val_psnr": float("nan")}, {"val_kernel_error": float("inf")}])
def test_a_validation_that_is_no_number_ends_the_run_in_a_line(found):
    with pytest.raises(JobFailedError, match="step 7: the validation gives"):
        score_of(found, 7)
