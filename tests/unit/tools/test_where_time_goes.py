"""Where the time goes: every second is counted once, under the innermost stage, and what is watched stays as it is."""

from __future__ import annotations

import inspect
import time

import pytest
import torch
from torch import nn

from pipeline.model import BlurOperator
from pipeline.model.fourier import spectrum
from tools.roofline import Machine
from tools.stopwatch import Point, Stopwatch
from tools.where_time_goes import Row, parts, points, stages, table

MACHINE = Machine(product=1e9, fft=1e9, memory=1e9)


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Work:
    """Something to watch."""

    def outer(self) -> None:
        busy(0.02)
        self.inner()

    def inner(self) -> None:
        busy(0.05)

    @classmethod
    def fail(cls) -> None:
        busy(0.01)
        raise RuntimeError("as it does")


POINTS = [Point(Work, "outer", "outer"), Point(Work, "inner", "inner"), Point(Work, "fail", "fail")]


def test_what_is_inside_is_taken_off_and_all_of_it_adds_up() -> None:
    watched, started = Stopwatch(), time.thread_time()
    with watched.watch(POINTS), watched.stage("whole"):
        Work().outer()
        Work().inner()
        with pytest.raises(RuntimeError, match="as it does"):
            Work.fail()
    spent = time.thread_time() - started
    assert watched.total("outer") == pytest.approx(0.02, abs=0.01)
    assert watched.total("inner") == pytest.approx(0.10, abs=0.01)
    assert watched.total("inner", inside="outer") == pytest.approx(0.05, abs=0.01)
    assert watched.total("fail") == pytest.approx(0.01, abs=0.01)
    assert sum(watched.seconds.values()) == pytest.approx(spent, abs=0.005)


def test_what_was_watched_is_as_before_also_after_an_error() -> None:
    before = [inspect.getattr_static(point.owner, point.name) for point in POINTS]
    with pytest.raises(RuntimeError), Stopwatch().watch(POINTS):
        Work.fail()
    assert [inspect.getattr_static(point.owner, point.name) for point in POINTS] == before


@pytest.mark.parametrize(
    ("module", "products"),
    [
        # By hand: 64 x 64 pixels of 8 channels, each a sum of 9 x 4 products; 32 x 32 of 4 channels, each to 2 x 2 x 8.
        (nn.Conv2d(4, 8, 3, padding=1, bias=False), 64 * 64 * 8 * 9 * 4),
        (nn.ConvTranspose2d(4, 8, 2, 2, bias=False), 32 * 32 * 4 * 2 * 2 * 8),
    ],
)
def test_a_convolution_takes_two_flop_a_product_or_its_bytes(module: nn.Module, products: int) -> None:
    image = torch.rand(1, 4, 32, 32) if isinstance(module, nn.ConvTranspose2d) else torch.rand(1, 4, 64, 64)
    out = module(image)
    assert Machine(1e9, 1.0, 1e30).convolution(out, module, image) == pytest.approx(2e-9 * products)
    moved = 4 * (image.numel() + out.numel())
    assert Machine(1e30, 1.0, 1e9).convolution(out, module, image) == pytest.approx(1e-9 * moved)


def test_a_transform_and_its_inverse_take_the_same_and_are_all_of_a_data_step_that_is_counted() -> None:
    y, kernel = torch.rand(1, 3, 16, 16), torch.ones(1, 3, 3) / 9
    operator, watched = BlurOperator.of(kernel, 2, y), Stopwatch()
    with watched.watch(points(MACHINE)), watched.stage("whole"):
        operator.step(torch.rand(1, 3, 32, 32), spectrum(y), torch.ones(1, 1, 1, 1))
    # Three transforms: of y (16 x 16), and there and back (32 x 32).
    assert watched.bound("FFTs") == pytest.approx(2.5e-9 * (3 * 256 * 8 + 2 * 3 * 1024 * 10))
    assert watched.total("FFTs", inside="the data step's rest") > 0


def test_both_tables_of_a_photograph_have_all_of_its_seconds() -> None:
    watched = Stopwatch()
    watched.seconds.update(
        {
            ("decode",): 1.0,
            ("other",): 2.0,
            ("other", "the guard and its restorations"): 4.0,
            ("other", "the guard and its restorations", "initial kernel", "convolutions"): 8.0,
            ("other", "the guard and its restorations", "kernel steps"): 16.0,
            ("other", "the guard and its restorations", "kernel steps", "unfoldings", "convolutions"): 32.0,
            ("other", "the guard and its restorations", "kernel steps", "FFTs"): 64.0,
            ("other", "restore", "unfoldings", "the prior's rest", "convolutions"): 128.0,
        }
    )
    by_stage = {row.name: row.seconds for row in stages(watched) if row.seconds}
    assert by_stage == {
        "decode": 1.0,
        "other": 2.0,
        "the guard and its restorations": 4.0,
        "initial kernel": 8.0,
        "kernel steps": 80.0,
        "restorations for the steps": 32.0,
        "restore": 128.0,
    }
    by_part = {row.name: row.seconds for row in parts(watched) if row.seconds}
    assert by_part == {"convolutions": 168.0, "FFTs": 64.0, "all else": 23.0}


def test_a_table_has_shares_of_the_whole_and_bars_in_proportion() -> None:
    lines = table([Row("long", 0.75, 0.5), Row("short", 0.25)]).splitlines()
    assert lines[2:] == [f"| long | 750 | 500 | 75% | {18 * '█'} |", f"| short | 250 |  | 25% | {6 * '█'} |"]
    assert "at least" not in table([Row("one", 1.0)])


def test_every_point_is_there() -> None:
    """A function that moved would be left out of the tables silently."""
    assert all(callable(getattr(point.owner, point.name)) for point in points(MACHINE))
