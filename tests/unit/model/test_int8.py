"""Matrices that a file keeps as 8 bit integers."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from kernels_bank.runtime.errors import ArtefactError
from pipeline.model.int8 import packed, unpacked
from pipeline.model.tensors import read_tensors

NAME = "first.weight"


@given(
    arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    )
)
def test_no_value_changes_by_more_than_half_a_step_of_its_column(values: np.ndarray):
    matrix = torch.from_numpy(values)
    kept = packed(NAME, matrix)
    assert kept[NAME].dtype == torch.int8
    back = unpacked(kept)[NAME].double()
    half_a_step = matrix.double().abs().amax(0, keepdim=True) / 127 / 2
    assert ((back - matrix).abs() <= half_a_step * (1 + 1e-5) + 1e-37).all()


def test_a_file_gives_the_matrix_under_its_name_and_all_else_as_it_is():
    matrix, bias = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.ones(4, dtype=torch.float16)
    state = read_tensors(save({"first.bias": bias, **packed(NAME, matrix)}), "weights.safetensors")
    assert sorted(state) == ["first.bias", NAME]
    assert state["first.bias"].dtype == torch.float16
    torch.testing.assert_close(state[NAME], matrix, atol=float(matrix.abs().max()) / 254, rtol=0)


def test_steps_that_are_infinite_are_refused_by_the_matrix_name():
    kept = packed(NAME, torch.ones(2, 2))
    kept[f"{NAME}.step"][0] = torch.inf
    with pytest.raises(ArtefactError, match=f"{NAME} is not finite"):
        read_tensors(save(kept), "weights.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {f"{NAME}.step": torch.ones(2)},
        {f"{NAME}.step": torch.ones(1, 3)},
        {f"{NAME}.step": torch.ones(1, 2, dtype=torch.int32)},
        {NAME: torch.ones(2, 2, dtype=torch.int16)},
        {NAME: torch.ones(2, dtype=torch.int8)},
    ],
)
def test_what_is_not_packed_so_stays_and_is_refused_as_any_other_tensor(change: dict[str, torch.Tensor]):
    kept = packed(NAME, torch.ones(2, 2)) | change
    assert unpacked(kept) == kept
