"""The restorer against published outputs, an independent re-evaluation, and its laws."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.model import USRNet, upsample
from pipeline.model.prior import ResUNet
from pipeline.model.weights import load_usrnet

ORACLES = ["usrnet_tiny_x2", "usrnet_tiny_x3_noisy"]


def oracle(shared, name):
    arrays = np.load(shared / "oracles" / f"{name}.npz")
    lr, sr = (torch.from_numpy(arrays[key]).permute(2, 0, 1)[None] for key in ("lr", "sr"))
    return lr, torch.from_numpy(arrays["kernel"])[None], int(arrays["scale"]), float(arrays["sigma"]), sr


def written_out(state, lr, kernel, scale, sigma, unfoldings, reference_step):
    """The published network from its tensors alone: functional, complex FFTs, nothing of ours."""

    def linear(name, x):
        return F.conv2d(x, state[f"h.mlp.{name}.weight"], state[f"h.mlp.{name}.bias"])

    def blocks(name, first, x):
        for i in (first, first + 1):
            hidden = F.conv2d(x, state[f"p.{name}.{i}.res.0.weight"], padding=1).relu()
            x = x + F.conv2d(hidden, state[f"p.{name}.{i}.res.2.weight"], padding=1)
        return x

    def prior(x):
        height, width = x.shape[-2:]
        x = F.pad(x, (0, math.ceil(width / 8) * 8 - width, 0, math.ceil(height / 8) * 8 - height), mode="replicate")
        levels = [F.conv2d(x, state["p.m_head.weight"], padding=1)]
        for i in (1, 2, 3):
            levels.append(F.conv2d(blocks(f"m_down{i}", 0, levels[-1]), state[f"p.m_down{i}.2.weight"], stride=2))
        x = blocks("m_body", 0, levels.pop())
        skip = F.conv2d(blocks("m_down3", 0, levels[-1]), state["p.m_down3.2.weight"], stride=2)
        for i in (3, 2, 1):
            x = blocks(f"m_up{i}", 1, F.conv_transpose2d(x + skip, state[f"p.m_up{i}.0.weight"], stride=2))
            skip = levels.pop()
        return F.conv2d(x + skip, state["p.m_tail.weight"], padding=1)[..., :height, :width]

    condition = lr.new_tensor([sigma, scale]).expand(len(lr), 2)[..., None, None]
    out = F.softplus(linear(4, linear(2, linear(0, condition).relu()).relu())) + 1e-6
    x = F.interpolate(lr, scale_factor=scale, mode="nearest")
    for i in range(unfoldings):
        x = reference_step(x, lr, kernel, out[:, i : i + 1], scale)
        x = prior(torch.cat((x, out[:, unfoldings + i : unfoldings + i + 1].expand(-1, 1, *x.shape[-2:])), 1))
    return x


@pytest.mark.parametrize("name", ORACLES)
def test_published_weights_give_the_published_output(name, shared):
    lr, kernel, scale, sigma, expected = oracle(shared, name)
    with torch.no_grad():
        found = load_usrnet(shared / "data" / "usrnet_tiny.pth")(lr, kernel, scale, sigma)
    assert (found - expected).norm() / expected.norm() < 1e-5
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ORACLES)
def test_published_weights_equal_an_independent_float64_evaluation(name, shared, reference_step):
    lr, kernel, scale, sigma, _ = oracle(shared, name)
    net = load_usrnet(shared / "data" / "usrnet_tiny.pth").double()
    lr, kernel = lr.double(), kernel.double()
    with torch.no_grad():
        expected = written_out(net.state_dict(), lr, kernel, scale, sigma, 6, reference_step)
        found = net(lr, kernel, scale, sigma)
    assert (found - expected).norm() / expected.norm() < 1e-9


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 33, 31), (31, 35, 11), (33, 32, 21)])
def test_equals_the_written_out_network(scale, height, width, size, small, draw_kernels, reference_step):
    """Any scale, kernel side and image side, non-square and no multiple of 8, without published weights."""
    torch.manual_seed(0)
    net = USRNet(small(global_skip=False, residual_blocks=2, x0="nearest").restorer).double().eval()
    lr, kernel = torch.rand(2, 3, height, width, dtype=torch.float64), draw_kernels(2, size, dtype=torch.float64)
    with torch.no_grad():
        expected = written_out(net.state_dict(), lr, kernel, scale, 0.02, 4, reference_step)
        torch.testing.assert_close(net(lr, kernel, scale, 0.02), expected, rtol=1e-9, atol=1e-9)


def test_a_batch_equals_its_images_one_by_one(small, draw_kernels):
    """Each with its own kernel and noise level."""
    torch.manual_seed(0)
    net = USRNet(small().restorer).eval()
    torch.nn.init.normal_(net.p.m_tail.weight, std=0.1)
    lr, kernel, sigma = torch.rand(3, 3, 17, 14), draw_kernels(3, 11), torch.tensor([0.0, 0.02, 0.1])
    with torch.no_grad():
        together = net(lr, kernel, 2, sigma)
        for i in range(3):
            alone = net(lr[i : i + 1], kernel[i : i + 1], 2, float(sigma[i]))
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


def test_alpha_starts_as_a_denoising_inverse_filter(small):
    """Untrained, alpha rises with the noise; at sigma 0 it is small, always positive."""
    alphas, betas = USRNet(small().restorer).h(torch.tensor([0.0, 0.01, 0.03]), 2)
    assert (alphas.diff(dim=0) > 0).all()
    assert (betas > 0).all()
    torch.testing.assert_close(alphas.mean(1), torch.tensor([0.01, 0.11, 0.91]), rtol=0.1, atol=0)


def test_untrained_with_a_global_skip_it_already_deblurs(small, draw_kernels):
    """Where training from scratch starts: the data steps alone, nearer to the truth than enlarging."""
    from pipeline.degrade import degrade

    torch.manual_seed(0)
    row, column = torch.meshgrid(torch.arange(-5.0, 6), torch.arange(-5.0, 6), indexing="ij")
    kernel = torch.exp(-(row**2 + column**2) / 4)[None]
    kernel = kernel / kernel.sum()
    hr = F.interpolate(torch.rand(1, 3, 12, 12), scale_factor=4, mode="bilinear")
    lr = degrade(hr, kernel, 2)
    with torch.no_grad():
        restored = USRNet(small().restorer).eval()(lr, kernel, 2, 0.0)
    assert (restored - hr).square().mean() < 0.3 * (upsample(lr, 2, "bicubic") - hr).square().mean()


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_bicubic_start_is_aligned_with_the_decimation(scale):
    """LR pixel (i, j) sits at HR pixel (s*i, s*j), and a plane is followed to a twentieth of a pixel: no shift."""
    ramp = torch.arange(12.0)[:, None] * 2 + torch.arange(10.0)
    enlarged = upsample(ramp.expand(1, 3, -1, -1), scale, "bicubic")
    torch.testing.assert_close(enlarged[..., ::scale, ::scale], ramp.expand(1, 3, -1, -1))
    inside = slice(2 * scale, -3 * scale)
    fine = torch.arange(12.0 * scale)[:, None] * 2 / scale + torch.arange(10.0 * scale) / scale
    torch.testing.assert_close(enlarged[0, 0, inside, inside], fine[inside, inside], atol=0.05 * 3, rtol=0)


def test_a_first_estimate_of_the_caller_replaces_its_own(small, draw_kernels):
    torch.manual_seed(0)
    net, lr, kernel = USRNet(small().restorer).eval(), torch.rand(1, 3, 12, 12), draw_kernels(1, 11)
    with torch.no_grad():
        own = net(lr, kernel, 2, 0.0)
        assert torch.equal(own, net(lr, kernel, 2, 0.0, x0=upsample(lr, 2, "bicubic")))
        assert not torch.equal(own, net(lr, kernel, 2, 0.0, x0=torch.zeros(1, 3, 24, 24)))
    with pytest.raises(ValueError, match=r"x0 \(1, 3, 12, 12\) is not 2 times .* \(1, 3, 12, 12\)"):
        net(lr, kernel, 2, 0.0, x0=lr)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": torch.rand(1, 3, 12)}, r"\(1, 3, 12\)"),
        ({"lr": torch.rand(1, 1, 12, 12)}, r"\(1, 1, 12, 12\)"),
        ({"lr": torch.zeros(1, 3, 12, 12, dtype=torch.uint8)}, r"\(1, 3, 12, 12\) must be floating point"),
        ({"lr": torch.full((1, 3, 12, 12), torch.nan)}, r"LR image \(1, 3, 12, 12\) holds values that are not finite"),
        ({"kernel": torch.full((1, 5, 5), torch.inf)}, r"kernel \(1, 5, 5\) holds values that are not finite"),
        ({"kernel": torch.rand(1, 4, 4)}, r"\(1, 4, 4\) has an even side"),
        ({"kernel": torch.rand(2, 5, 5)}, r"\(2, 5, 5\)"),
        ({"kernel": torch.rand(1, 25, 25)}, r"\(1, 25, 25\) is larger than the HR image 24 x 24"),
        ({"scale": 0}, r"scale 0 for images \(1, 3, 12, 12\)"),
        ({"scale": 2.0}, r"scale 2.0 for images \(1, 3, 12, 12\)"),
        ({"sigma": torch.zeros(2)}, r"\(1, 3, 12, 12\), got \(2,\)"),
        ({"sigma": math.nan}, r"sigma \(1,\) holds values that are not finite"),
    ],
)
def test_refuses_bad_input_and_says_the_shape(change, message, small):
    arguments = {"lr": torch.rand(1, 3, 12, 12), "kernel": torch.full((1, 5, 5), 0.04), "scale": 2, "sigma": 0.0}
    with pytest.raises(ValueError, match=message):
        USRNet(small().restorer)(**(arguments | change))


def test_the_priors_sums_in_place_have_the_right_gradients_and_leave_the_input_alone():
    torch.manual_seed(0)
    prior = ResUNet((2, 2, 2, 2), 1, global_skip=True).double()
    for weight in prior.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x, beta = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True), torch.full((1,), 0.1).double()
    before = x.detach().clone()
    assert torch.autograd.gradcheck(lambda image: prior(image, beta), x, fast_mode=True)
    # Of a filter whose block adds in place, against its finite difference.
    weight = prior.m_down1[0].res[0].weight
    (slope,) = torch.autograd.grad(prior(x, beta).square().sum(), weight)
    with torch.no_grad():
        values = []
        for step in (1e-6, -2e-6):
            weight[0, 0, 1, 1] += step
            values.append(float(prior(x, beta).square().sum()))
    assert float(slope[0, 0, 1, 1]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)
