"""The measure that kernel nets are trained on: nothing for the truth, and for others what they cost the restorer."""

from __future__ import annotations

import pytest
import torch

from kernels_bank import sample_gaussian
from pipeline.model.inverse_error import inverse_error
from pipeline.seeds import rng

# dB that the shipped restorer lost when told a Gaussian of a wrong width, by scale and true width: 0.55, 0.8, 0.9, 1.1,
# 1.2 and 1.35 times as wide (means over eight photographs, no noise).
MEASURED = {
    (2, 0.8): (1.57, 0.58, 0.23, 0.07, 0.65, 2.60),
    (2, 1.2): (2.98, 1.57, 0.70, 0.65, 3.01, 6.82),
    (2, 1.8): (4.03, 2.54, 1.26, 1.56, 4.66, 8.06),
    (2, 3.2): (2.90, 1.82, 0.84, 1.40, 4.08, 7.11),
    (3, 0.8): (0.72, 0.16, 0.06, 0.00, 0.08, 0.39),
    (3, 1.2): (1.01, 0.37, 0.14, 0.09, 0.55, 2.04),
    (3, 1.8): (2.07, 1.04, 0.44, 0.51, 2.30, 5.48),
    (3, 3.2): (2.72, 1.68, 0.77, 1.15, 3.64, 6.56),
}


def gaussian(width: float) -> torch.Tensor:
    return torch.from_numpy(
        sample_gaussian(1, 25, rng=rng(0, epoch=0, key="g", purpose="test"), sigma=(width, width + 1e-6))
    )


@pytest.mark.parametrize("width", [0.6, 1.5, 3.0])
@pytest.mark.parametrize("sigma", [0.0, 0.03])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_truth_costs_nothing_and_nothing_costs_less_than_it_by_much(width, sigma, scale):
    true, level = gaussian(width), torch.tensor([sigma])
    assert float(inverse_error(true, true, level, scale)) == pytest.approx(0, abs=1e-4)
    others = [float(inverse_error(gaussian(width * factor), true, level, scale)) for factor in (0.5, 0.8, 1.25, 1.6)]
    assert min(others) > -0.1


@pytest.mark.parametrize(("scale", "width"), MEASURED)
def test_a_wrong_width_costs_what_it_costs_the_restorer(scale, width):
    """Within a factor of two, and half a dB where it is little."""
    found = [
        float(inverse_error(gaussian(width * factor), gaussian(width), torch.zeros(1), scale))
        for factor in (0.55, 0.8, 0.9, 1.1, 1.2, 1.35)
    ]
    for cost, measured in zip(found, MEASURED[scale, width], strict=True):
        assert measured / 2 - 0.5 <= cost <= 2 * measured + 0.5, (found, MEASURED[scale, width])


def test_too_wide_costs_more_than_as_much_too_narrow():
    true, level = gaussian(1.6), torch.zeros(1)
    narrow, wide = (float(inverse_error(gaussian(width), true, level, 2)) for width in (1.2, 2.0))
    assert wide > 1.5 * narrow > 0


def test_a_narrow_blur_matters_less_the_larger_the_scale():
    """What it takes away lies beyond the frequencies that the LR image holds."""
    costs = [float(inverse_error(gaussian(0.5), gaussian(0.8), torch.zeros(1), scale)) for scale in (1, 2, 3, 4)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 5 * costs[3] > 0


def test_it_has_a_gradient_towards_the_truth():
    true = gaussian(1.6)
    kernel = gaussian(2.0).requires_grad_()
    inverse_error(kernel, true, torch.zeros(1), 2).sum().backward()
    assert kernel.grad is not None
    direction = true - kernel.detach()
    assert float((kernel.grad * direction).sum()) < 0
