"""The alternation against hand-written loops, and what its parts depend on."""

import itertools

import pytest
import torch
from torch import nn

from pipeline.model import BlindUSRNet, data_step, upsample
from pipeline.model.edge_start import edge_kernel
from pipeline.model.estimator import Estimator
from pipeline.model.gaussian_fit import matching_gaussian, snap_to_gaussian
from pipeline.model.guard import Acceptance
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig


def network(config, codec, seed=0):
    """A network none of whose parts is the identity, as it is after some training."""
    torch.manual_seed(seed)
    net = BlindUSRNet(config, codec).eval()
    nn.init.normal_(net.restorer.p.m_tail.weight, std=0.02)
    nn.init.normal_(net.estimator.out.weight, std=0.1)
    return net


def initial_by_hand(net, lr, scale):
    match net.config.kernel.initial:
        case "delta":
            kernel = torch.zeros(len(lr), 11, 11)
            kernel[:, 5, 5] = 1
            return kernel, torch.zeros(len(lr), 10)  # the mean's
        case "mean":
            code = torch.zeros(len(lr), 10)
        case "spectral":

            def seen(view):
                return net.codec.decode(net.spectral(view, scale, torch.full((len(lr),), 0.01))[0])

            shown = [seen(lr), seen(lr.mT).mT]
            for axes in ((-1,), (-2,), (-2, -1)):
                shown += [seen(lr.flip(axes)).flip(axes), seen(lr.mT.flip(axes)).flip(axes).mT]
            kernel = snap_to_gaussian(sum(shown) / 8)
            return kernel, net.encode(kernel)
    return net.codec.decode(code), code


def unfold_by_hand(net, x, lr, kernel, scale, steps):
    alphas, betas = net.restorer.h(torch.full((len(lr),), 0.01), scale)
    for i in steps:
        x = net.restorer.p(data_step(x, lr, kernel, alphas[:, i, None, None, None], scale), betas[:, i])
    return x


def loop_by_hand(net, lr, scale):
    """(sr, kernel, code) of every round, as DESIGN's alternation says it."""
    config = net.config
    kernel, code = initial_by_hand(net, lr, scale)
    start = x = upsample(lr, scale, config.restorer.x0)
    rounds = []
    parts = {1: [range(2), range(2, 4)], 2: [range(1), range(1, 3), range(3, 4)]}[config.kernel.rounds]
    for t in range(config.kernel.rounds + 1):
        if t:
            code = code + net.estimator(lr, x, scale)
            kernel = net.codec.decode(code)
        if config.kernel.schedule == "interleaved":
            x = unfold_by_hand(net, x, lr, kernel, scale, parts[t])
        else:
            x = unfold_by_hand(net, x if config.kernel.warm_start and t else start, lr, kernel, scale, range(4))
        rounds.append((x, kernel, code))
    return rounds


@pytest.mark.parametrize("initial_kernel", ["delta", "mean", "spectral"])
@pytest.mark.parametrize(
    ("schedule", "warm_start", "rounds", "x0"),
    [
        ("interleaved", False, 1, "nearest"),
        ("interleaved", False, 2, "bicubic"),
        ("rounds", False, 1, "bicubic"),
        ("rounds", False, 2, "nearest"),
        ("rounds", True, 2, "bicubic"),
    ],
)
def test_every_round_equals_a_hand_written_loop(initial_kernel, schedule, warm_start, rounds, x0, small, codec):
    config = small(initial=initial_kernel, schedule=schedule, warm_start=warm_start, rounds=rounds, x0=x0)
    net, lr = network(config, codec), torch.rand(2, 3, 18, 20)
    with torch.no_grad():
        out, expected = net(lr, 2, 0.01), loop_by_hand(net, lr, 2)
    assert len(out.rounds) == rounds + 1
    for found, by_hand in zip(out.rounds, expected, strict=True):
        for value, reference in zip(found[:3], by_hand, strict=True):
            torch.testing.assert_close(value, reference, atol=1e-5, rtol=1e-5)
    assert out.sr is out.rounds[-1].sr
    assert out.kernel is out.rounds[-1].kernel
    assert torch.equal(out.codes, torch.stack([r.code for r in out.rounds], 1))


def test_every_kernel_is_one(small, codec):
    net = network(small(rounds=2), codec)
    nn.init.normal_(net.estimator.out.weight, std=5)
    for found in net(torch.rand(2, 3, 18, 20), 2, 0.0).rounds:
        assert (found.kernel >= 0).all()
        torch.testing.assert_close(found.kernel.sum((1, 2)), torch.ones(2))


def test_a_known_kernel_goes_through_the_same_restorer(small, codec, draw_kernels):
    net, lr, kernel = network(small(), codec), torch.rand(2, 3, 18, 20), draw_kernels(2, 11)
    with torch.no_grad():
        assert torch.equal(net.restore(lr, kernel, 2, 0.01), net.restorer(lr, kernel, 2, 0.01))


@pytest.mark.parametrize("schedule", ["rounds", "interleaved"])
def test_detached_no_gradient_crosses_rounds_else_it_does(schedule, small, codec):
    """The image loss reaches the estimator and the initial kernel only when config says so."""
    for detach in (True, False):
        net = network(small(schedule=schedule, detach=detach), codec).train()
        net(torch.rand(2, 3, 18, 20), 2, 0.0).sr.square().mean().backward()
        for part in (net.estimator, net.spectral):
            reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
            assert reached is not detach
        assert all(p.grad is not None for p in net.restorer.parameters())


@pytest.mark.parametrize("schedule", ["rounds", "interleaved"])
def test_where_no_image_counts_the_codes_learn_the_same_from_one_restoration_less(schedule, small, codec):
    net, lr = network(small(schedule=schedule, rounds=2), codec).train(), torch.rand(2, 3, 18, 20)
    found, unfoldings = [], []
    net.restorer.p.register_forward_hook(lambda *_: unfoldings.append(1))
    for image_rounds in ("last", "none"):
        net.zero_grad()
        unfoldings.clear()
        out = net(lr, 2, 0.01, image_rounds=image_rounds)
        out.codes.abs().mean().backward()
        found.append((out.codes, out.kernel, [p.grad.clone() for p in net.estimator.parameters()], len(unfoldings)))
    (codes, kernel, gradients, all_of_them), (bare_codes, bare_kernel, bare_gradients, fewer) = found
    assert torch.equal(codes, bare_codes)
    assert torch.equal(kernel, bare_kernel)
    assert all(torch.equal(a, b) for a, b in zip(gradients, bare_gradients, strict=True))
    assert all_of_them - fewer == (4 if schedule == "rounds" else 1)


@pytest.mark.parametrize("schedule", ["rounds", "interleaved"])
@pytest.mark.parametrize("detach", [True, False])
def test_where_only_the_last_image_counts_the_gradients_are_the_same(schedule, detach, small, codec):
    """Bit for bit, though detached rounds before it are restored without a graph."""
    net, lr = network(small(schedule=schedule, detach=detach, rounds=2), codec).train(), torch.rand(2, 3, 18, 20)
    found = []
    for image_rounds in ("all", "last"):
        net.zero_grad()
        out = net(lr, 2, 0.01, image_rounds=image_rounds)
        (out.sr.square().mean() + out.codes.abs().mean()).backward()
        found.append({name: p.grad.clone() for name, p in net.named_parameters()})
        assert out.rounds[0].sr.requires_grad is not (image_rounds == "last" and schedule == "rounds" and detach)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("schedule", ["rounds", "interleaved"])
@pytest.mark.parametrize("detach", [True, False])
def test_activations_computed_again_give_the_same_gradients(schedule, detach, small, codec):
    """Bit for bit."""
    lr, found = torch.rand(2, 3, 18, 20), []
    for again in (False, True):
        net = network(small(schedule=schedule, detach=detach, rounds=2, checkpoint_activations=again), codec).train()
        out = net(lr, 2, 0.01)
        (out.sr.square().mean() + out.codes.abs().mean()).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("scales", [(2,), (2, 3, 4)])
@pytest.mark.parametrize("initial_kernel", ["delta", "mean", "spectral"])
def test_every_parameter_takes_part_in_every_training_forward(scales, initial_kernel, small, codec):
    """What data-parallel training needs: also the heads of scales that this batch has not."""
    net = network(small(scales=scales, initial=initial_kernel), codec).train()
    out = net(torch.rand(2, 3, 18, 20), 2, 0.0)
    (out.sr.mean() + out.codes.mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_model_restores_all_its_scales_and_no_other(scale, small, codec):
    net, lr = network(small(scales=(2, 3, 4)), codec), torch.rand(1, 3, 18, 13)
    assert net(lr, scale, 0.0).sr.shape == (1, 3, 18 * scale, 13 * scale)
    with pytest.raises(ValueError, match=r"scale 1 for images \(1, 3, 18, 13\); this model restores 2, 3, 4"):
        net(lr, 1, 0.0)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_estimate_depends_on_both_of_its_inputs(scale):
    torch.manual_seed(0)
    estimator = Estimator((scale,), 8, 2, 5).eval()
    lr, sr = torch.rand(1, 3, 9, 10), torch.rand(1, 3, 9 * scale, 10 * scale)
    code = estimator(lr, sr, scale)
    # Flat instead of textured: inputs of the same statistics would be pooled to nearly the same code.
    for other in (estimator(lr * 0, sr, scale), estimator(lr, sr * 0, scale)):
        assert (code - other).norm() > 0.02 * code.norm()


def test_the_estimate_ignores_brightness_tint_and_contrast():
    torch.manual_seed(0)
    estimator = Estimator((2,), 8, 2, 5).eval()
    lr, sr = torch.rand(2, 3, 9, 10), torch.rand(2, 3, 18, 20)
    tint = torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    code = estimator(lr, sr, 2)
    torch.testing.assert_close(estimator(lr + tint, sr + tint, 2), code, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        estimator(1.5 * lr, 1.5 * sr, 2), code, atol=0.03 * float(code.detach().std()), rtol=0.05
    )


def test_models_made_before_see_images_as_they_are_and_correct_the_deltas_code(small, codec):
    torch.manual_seed(0)
    plain = Estimator((2,), 8, 2, 5, normalised=False).eval()
    lr, sr = torch.rand(1, 3, 9, 10), torch.rand(1, 3, 18, 20)
    assert (plain(lr + 0.3, sr + 0.3, 2) - plain(lr, sr, 2)).norm() > 0.02 * plain(lr, sr, 2).norm()
    net = BlindUSRNet(small(initial="delta", estimator={"normalised": False}), codec)
    first = net.initial(lr, 2, 0.0)
    assert torch.equal(first.code, net.encode(first.blur))


def test_estimator_has_dans_size():
    """288,596 parameters for 10 components, at every scale (DAN v1)."""
    for scale in (2, 3, 4):
        assert sum(p.numel() for p in Estimator((scale,), 32, 5, 10).parameters()) == 288_596


def test_the_sizes_of_the_published_networks(codec):
    full = ModelConfig(restorer=RestorerConfig(unfoldings=8, widths=(64, 128, 256, 512), hyper_hidden=64))
    for config, count in ((ModelConfig(), 590_332), (full, 17_016_016)):
        assert sum(p.numel() for p in BlindUSRNet(config, codec).restorer.parameters()) == count


@pytest.mark.parametrize("turn", [lambda x: x.flip(-1), lambda x: x.mT])
def test_a_net_that_knows_reductions_answers_twice_and_kernel_steps_start_from_the_second(codec, turn, monkeypatch):
    torch.manual_seed(0)
    config = ModelConfig(
        restorer=RestorerConfig(widths=(2, 2, 2, 2)), kernel=KernelConfig(reductions=True, rounds=0, steps=1)
    )
    net = BlindUSRNet(config, codec).eval()
    assert net.spectral is not None
    with torch.no_grad():
        net.spectral.rest[-1].weight.mul_(20)
    lr = torch.rand(2, 3, 45, 30)
    first, turned = net.initial(lr, 2, 0.01), net.initial(turn(lr), 2, 0.01)
    assert first.shares.sum(1).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(turned.shares, first.shares)
    torch.testing.assert_close(turned.start, turn(first.start), atol=1e-4, rtol=1e-2)
    assert float((first.start - first.blur).abs().sum((1, 2)).min()) > 0.01
    begun = []
    monkeypatch.setattr(net, "refine", lambda lr, blur, *rest: begun.append(blur) or [blur])
    with torch.no_grad():
        net.infer(lr, 2, 0.01)
    assert torch.equal(begun[0], first.start)


def test_a_net_that_knows_no_reductions_starts_kernel_steps_from_edges_at_x2_alone(codec, monkeypatch):
    torch.manual_seed(0)
    config = ModelConfig(
        scales=(2, 3), restorer=RestorerConfig(widths=(2, 2, 2, 2)), kernel=KernelConfig(rounds=0, steps=1)
    )
    net, lr, begun = BlindUSRNet(config, codec).eval(), torch.rand(2, 3, 45, 30), []
    monkeypatch.setattr(net, "refine", lambda lr, blur, *rest: begun.append(blur) or [blur])
    with torch.no_grad():
        net.infer(lr, 2, 0.01)
        net.infer(lr, 3, 0.01)
        expected = edge_kernel(lr, codec.size, 2, torch.full((2,), 0.01)), net.initial(lr, 3, 0.01).blur
    assert all(torch.equal(one, other) for one, other in zip(begun, expected, strict=True))
    assert (net.starts_from_edges(2), net.starts_from_edges(3)) == (True, False)


@pytest.mark.parametrize("reductions", [False, True])
def test_with_a_prior_kernel_steps_start_from_edges_at_every_scale(codec, monkeypatch, reductions):
    kernel = KernelConfig(rounds=0, steps=5, prior=True, reductions=reductions)
    config = ModelConfig(scales=(2, 3, 4), restorer=RestorerConfig(widths=(2, 2, 2, 2)), kernel=kernel)
    torch.manual_seed(0)
    net, lr, begun = BlindUSRNet(config, codec).eval(), torch.rand(2, 3, 45, 30), []
    monkeypatch.setattr(net, "refine", lambda lr, blur, *rest: begun.append(blur) or [blur])
    with torch.no_grad():
        for scale in config.scales:
            net.infer(lr, scale, 0.01)
            assert torch.equal(begun[-1], edge_kernel(lr, codec.size, scale, torch.full((2,), 0.01)))
    assert len(begun) == 3


def test_small_pictures_are_not_refined_by_a_prior(codec, monkeypatch):
    """Six LR pixels for each of the kernel's 11 x 11: 726, of what a camera saw."""
    kernel = KernelConfig(rounds=0, steps=5, prior=True, reductions=True)
    torch.manual_seed(0)
    net = BlindUSRNet(ModelConfig(restorer=RestorerConfig(widths=(2, 2, 2, 2)), kernel=kernel), codec).eval()
    monkeypatch.setattr(net, "refine", lambda *_: pytest.fail("refined"))
    with torch.no_grad():
        net.infer(torch.rand(1, 3, 25, 29), 2, 0.01)
        net.infer(torch.rand(1, 3, 40, 40), 2, 0.01, observed_size=(25, 29))
        first = net.initial(torch.rand(1, 3, 40, 40), 2, 0.01)._replace(start=torch.eye(11)[None] / 11)
        assert net.settled(first, (25, 29)).tolist() == [True]
        assert net.settled(first, (25, 30)).tolist() == [False]


def test_the_guard_of_a_prior_asks_the_gradients(codec, monkeypatch):
    """A refined image whose gradients are clearly less even stands, unless it explains the LR image far worse.

    Twice as bad is far worse where the kernel before was almost a Gaussian, six times elsewhere.
    """
    kernel = KernelConfig(rounds=0, steps=5, prior=True, reductions=True)
    torch.manual_seed(0)
    net = BlindUSRNet(ModelConfig(restorer=RestorerConfig(widths=(2, 2, 2, 2)), kernel=kernel), codec).eval()
    lr = torch.rand(5, 3, 45, 30)
    first = net.initial(lr, 2, 0.01)
    shaken = torch.zeros_like(first.blur)
    shaken[:, 0, 0] = shaken[:, -1, -1] = 0.5
    gaussian = matching_gaussian(first.blur)
    first = first._replace(blur=torch.cat((shaken[:3], gaussian[3:])), start=shaken)
    scores = iter([torch.tensor([5.0, 5.0, 7.0, 2.1, 1.9]), torch.ones(5)])
    spreads = iter([torch.tensor([0.8, 0.95, 0.8, 0.8, 0.8]), torch.ones(5)])
    monkeypatch.setattr("pipeline.model.guard.restoration_score", lambda *_: next(scores))
    monkeypatch.setattr("pipeline.model.guard.gradient_spread", lambda *_: next(spreads))
    with torch.no_grad():
        assert net.infer(lr, 2, 0.01, initial=first).kernel_round.tolist() == [1, 0, 0, 0, 1]


def test_kernel_steps_are_left_out_where_their_start_is_nearly_a_gaussian(codec, monkeypatch):
    torch.manual_seed(0)
    kernel = KernelConfig(reductions=True, rounds=0, steps=1)
    net = BlindUSRNet(ModelConfig(restorer=RestorerConfig(widths=(2, 2, 2, 2)), kernel=kernel), codec).eval()
    lr = torch.rand(2, 3, 45, 30)
    gaussian = matching_gaussian(net.initial(lr, 2, 0.01).blur.detach())
    other = torch.zeros_like(gaussian)
    other[:, 0, 0] = other[:, -1, -1] = 0.5
    first = net.initial(lr, 2, 0.01)._replace(start=torch.stack((gaussian[0], other[1])))
    assert net.settled(first, (45, 30)).tolist() == [True, False]
    always = (Acceptance(float("inf")),)
    monkeypatch.setattr("pipeline.model.blind.acceptance", lambda *_, **__: always)
    with torch.no_grad():
        assert net.infer(lr, 2, 0.01, initial=first).kernel_round.tolist() == [0, 1]
        monkeypatch.setattr(net, "refine", lambda *_: pytest.fail("refined"))
        out = net.infer(lr, 2, 0.01, initial=first._replace(start=gaussian))
    assert out.kernel_round.tolist() == [0, 0]
    assert len(out.rounds) == 2, "as many as of other images: tables hold a column for each"
    assert torch.equal(out.sr, out.rounds[1].sr)


def test_in_training_the_initial_kernel_is_the_nets_own(codec):
    net = BlindUSRNet(ModelConfig(restorer=RestorerConfig(widths=(2, 2, 2, 2))), codec).train()
    assert net.spectral is not None
    lr = torch.rand(2, 3, 48, 64)
    kernel, code, *_ = net.initial(lr, 2, 0.01)
    assert torch.equal(code, net.spectral(lr, 2, torch.full((2,), 0.01))[0])
    assert torch.equal(kernel, net.decode(code))


def test_schedule_covers_every_unfolding_once(codec):
    for unfoldings, rounds in itertools.product(range(2, 12), range(1, 8)):
        if rounds < unfoldings:
            net = BlindUSRNet(
                ModelConfig(
                    restorer=RestorerConfig(unfoldings=unfoldings, widths=(2, 2, 2, 2)),
                    kernel=KernelConfig(rounds=rounds),
                ),
                codec,
            )
            parts = net._parts()
            assert [i for first, last in parts for i in range(first, last)] == list(range(unfoldings))
            assert all(last > first for first, last in parts)
            assert len(parts) == rounds + 1
