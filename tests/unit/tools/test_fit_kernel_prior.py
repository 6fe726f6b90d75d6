"""The fit of the prior of kernel steps: its loss, its samples, and that it learns."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kernels_bank import KernelCodec, sample_gaussian, sample_motion
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.progress import Progress
from pipeline.config import RunConfig
from pipeline.model import BlindUSRNet
from pipeline.model.fourier import transfer_function
from pipeline.model.kernel_prior import KernelPrior
from pipeline.model.weights import load_model, save_model
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.yaml_file import read_yaml
from tools import fit_kernel_prior as tool


def kernels(count: int) -> torch.Tensor:
    return torch.from_numpy(sample_motion(count, 25, rng=np.random.default_rng(0), extent=(4.0, 14.0)))


def shifted(kernel: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return kernel.roll((rows, columns), (-2, -1))


def test_true_kernels_are_shifted_onto_what_was_found():
    """Whole pixels: the spectrum of the shifted kernel itself."""
    true = kernels(3)
    found = shifted(true, 2, -1)
    torch.testing.assert_close(tool.aligned(true, found), transfer_function(found, 64, 64)[:, 0], atol=1e-4, rtol=0)


def test_a_quarter_of_a_pixel_counts():
    """Found is the true kernel at the mean of two places: the shift lies between them."""
    true = kernels(4)
    between = (3 * true + shifted(true, 0, 1)) / 4
    angle = (tool.aligned(true, between) / transfer_function(true, 64, 64)[:, 0])[:, 0, 1].angle()
    torch.testing.assert_close(angle, torch.full_like(angle, -2 * torch.pi * 0.25 / 64), atol=1e-3, rtol=0)


def test_nothing_is_lost_by_the_true_kernel_and_its_place_does_not_count():
    true, sigma, scale = kernels(3), torch.tensor([0.0, 0.01, 0.03]), torch.tensor([2, 3, 4])
    for found in (true, shifted(true, -1, 3)):
        lost = tool.lost_decibels(found, tool.aligned(true, found), sigma, scale)
        torch.testing.assert_close(lost, torch.zeros(3), atol=1e-3, rtol=0)


def test_the_wronger_the_kernel_the_more_is_lost():
    true, sigma, scale = kernels(3), torch.zeros(3), torch.tensor([2, 3, 4])
    wide = [true, *(torch.from_numpy(np.stack([cv2.GaussianBlur(k, (0, 0), s) for k in true.numpy()])) for s in (1, 2))]
    lost = [tool.lost_decibels(k, tool.aligned(true, k), sigma, scale) for k in wide]
    assert (lost[1] > lost[0] + 0.1).all()
    assert (lost[2] > lost[1] + 0.1).all()
    mirrored = true.flip((-2, -1))
    assert (tool.lost_decibels(mirrored, tool.aligned(true, mirrored), sigma, scale) > 0.5).all()


DATA = RunConfig.model_validate(read_yaml(tool._CAMERA, tool._CAMERA)).data


@pytest.fixture
def model(tmp_path: Path) -> str:
    codec = KernelCodec.fit(sample_gaussian(300, 25, rng=np.random.default_rng(0)), components=6)
    kernel = KernelConfig(rounds=0, steps=5, initial="mean")
    restorer = RestorerConfig(unfoldings=2, widths=(2, 2, 2, 2), residual_blocks=1)
    save_model(BlindUSRNet(ModelConfig(scales=(2, 3, 4), restorer=restorer, kernel=kernel), codec), tmp_path / "m", {})
    return str(tmp_path / "m")


def test_it_fits_and_a_second_pass_learns_from_steps_that_were_corrected(model, tmp_path, monkeypatch, capsys):
    """Samples are a function of their part's number; what is there is not computed again; all else of a model stays."""
    monkeypatch.setattr(tool, "PART", 2)
    monkeypatch.setattr(tool, "_SMALLEST_AT_4", 144)
    monkeypatch.setattr(tool, "_SIDE_SHARES", (1, 0, 0, 0))
    monkeypatch.setattr(tool, "_CORRECTING", (1.0,))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (330, 340, 3), np.uint8), (0, 0), 2)
    cv2.imwrite(str(photographs / "a.png"), picture)
    (Path(model) / "README.md").write_text("a card")

    def run(name: str, start: str) -> None:
        flags = ["--models", start, "--found", str(tmp_path / f"found-{name}"), "--output", str(tmp_path / name)]
        common = ["fit", "--photographs", str(photographs), "--parts", "1", "--fit-steps", "8"]
        monkeypatch.setattr("sys.argv", [*common, *flags])
        tool.main()

    run("one", model)
    run("two", str(tmp_path / "one" / "m"))
    assert "with a kernel prior fitted on 2 photographs" in capsys.readouterr().out
    before, one, two = (load_model(folder) for folder in (model, tmp_path / "one" / "m", tmp_path / "two" / "m"))
    for name, value in before.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), f"{name} is not the prior's"
    assert (tmp_path / "two" / "m" / "README.md").read_text() == "a card"
    first, second = (tool.read_part(tmp_path / f"found-{name}" / "part-000.npz") for name in ("one", "two"))
    torch.testing.assert_close(second.kernel, first.kernel)
    for photograph, step in itertools.product(range(2), range(4)):
        found, begun = second.maps[photograph, step].float(), second.maps[photograph, step + 1, 3].float()
        scale = second.scale[photograph : photograph + 1]
        with torch.no_grad():
            corrected = one.prior(found[None], second.sigma[photograph : photograph + 1], step / 4, scale)[0]
        torch.testing.assert_close(begun, corrected, atol=1e-4, rtol=2e-2)
        assert torch.equal(first.maps[photograph, step + 1, 3], first.maps[photograph, step, 0])
    with Progress("again", total=2, unit="photograph") as bar:
        tool.write_part([before], DATA, [photographs / "a.png"], tmp_path / "again.npz", 0, bar)
    for kept, again in zip(first, tool.read_part(tmp_path / "again.npz"), strict=True):
        assert torch.equal(kept, again)
    monkeypatch.setattr(tool, "write_part", lambda *_: pytest.fail("it is there"))
    run("one", model)


def test_photographs_that_are_all_too_small_are_refused(model, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    network = load_model(model)
    with (
        Progress("part", total=1, unit="photograph") as bar,
        pytest.raises(BadRequestError, match="nearly all photographs are smaller than"),
    ):
        tool.write_part([network], DATA, [tmp_path / "a.png"], tmp_path / "part.npz", 0, bar)


def test_a_model_that_tells_reductions_sees_what_cameras_store(tmp_path, monkeypatch):
    """Its LR images are reduced and stored as the config says; the kernel kept is that of the blur alone."""
    monkeypatch.setattr(tool, "PART", 1)
    monkeypatch.setattr(tool, "_SIDE_SHARES", (1, 0, 0, 0))
    monkeypatch.setattr(tool, "_SMALLEST_AT_4", 144)
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (330, 340, 3), np.uint8), (0, 0), 2)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    codec = KernelCodec.fit(sample_gaussian(300, 25, rng=np.random.default_rng(0)), components=6)
    restorer = RestorerConfig(unfoldings=2, widths=(2, 2, 2, 2), residual_blocks=1)
    kernel = KernelConfig(rounds=0, steps=5, reductions=True)
    network = BlindUSRNet(ModelConfig(scales=(2, 3, 4), restorer=restorer, kernel=kernel), codec).eval()
    asked, degraded = [], tool.degrade_draws
    monkeypatch.setattr(tool, "degrade_draws", lambda draws, *rest: asked.append(draws[0]) or degraded(draws, *rest))
    with Progress("part", total=1, unit="photograph") as bar:
        tool.write_part([network], DATA, [tmp_path / "a.png"], tmp_path / "part.npz", 0, bar)
    steps = tool.read_part(tmp_path / "part.npz")
    assert asked[0].camera is not None
    assert steps.maps.shape == (1, 5, 4, 25, 25)
    assert torch.equal(steps.kernel[0], torch.from_numpy(asked[0].kernel))
    assert float(steps.kernel.sum()) == pytest.approx(1, abs=1e-5)


def test_it_learns_to_undo_what_steps_get_wrong(monkeypatch):
    """Kernels that come out too wide: after some updates less is lost, also on kernels that it has not seen."""
    monkeypatch.setattr(tool, "_DECAY", 0.9)
    true = torch.from_numpy(sample_motion(80, 13, rng=np.random.default_rng(0), extent=(3.0, 8.0)))
    wide = torch.from_numpy(np.stack([cv2.GaussianBlur(kernel, (0, 0), 0.8) for kernel in true.numpy()]))
    maps = wide[:, None, None].expand(-1, 2, 4, -1, -1)
    steps = tool.Steps(maps.half(), true, torch.zeros(80), torch.full((80,), 2))
    prior = tool.fit(tool.Steps(*(value[:70] for value in steps)), 100)
    fresh = tool.Steps(*(value[70:] for value in steps))
    seen = fresh.maps[:, 0].float()
    with torch.no_grad():
        before, after = (
            tool.lost_decibels(found, tool.aligned(fresh.kernel, seen[:, 0]), fresh.sigma, fresh.scale)
            for found in (net(seen, fresh.sigma, 1.0, fresh.scale) for net in (KernelPrior(), prior))
        )
    assert float(after.mean()) < 0.8 * float(before.mean())
