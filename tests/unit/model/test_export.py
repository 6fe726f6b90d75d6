"""The restorer in operations of other runtimes is the same function: in torch, and as ONNX by the page's lines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.model import BlindUSRNet, USRNet
from pipeline.model import export as exporting
from pipeline.model.portable import PortableRestorer
from pipeline.model.portable_initial import PortableInitialKernel

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


def smooth(height: int, width: int) -> torch.Tensor:
    torch.manual_seed(height)
    return torch.nn.functional.avg_pool2d(torch.rand(1, 3, height + 4, width + 4), 5, 1)


def worked(network: torch.nn.Module) -> torch.nn.Module:
    """With weights that all matter: a new network begins as the identity, and its new estimates as the mean kernel."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("x0", ["nearest", "bicubic"])
@pytest.mark.parametrize(
    ("scale", "height", "width", "side"), [(1, 19, 32, 7), (2, 17, 23, 21), (3, 16, 16, 47), (4, 9, 30, 3)]
)
@torch.no_grad()
def test_the_restorer_is_the_networks_own(small, draw_kernels, x0, scale, height, width, side):
    network = worked(USRNet(small(x0=x0).restorer))
    lr, kernel, sigma = smooth(height, width), draw_kernels(1, side), torch.tensor([0.01])
    ours, theirs = network(lr, kernel, scale, sigma), PortableRestorer(network, scale)(lr, kernel, sigma)
    assert (ours - theirs).abs().max() < 2e-5
    assert (ours - network(lr, kernel, scale, 0.03)).abs().max() > 1e-3


@pytest.mark.parametrize("reductions", [False, True])
@pytest.mark.parametrize(("scale", "height", "width"), [(2, 48, 61), (3, 64, 48)])
@torch.no_grad()
def test_the_initial_kernel_is_the_networks_own(small, codec, reductions, scale, height, width):
    config = small(scales=(2, 3), rounds=0, initial="spectral", reductions=reductions)
    network = worked(BlindUSRNet(config, codec))
    lr, sigma = smooth(height, width), torch.tensor([0.01])
    ours, theirs = network.initial_kernel(lr, scale, sigma), PortableInitialKernel(network, scale)(lr, sigma)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - network.initial_kernel(torch.rand_like(lr), scale, sigma)).abs().max() > 1e-4


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both formats are written from one trace, a fifth of the test's time: the part and its example are the same."""
    trace, traces = torch.export.export, []

    def export(*arguments: object, **settings: object) -> torch.export.ExportedProgram:
        if not traces:
            traces.append(trace(*arguments, **settings))
        return traces[0]

    monkeypatch.setattr(torch.export, "export", export)


@pytest.mark.usefixtures("traced_once")
def test_the_initial_kernel_runs_in_torch_alone_and_in_onnx_runtime(small, codec, tmp_path: Path):
    network = worked(BlindUSRNet(small(rounds=0, initial="spectral", reductions=True), codec))
    name, difference = exporting.export_part(network, tmp_path, "torch-export", 2, "initial-kernel")
    assert (name, difference <= exporting.TOLERANCE) == ("initial-kernel-x2.pt2", True)
    onnx, difference = exporting.export_part(network, tmp_path, "onnx", 2, "initial-kernel")
    assert (onnx, difference <= exporting.TOLERANCE) == ("initial-kernel-x2.onnx", True)
    program = torch.export.load(tmp_path / name).module()
    session = onnxruntime.InferenceSession(tmp_path / onnx)
    half_flat = smooth(100, 90)
    half_flat[..., 40:] = 1.0  # blown highlights: windows without any spectrum
    for lr, level in ((smooth(120, 75), 0.02), (half_flat, 0.0)):
        sigma = torch.tensor([level])
        with torch.no_grad():
            expected = network.initial_kernel(lr, 2, sigma)
            assert (program(lr, sigma) - expected).abs().max() < 1e-4
        (answer,) = session.run(None, {"lr": lr.numpy(), "sigma": sigma.numpy()})
        assert np.abs(answer - expected.numpy()).max() < 1e-4


def test_a_network_without_a_net_of_the_initial_kernel_exports_none(small, codec, tmp_path: Path):
    network = BlindUSRNet(small(rounds=0, initial="mean"), codec).eval()
    with pytest.raises(BadRequestError, match="no net that reads a kernel off a picture"):
        exporting.export_part(network, tmp_path, "torch-export", 2, "initial-kernel")
    with pytest.raises(BadRequestError, match="no net that reads a kernel off a picture"):
        exporting.export_part(network.restorer, tmp_path, "torch-export", 2, "initial-kernel")


def test_the_pages_lines_run_an_onnx_file_without_this_program(small, codec, draw_kernels, tmp_path: Path):
    network = worked(BlindUSRNet(small(unfoldings=1, scales=(2, 3), rounds=0), codec))
    (tmp_path / "exported").mkdir()
    name, difference = exporting.export_part(network, tmp_path / "exported", "onnx", 2)
    assert name == "restorer-x2.onnx"
    assert difference <= exporting.TOLERANCE
    picture, kernel = np.random.default_rng(0).integers(0, 256, (37, 52, 3), np.uint8), draw_kernels(1, 13)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    np.save(tmp_path / "kernel.npy", kernel[0].numpy())
    lines = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    lines += "\nimport sys; assert not {'torch', 'pipeline', 'kernels_bank'} & sys.modules.keys()\n"
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lr = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = network.restore(lr, kernel, 2, 2 / 255)[0].clamp(0, 1).permute(1, 2, 0) * 255
    restored = np.asarray(Image.open(tmp_path / "restored.png"), np.float32)
    assert np.abs(restored - expected.numpy()).max() < 0.6


def test_a_file_that_answers_differently_is_not_kept_and_another_scale_is_refused(
    small, codec, tmp_path: Path, monkeypatch
):
    network = BlindUSRNet(small(scales=(2, 3)), codec).eval()

    def write(program: object, file: Path) -> exporting.Answer:
        file.write_bytes(b"a program")
        return lambda lr, kernel, sigma: np.zeros((1, 3, 2 * lr.shape[2], 2 * lr.shape[3]), np.float32)

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(exporting, "_write_program", write)
    with pytest.raises(JobFailedError, match=r"restorer-x2\.pt2: its answers differ by .* from the network's"):
        exporting.export_part(network, tmp_path, "torch-export", 2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadRequestError, match="--scale 4: this model restores 2, 3"):
        exporting.export_part(network, tmp_path, "torch-export", 4)
