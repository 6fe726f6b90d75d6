"""Running sums in a fixed order, as a deterministic training on a card needs them."""

import pytest
import torch

from kernels_bank.simplex import shifted_sums


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 441])
def test_shifted_sums_are_running_sums(length: int):
    values = torch.rand(3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(length)) - 0.5
    torch.testing.assert_close(shifted_sums(values), values.cumsum(-1), rtol=1e-13, atol=1e-13)
