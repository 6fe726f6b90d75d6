"""The roofline's picture: every convolution of a step is counted, with the flop that PyTorch's own counter finds."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model_config import RestorerConfig
from tools import make_speed_figure
from tools.make_speed_figure import Convolution, Work, measure_convolutions
from tools.roofline import Machine

SMALL = RestorerConfig(widths=(4, 4, 8, 8), unfoldings=3, residual_blocks=1, x0="nearest", global_skip=False)


@pytest.mark.parametrize("trains", [False, True])
def test_the_flop_of_a_step_are_those_of_the_flop_counter(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_speed_figure, "ROUNDS", 1)
    work = Work(SMALL, images=2, side=32, trains=trains)
    with FlopCounterMode(display=False) as counter:
        make_speed_figure._step(make_speed_figure._network(work), work)()
    counted = {str(name): flop for name, flop in counter.get_flop_counts()["Global"].items() if "conv" in str(name)}
    found = sum(c.count * c.flop for c in measure_convolutions(work))
    # Less the gradients of images that nothing is learnt from: of the first unfolding's, and of the hyper-network's.
    assert found == pytest.approx(sum(counted.values()), rel=0.02 if trains else 0)


def test_what_the_machine_allows_is_set_by_the_slower_of_products_and_memory() -> None:
    machine = Machine(product=1e9, fft=1.0, memory=1e8)
    assert Convolution(count=3, flop=2e9, moved=1e7, seconds=9.0).least(machine) == pytest.approx(6.0)
    assert Convolution(count=3, flop=1e6, moved=1e8, seconds=9.0).least(machine) == pytest.approx(3.0)
