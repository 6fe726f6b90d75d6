"""bf16 where the processor is faster at it: measured, said, and as good as the same picture."""

import numpy as np
import pytest
import torch

from pipeline.inference import Restorer, precision
from pipeline.inference.precision import chosen, gain_of_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize(("gain", "expected"), [(0.6, "float32"), (1.3, "float32"), (1.9, "bf16")])
def test_auto_takes_what_is_clearly_faster(gain, expected, monkeypatch):
    monkeypatch.setattr(precision, "gain_of_bf16", lambda: gain)
    assert chosen("auto", CPU) == expected
    assert chosen("auto", torch.device("cuda")) == "float32"
    assert (chosen("float32", CPU), chosen("bf16", CPU)) == ("float32", "bf16")


def test_the_measurement_is_made_once_and_leaves_the_threads_alone():
    before = torch.get_num_threads()
    gain_of_bf16.cache_clear()
    assert gain_of_bf16() == gain_of_bf16()
    assert gain_of_bf16.cache_info().misses == 1
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def both() -> dict[str, Restorer]:
    model = "shipped:blind-sr-camera"
    return {name: Restorer.load(model, CPU, name) for name in ("float32", "bf16")}


def test_bf16_restores_the_same_picture_and_estimates_the_same_kernel(both, photo):
    """A fifth of a grey level apart, and no kernel moves: the arithmetic over kernels is float32."""
    single, half = (both[name].restore(photo, 2, 0.01) for name in ("float32", "bf16"))
    assert np.abs(single.kernel - half.kernel).sum() < 0.01
    difference = single.image.astype(float) - half.image
    assert 0 < np.sqrt(np.square(difference).mean()) < 0.5
    assert both["bf16"].precision == "bf16"
    assert both["bf16"].on(CPU).precision == "bf16"


def test_float32_is_what_python_gets_unless_it_asks(both, photo):
    plain = Restorer.load("shipped:blind-sr-camera", CPU)
    assert plain.precision == "float32"
    assert np.array_equal(plain.restore(photo, 2, 0.01).image, both["float32"].restore(photo, 2, 0.01).image)
