"""The measure that kernel nets are trained on: nothing for the truth, much for what rings."""

from __future__ import annotations

import pytest
import torch

from kernels_bank import sample_gaussian
from pipeline.model.inverse_error import inverse_error
from pipeline.seeds import rng


def gaussian(width: float) -> torch.Tensor:
    return torch.from_numpy(
        sample_gaussian(1, 25, rng=rng(0, epoch=0, key="g", purpose="test"), sigma=(width, width + 1e-6))
    )


@pytest.mark.parametrize("width", [0.6, 1.5, 3.0])
@pytest.mark.parametrize("sigma", [0.0, 0.03])
def test_the_truth_costs_nothing_and_nothing_costs_less_than_it_by_much(width, sigma):
    true, level = gaussian(width), torch.tensor([sigma])
    assert float(inverse_error(true, true, level)) == pytest.approx(0, abs=1e-4)
    others = [float(inverse_error(gaussian(width * factor), true, level)) for factor in (0.5, 0.8, 1.25, 1.6)]
    assert min(others) > -0.1
    assert max(others) > 0.3


def test_too_wide_costs_more_than_as_much_too_narrow():
    true, level = gaussian(1.6), torch.zeros(1)
    narrow, wide = (float(inverse_error(gaussian(width), true, level)) for width in (1.2, 2.0))
    assert wide > 2 * narrow > 0


def test_it_has_a_gradient_towards_the_truth():
    true = gaussian(1.6)
    kernel = gaussian(2.0).requires_grad_()
    inverse_error(kernel, true, torch.zeros(1)).sum().backward()
    assert kernel.grad is not None
    direction = true - kernel.detach()
    assert float((kernel.grad * direction).sum()) < 0
