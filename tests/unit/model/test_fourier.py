"""The data step against a dense solve, the published form and the degradation itself."""

import pytest
import torch

from pipeline.degrade import degrade
from pipeline.model import BlurOperator, data_step

SIZES = [(6, 7), (7, 6), (8, 8), (9, 5)]  # LR height and width: even and odd, square and not


def images(scale, height, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, scale * height, scale * width, generator=generator, dtype=dtype)
    return x, torch.rand(2, 3, height, width, generator=generator, dtype=dtype)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_is_the_minimiser_solved_densely(scale, height, width, draw_kernels):
    """(A^T A + alpha) z = A^T y + alpha x with A written out as a matrix, in float64."""
    x, y = images(scale, height, width)
    kernel = draw_kernels(2, 5, dtype=torch.float64)
    alpha = torch.tensor([1e-3, 0.5], dtype=torch.float64)[:, None, None, None]
    found = data_step(x, y, kernel, alpha, scale)
    pixels = x.shape[-2] * x.shape[-1]
    impulses = torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *x.shape[-2:])
    for i in range(2):
        A = degrade(impulses, kernel[i].expand(pixels, -1, -1), scale).reshape(pixels, -1).T
        weight = alpha[i].item()
        right = A.T @ y[i].reshape(3, -1).T + weight * x[i].reshape(3, -1).T
        expected = torch.linalg.solve(A.T @ A + weight * torch.eye(pixels, dtype=torch.float64), right)
        torch.testing.assert_close(found[i].reshape(3, -1).T, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("alpha", [1e-2, 1.0])
def test_equals_the_published_form(scale, height, width, alpha, draw_kernels, reference_step):
    """The Woodbury identity, to 1e-12 in float64."""
    x, y = images(scale, height, width, seed=1)
    kernel = draw_kernels(2, 5, seed=1, dtype=torch.float64)
    weight = torch.full((2, 1, 1, 1), alpha, dtype=torch.float64)
    expected = reference_step(x, y, kernel, weight, scale)
    torch.testing.assert_close(data_step(x, y, kernel, weight, scale), expected, atol=1e-12, rtol=0)


def test_float32_holds_where_the_published_form_does_not(draw_kernels, reference_step):
    """At alpha = 1e-6: relative error <= 1e-5, and at least 50 times smaller than by dividing by alpha."""
    x, y = images(2, 48, 48)
    y = y * 0.1 + degrade(x, draw_kernels(2, 21, dtype=torch.float64), 2) * 0.9
    kernel, alpha = draw_kernels(2, 21, dtype=torch.float64), torch.full((2, 1, 1, 1), 1e-6, dtype=torch.float64)
    exact = data_step(x, y, kernel, alpha, 2)

    def error(form):
        single = form(x.float(), y.float(), kernel.float(), alpha.float(), 2)
        return ((single.double() - exact).norm() / exact.norm()).item()

    assert error(data_step) <= 1e-5
    assert error(reference_step) > 50 * error(data_step)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_is_finite_at_alpha_1e_8_also_its_gradient(scale, draw_kernels):
    """Also for a box kernel, whose spectrum has zeros."""
    x, y = images(scale, 12, 12, dtype=torch.float32)
    kernel = torch.stack((draw_kernels(1, 5)[0], torch.full((5, 5), 0.04))).requires_grad_()
    alpha = torch.full((2, 1, 1, 1), 1e-8)
    out = data_step(x.requires_grad_(), y, kernel, alpha, scale)
    out.square().sum().backward()
    for value in (out, x.grad, kernel.grad):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_gradients_are_right_in_every_argument(scale, draw_kernels):
    x, y = images(scale, 4, 5)
    kernel = draw_kernels(2, 3, dtype=torch.float64)
    alpha = torch.tensor([0.1, 0.5], dtype=torch.float64)[:, None, None, None]
    arguments = [value.requires_grad_() for value in (x[:, :1], y[:, :1], kernel, alpha)]
    assert torch.autograd.gradcheck(lambda *a: data_step(*a, scale), arguments)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_its_operator_is_the_degradation_and_has_the_right_adjoint(scale, height, width, draw_kernels):
    x, y = images(scale, height, width)
    kernel = draw_kernels(2, 5, dtype=torch.float64)
    operator = BlurOperator.of(kernel, scale, y)
    torch.testing.assert_close(operator.apply(x), degrade(x, kernel, scale), atol=1e-12, rtol=0)
    torch.testing.assert_close((operator.apply(x) * y).sum(), (x * operator.adjoint(y)).sum())


def test_large_alpha_returns_the_previous_estimate(draw_kernels):
    x, y = images(2, 8, 8)
    out = data_step(x, y, draw_kernels(2, 5, dtype=torch.float64), torch.full((2, 1, 1, 1), 1e12), 2)
    torch.testing.assert_close(out, x, atol=1e-10, rtol=0)


def test_stays_in_float32_under_autocast(draw_kernels):
    x, y = images(2, 8, 8, dtype=torch.float32)
    kernel, alpha = draw_kernels(2, 5), torch.full((2, 1, 1, 1), 0.1)
    expected = data_step(x.bfloat16().float(), y, kernel, alpha, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = data_step(x.bfloat16(), y, kernel, alpha, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("x", "y", "kernel", "alpha", "scale", "message"),
    [
        ((1, 3, 16, 16), (1, 3, 8), (1, 5, 5), (1, 1, 1, 1), 2, r"\(1, 3, 8\)"),
        ((1, 3, 16, 15), (1, 3, 8, 8), (1, 5, 5), (1, 1, 1, 1), 2, r"\(1, 3, 16, 15\) is not 2 times"),
        ((1, 3, 16, 16), (1, 3, 8, 8), (1, 4, 4), (1, 1, 1, 1), 2, r"\(1, 4, 4\) has an even side"),
        ((1, 3, 16, 16), (1, 3, 8, 8), (3, 5, 5), (1, 1, 1, 1), 2, r"\(3, 5, 5\)"),
        ((1, 3, 16, 16), (1, 3, 8, 8), (1, 5, 3), (1, 1, 1, 1), 2, r"\(1, 5, 3\)"),
        ((1, 3, 16, 16), (1, 3, 8, 8), (1, 17, 17), (1, 1, 1, 1), 2, r"\(1, 17, 17\) is larger .* 16 x 16"),
        ((2, 3, 16, 16), (2, 3, 8, 8), (2, 5, 5), (2,), 2, r"\(2,\)"),
        ((1, 3, 0, 0), (1, 3, 8, 8), (1, 5, 5), (1, 1, 1, 1), 0, r"scale 0 for images \(1, 3, 8, 8\)"),
    ],
)
def test_refuses_what_does_not_fit_and_says_the_shape(x, y, kernel, alpha, scale, message):
    with pytest.raises(ValueError, match=message):
        data_step(torch.rand(x), torch.rand(y), torch.rand(kernel), torch.rand(alpha), scale)
