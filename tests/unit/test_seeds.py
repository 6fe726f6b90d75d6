"""Draws depend on every part of the key and on nothing else, in any process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipeline.seeds import fraction, rng, torch_seed

KEY = {"epoch": 3, "key": "abc/0", "purpose": "noise"}


def test_same_key_same_draw_in_another_process():
    script = "from pipeline.seeds import rng; print(rng(7, epoch=3, key='abc/0', purpose='noise').integers(1 << 62))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(out) == rng(7, **KEY).integers(1 << 62)


@pytest.mark.parametrize("change", [{"epoch": 4}, {"key": "abc/1"}, {"purpose": "crop"}])
def test_every_part_of_the_key_matters(change: dict):
    assert rng(7, **KEY).integers(1 << 62) != rng(7, **(KEY | change)).integers(1 << 62)
    assert torch_seed(7, **KEY) != torch_seed(7, **(KEY | change))
    assert rng(7, **KEY).integers(1 << 62) != rng(8, **KEY).integers(1 << 62)


def test_fraction_is_uniform():
    values = np.array([fraction(str(i), purpose="split") for i in range(4000)])
    assert 0 <= values.min() < values.max() < 1
    assert np.abs(np.histogram(values, 10, (0, 1))[0] / 400 - 1).max() < 0.2
