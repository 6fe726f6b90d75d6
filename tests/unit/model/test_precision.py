"""bf16 under autocast: the prior's convolutions in bf16, everything about spectra and codes in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet


def batch(net, scale=2):
    """Smooth random images and kernels of the net's own codec."""
    generator = torch.Generator().manual_seed(0)
    hr = F.interpolate(torch.rand(4, 3, 10, 10, generator=generator), 40, mode="bicubic").clamp(0, 1)
    kernel = net.decode(torch.randn(4, 10, generator=generator))
    return degrade(hr, kernel, scale), hr, kernel


def train(net, steps, *, bf16):
    lr, hr, kernel = batch(net)
    code, losses = net.encode(kernel), []
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = net(lr, 2, 0.0)
            loss = F.l1_loss(out.sr, hr) + 0.1 * (out.codes - code[:, None]).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


def test_loss_curves_agree_for_fifty_steps(small, codec):
    """Within 3% at every step; over the run the loss itself falls by far more."""
    curves = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        curves.append(train(BlindUSRNet(small(), codec), 50, bf16=bf16))
    plain, rounded = curves
    assert plain[-1] < 0.8 * plain[0]
    assert ((rounded - plain).abs() / plain).max() < 0.03
    assert not torch.equal(rounded, plain)


def test_convolutions_run_in_bf16_and_ffts_codes_and_images_in_float32(small, codec, monkeypatch):
    torch.manual_seed(0)
    net, ffts, convolutions = BlindUSRNet(small(), codec), set(), set()
    transform = torch.fft.rfft2

    def watched(x, *arguments, **options):
        ffts.add(x.dtype)
        return transform(x, *arguments, **options)

    def note(module, inputs, out):
        convolutions.add(out.dtype)

    monkeypatch.setattr(torch.fft, "rfft2", watched)
    net.restorer.p.m_down1.register_forward_hook(note)
    net.estimator.body[0].register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(batch(net)[0], 2, 0.01)
    assert ffts == {torch.float32}
    assert torch.bfloat16 in convolutions
    for value in (out.sr, out.kernel, out.codes):
        assert value.dtype == torch.float32


class MatrixProducts(TorchDispatchMode):
    """Notes the dtypes that convolutions and matrix products compute in, but within the parts that may take bf16."""

    def __init__(self, *free):
        super().__init__()
        self.inside, self.dtypes = 0, set()
        for module in free:
            module.register_forward_pre_hook(lambda *_: self.enter(1))
            module.register_forward_hook(lambda *_: self.enter(-1))

    def enter(self, step):
        self.inside += step

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.inside and any(name in str(func) for name in ("convolution", "mm")):
            self.dtypes |= {a.dtype for a in args if isinstance(a, torch.Tensor)}
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("grid", ["corner", "centre"])
def test_an_inference_multiplies_in_bf16_in_prior_and_estimator_alone(small, codec, grid):
    """First estimate, kernels, reductions, kernel steps and scores are those of float32."""
    torch.manual_seed(0)
    net = BlindUSRNet(small(initial="spectral", reductions=True, steps=2, rounds=1), codec).eval()
    lr, seen = batch(net)[0], MatrixProducts(net.restorer.p, net.estimator)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), seen:
        out = net.infer(lr, 2, 0.01, grid=grid)
        degrade(out.sr, out.kernel, 2)
    assert seen.dtypes == {torch.float32}
    assert {out.sr.dtype, out.kernel.dtype} == {torch.float32}
    assert not torch.equal(out.kernel, out.kernel.bfloat16().float())


def test_the_image_is_not_rounded_to_bf16(shared):
    """The published tiny network on a real patch: its last convolution runs in float32."""
    import numpy as np

    from pipeline.model.weights import load_usrnet

    arrays = np.load(shared / "oracles" / "usrnet_tiny_x3_noisy.npz")
    lr = torch.from_numpy(arrays["lr"]).permute(2, 0, 1)[None]
    kernel = torch.from_numpy(arrays["kernel"])[None]
    net = load_usrnet(shared / "data" / "usrnet_tiny.pth")
    with torch.no_grad():
        plain = net(lr, kernel, int(arrays["scale"]), float(arrays["sigma"]))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(lr, kernel, int(arrays["scale"]), float(arrays["sigma"]))
    assert (rounded - plain).square().mean().sqrt() * 255 == pytest.approx(0, abs=0.2)
    assert rounded.dtype == torch.float32
