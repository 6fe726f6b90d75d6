"""The guard in the loop: it tells right kernels from wrong ones and keeps the better, image by image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet, BlurOperator, USRNet
from pipeline.model.guard import EQUAL, Acceptance, Look, acceptance, gradient_spread, restoration_score, wins


def picture(seed=0):
    """(1, 3, 48, 48): flat patches of random colours, all edges."""
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), scale_factor=6, mode="nearest")


def gaussian(width, narrow=None, size=11):
    row, column = torch.meshgrid(torch.arange(size) - size // 2.0, torch.arange(size) - size // 2.0, indexing="ij")
    kernel = torch.exp(-0.5 * ((column / width) ** 2 + (row / (narrow or width)) ** 2))
    return (kernel / kernel.sum())[None]


def hook(size=11):
    """A one-sided stroke: far from its own half turn."""
    kernel = torch.zeros(1, size, size)
    kernel[0, 5, 2:6] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    kernel[0, 5:9, 5] = torch.tensor([0.4, 0.2, 0.1, 0.1])
    return kernel / kernel.sum()


CASES = {
    "turned": (hook(), hook().flip(-2, -1)),
    "too wide": (gaussian(1.2), gaussian(2.2)),
    "too wide, along one axis": (gaussian(1.2), gaussian(2.4, 1.2)),
}


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize(("right", "wrong"), CASES.values(), ids=CASES)
def test_the_right_kernel_scores_lower(right, wrong, scale, small):
    net = USRNet(small().restorer).eval()  # untrained with a global skip: a regularised inverse filter
    for seed in range(4):
        lr = degrade(picture(seed), right, scale)
        scores = []
        with torch.no_grad():
            for kernel in (right, wrong):
                score = restoration_score(net(lr, kernel, scale, 0.0), lr, BlurOperator.of(kernel, scale, lr))
                scores.append(float(score))
        assert scores[0] < scores[1]


def test_the_spread_of_gradients_is_that_of_numpy_and_ends_at_one():
    sr = torch.rand(2, 3, 20, 24, dtype=torch.float64)
    for image, found in zip(sr.numpy(), gradient_spread(sr, 2).tolist(), strict=True):
        steps = np.concatenate([np.diff(image, axis=axis).ravel() for axis in (1, 2)])
        assert found == pytest.approx(np.abs(steps).sum() / np.linalg.norm(steps) / np.sqrt(steps.size))
    signs = torch.tensor([-1.0, 1.0]).repeat(8)
    checked = signs[:, None] * signs  # every step is as high as any other
    assert float(gradient_spread(checked[None, None], 1)) == pytest.approx(1)


def test_blur_and_ringing_spread_gradients():
    sharp = picture()
    kernel = gaussian(1.5).repeat(3, 1, 1)[:, None]
    blurred = F.conv2d(F.pad(sharp, [5] * 4, mode="circular"), kernel, groups=3)
    ringing = sharp + 0.1 * torch.sin(torch.arange(48.0) * 1.5)
    least = float(gradient_spread(sharp, 1))
    assert float(gradient_spread(blurred, 1)) > 1.3 * least
    assert float(gradient_spread(ringing, 1)) > 1.3 * least


def test_the_spread_is_that_of_the_observed_part():
    sr = torch.rand(1, 3, 40, 40)
    inside = gradient_spread(sr[..., 6:24, 6:30], 1)
    assert torch.equal(gradient_spread(sr, 2, (15, 18), 3), inside)
    assert not torch.equal(gradient_spread(sr, 2), inside)


def test_with_published_weights_it_also_refuses_to_stay_blurred(shared):
    """A photograph, motion kernels, the trained restorer: against the half turn, too wide, and no kernel at all."""
    import cv2

    from kernels_bank import benchmark_kernels
    from pipeline.model.weights import load_usrnet

    net = load_usrnet(shared / "data" / "usrnet_tiny.pth")
    path = sorted((shared / "data" / "BSDS400").glob("*.jpg"))[5]
    crop = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)[100:164, 100:196]
    hr = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
    delta = torch.zeros(1, 25, 25)
    delta[0, 12, 12] = 1
    for kernel in torch.from_numpy(benchmark_kernels(25)[10:])[:, None]:
        kernels = torch.cat((kernel, kernel.flip(-2, -1), gaussian(3, size=25), delta))
        lr = degrade(hr, kernel, 2).expand(4, -1, -1, -1)
        with torch.no_grad():
            scores = restoration_score(net(lr, kernels, 2, 0.0), lr, BlurOperator.of(kernels, 2, lr))
        assert scores.argmin() == 0


class Says(nn.Module):
    """An estimator that has made up its mind: the changes of the code it gives, one call after the other."""

    def __init__(self, *changes):
        super().__init__()
        self.changes = list(changes)

    def forward(self, lr, sr, scale):
        return self.changes.pop(0)


@pytest.mark.parametrize(("schedule", "warm_start"), [("rounds", False), ("rounds", True), ("interleaved", False)])
def test_each_image_keeps_the_better_kernel(schedule, warm_start, small, codec):
    """Image 0 is told its true kernel, image 1 one that is far too wide: one estimate stands, the other does not."""
    net = BlindUSRNet(small(schedule=schedule, warm_start=warm_start, initial="mean"), codec).eval()
    true, wide = net.encode(gaussian(1.0, 2.5)), net.encode(gaussian(3.0))
    mean = net.decode(torch.zeros(1, 10))
    lr = torch.cat((degrade(picture(), net.decode(true), 2), degrade(picture(1), mean, 2)))
    with torch.no_grad():
        net.estimator = Says(torch.cat((true, wide)))
        out = net.infer(lr, 2, 0.0)
        net.estimator = Says(torch.cat((true, wide)))
        plain = net(lr, 2, 0.0)
        kept = net.restore(lr[1:], mean, 2, 0.0)
    assert out.kernel_round.tolist() == [1, 0]
    torch.testing.assert_close(out.kernel, torch.cat((net.decode(true), mean)))
    torch.testing.assert_close(out.sr[:1], plain.sr[:1])
    if warm_start:
        assert not torch.allclose(out.sr[1:], plain.sr[1:], atol=1e-2)
    else:
        torch.testing.assert_close(out.sr[1:], kept, atol=1e-5, rtol=1e-5)
    # What every kernel made of the image is still there to look at.
    torch.testing.assert_close(out.rounds[1].kernel, net.decode(torch.cat((true, wide))))
    assert plain.kernel_round.tolist() == [1, 1]


@pytest.mark.parametrize("schedule", ["rounds", "interleaved"])
def test_after_a_refusal_the_estimate_goes_on_from_what_stood(schedule, small, codec):
    """Refused, then right: the second change of the code is added to the initial kernel's code, not to the refused."""
    net = BlindUSRNet(small(schedule=schedule, rounds=2, initial="mean"), codec).eval()
    true, wide = net.encode(gaussian(1.0, 2.5)), net.encode(gaussian(3.0))
    net.estimator = Says(wide, true)
    with torch.no_grad():
        out = net.infer(degrade(picture(), net.decode(true), 2), 2, 0.0)
    assert out.kernel_round.tolist() == [2]
    torch.testing.assert_close(out.kernel, net.decode(true))


def test_a_refused_estimate_leaves_no_trace_in_the_image(small, codec):
    """Interleaved, all estimates refused: the image is that of one unfolding with the initial kernel."""
    net = BlindUSRNet(small(rounds=3, initial="mean"), codec).eval()
    wide, mean = net.encode(gaussian(3.0)), net.decode(torch.zeros(1, 10))
    net.estimator = Says(wide, wide, wide)
    lr = degrade(picture(), mean, 2)
    with torch.no_grad():
        out = net.infer(lr, 2, 0.0)
        assert out.kernel_round.tolist() == [0]
        torch.testing.assert_close(out.sr, net.restore(lr, mean, 2, 0.0), atol=1e-5, rtol=1e-5)


def test_only_what_a_camera_saw_is_judged(codec):
    """Whatever lies beyond the observed part and the border inside it does not count."""
    torch.manual_seed(0)
    lr, sr = torch.rand(1, 3, 20, 24), torch.rand(1, 3, 40, 48)
    kernel = torch.zeros(1, 3, 3)
    kernel[0, 1, 1] = 1
    operator = BlurOperator.of(kernel, 2, lr)
    changed, other = sr.clone(), lr.clone()
    changed[..., 28:, :], other[..., :, 18:] = 0.5, 0.5
    changed[..., :4, :], other[..., :, :2] = 0.5, 0.5
    inside = restoration_score(sr, lr, operator, (16, 20), 2)
    torch.testing.assert_close(restoration_score(changed, other, operator, (16, 20), 2), inside)
    assert not torch.allclose(restoration_score(changed, other, operator), restoration_score(sr, lr, operator))
    # A delta kernel's operator is the decimation: the score written out.
    seen, picture = lr[..., 2:14, 2:18], sr[..., 4:28, 4:36]
    rms = (picture[..., ::2, ::2] - seen).square().mean().sqrt()
    variation = picture.diff(dim=-1).abs().mean() + picture.diff(dim=-2).abs().mean()
    torch.testing.assert_close(inside[0], rms * variation)


def looks(*values):
    """One look for each (score, spread)."""
    return Look(*(torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True)))


def test_a_new_kernel_wins_by_every_term_or_not_at_all():
    new, old = looks((1.0, 0.5), (1.0, 0.5), (1.1, 0.5), (0.5, 0.9)), looks(*[(1.0, 0.6)] * 4)
    assert wins(new, old).tolist() == [True, True, False, True]
    sharper = Acceptance(1.0, score=0.0, spread=1.0)
    assert wins(new, old, (EQUAL, sharper)).tolist() == [True, True, False, False]
    per_image = Acceptance(torch.tensor([0.5, 1.0, 1.2, 0.4]))
    assert wins(new, old, (per_image,)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_gaussian_that_does_not_ring_gives_way_to_less_than_another_first_kernel(scale):
    """Of a net that may err on the wide side: a kernel that is no Gaussian, or rings, is probably wrong."""
    kernel = torch.cat((gaussian(1.5, size=25), gaussian(1.5, size=25), F.pad(hook(), (7,) * 4)))
    terms = acceptance(scale, kernel, torch.tensor([0.0, 0.05, 0.0]), sure=False, prior=True)

    def accepted(score, spread):
        return wins(looks(*[(score, spread)] * 3), looks(*[(1.0, 1.0)] * 3), terms).tolist()

    assert accepted(scale / 4, 1.0) == [True, True, True]
    assert accepted(scale / 4, 1.01) == [False, True, True]
    assert accepted(scale / 4 + 0.01, 0.9) == [False, scale < 4, scale < 4]
    assert accepted(min(0.375 * scale, 1.0), 1.5) == [False, True, True]
    assert accepted(1.01, 0.5) == [False, False, False]
