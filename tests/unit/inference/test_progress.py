"""Progress: it never falls, ends at exactly 1, foretells the rest, and changes nothing of the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data

from kernels_bank import benchmark_kernels
from pipeline.inference import work
from pipeline.inference.progress import NOBODY, Meter, RemainingTime, Step
from pipeline.inference.restorer import Restorer
from pipeline.inference.windows import Settings
from pipeline.model_config import RestorerConfig
from tests.unit.inference.test_layout import limit


def told(restorer: Restorer, image: np.ndarray, **arguments) -> tuple[np.ndarray, list[Step]]:
    steps: list[Step] = []
    restored = restorer.restore(image, 2, on_step=steps.append, **arguments)
    return restored.image, steps


def lawful(steps: list[Step]) -> None:
    shares = [step.share for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(share < 1 for share in shares[:-1])
    assert all(0 <= step.done <= step.total for step in steps)
    assert steps[-1].done == steps[-1].total


def stages(steps: list[Step]) -> dict[str, tuple[int, int]]:
    """The last done and the total of each stage, in the order in which they began."""
    return {step.stage: (step.done, step.total) for step in steps}


@pytest.fixture(scope="module")
def shipped() -> Restorer:
    return Restorer.load("shipped:blind-sr-x2", device=torch.device("cpu"))


def test_a_blind_restoration_tells_places_steps_and_windows(shipped, photo):
    image, steps = told(shipped, photo)
    lawful(steps)
    assert stages(steps) == {"place": (0, 1), "kernel step": (6, 6), "window": (1, 1)}
    np.testing.assert_array_equal(image, shipped.restore(photo, 2).image)


def test_many_windows_are_counted_and_shown_as_they_are_finished(lively):
    image = data.astronaut()[:176, :240]
    kernel = benchmark_kernels(21)[0]
    settings = Settings(2, 0.0, kernel, False, 0, None, None)
    restored, steps = told(
        lively, image, sigma=0.0, kernel=kernel, max_memory=limit(lively, image.shape[:2], settings, 4)
    )
    lawful(steps)
    assert list(stages(steps)) == ["window"]
    assert steps[-1].total > 1
    shown = [step.part for step in steps if step.part is not None]
    assert len(shown) == steps[-1].total
    covered = np.zeros(restored.shape, bool)
    for part in shown:
        height, width = part.pixels.shape[:2]
        place = slice(part.top, part.top + height), slice(part.left, part.left + width)
        covered[place] = True
        assert np.abs(part.pixels * 255 - restored[place]).max() < 2
    assert covered.all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_field": True},
        {"self_ensemble": True, "kernel": benchmark_kernels(21)[0]},
        {"trust": 0.5},
        {"strength": 0.5},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_the_laws_hold_however_it_is_restored(restorer, photo, arguments):
    ramp = np.tile(np.arange(photo.shape[1], dtype=np.uint8), (photo.shape[0], 1))
    image, steps = told(restorer, np.dstack([photo, ramp]), **arguments)
    lawful(steps)
    np.testing.assert_array_equal(image, restorer.restore(np.dstack([photo, ramp]), 2, **arguments).image)


def test_the_rest_is_foretold_within_a_third_after_a_fifth(shipped):
    """A clock that moves by what each operation costs, each kind a seventh faster or slower than was measured."""
    now, moved = [0.0], []
    rates = {"unfolding": 1.15e-9, "kernel step": 0.87e-9}
    network = shipped.network
    pass_work = work.unfolding(network.config.restorer)

    def slow(pixels: int, tick):
        def timed(what: str) -> None:
            cost = pass_work * pixels if what == "unfolding" else work.kernel_step(shipped)
            now[0] += cost * rates[what]
            moved.append(what)
            tick(what)

        return timed

    class Timed(Restorer):
        def blind(self, lr, scale, sigma, observed=None, grid="corner", tick=None, first=None):
            pixels = lr.shape[-1] * lr.shape[-2] * scale**2
            return super().blind(lr, scale, sigma, observed, grid, slow(pixels, tick), first)

        def nonblind(self, lr, kernel, scale, sigma, x0=None, tick=None):
            pixels = lr.shape[-1] * lr.shape[-2] * scale**2
            return super().nonblind(lr, kernel, scale, sigma, x0, slow(pixels, tick))

    timed = Timed(network, uri="timed", digest="", device=shipped.device, trust=shipped.trust)
    remaining, seen = RemainingTime(lambda: now[0]), []
    timed.restore(
        data.astronaut()[:150, :300], 2, on_step=lambda step: seen.append((now[0], remaining.seconds(step.share)))
    )
    total = now[0]
    assert set(moved) == {"unfolding", "kernel step"}
    judged = [(at, left) for at, left in seen if total / 5 <= at < 0.95 * total]
    assert len(judged) > 20
    for at, left in judged:
        assert left == pytest.approx(total - at, rel=1 / 3)


def test_no_time_is_said_before_anything_is_done():
    clock = [5.0]
    remaining = RemainingTime(lambda: clock[0])
    assert remaining.seconds(0.0) is None
    clock[0] = 15.0
    assert remaining.seconds(0.25) == pytest.approx(30)
    assert remaining.seconds(1.0) == 0


def test_pieces_are_replaced_split_and_dropped():
    steps: list[Step] = []
    meter = Meter(steps.append)
    first, second = meter.piece(10), meter.piece(30)
    first.at("place", 0, 2)
    first.add(10)
    assert steps[-1].share == 0.25
    second.expect(90)
    second.at("window", 0, 3)
    assert steps[-1] == Step("window", 0, 3, 0.25), "it never falls"
    parts = second.split("kernel", 3, lambda number: 10.0 * number)
    parts[2].at("window", 0, 9)
    assert (steps[-1].stage, steps[-1].done, steps[-1].total) == ("kernel", 2, 3)
    second.end()
    parts[2].add(20)
    assert steps[-1].share == pytest.approx(30 / 40)
    parts[1].end()
    parts[2].add(5)
    assert steps[-1].share == 0.999, "more than was expected is not the end"
    meter.finish()
    assert steps[-1] == Step("kernel", 3, 3, 1.0)


def test_without_a_listener_nothing_is_counted():
    piece = Meter().piece(10)
    piece.at("window", 0, 1)
    piece.add(5)
    assert piece.left == 10
    assert NOBODY.split("kernel", 2, lambda _: pytest.fail("asked")) == [NOBODY, NOBODY]


def test_a_listener_that_raises_ends_the_restoration(shipped, photo):
    """Cancelled at a kernel step: no further unfolding is run."""

    class EnoughError(Exception):
        pass

    def listen(step: Step) -> None:
        seen.append(step)
        if (step.stage, step.done) == ("kernel step", 2):
            raise EnoughError

    seen: list[Step] = []
    with pytest.raises(EnoughError):
        shipped.restore(photo, 2, on_step=listen)
    assert (seen[-1].stage, seen[-1].done) == ("kernel step", 2)


def test_an_unfolding_costs_what_its_convolutions_multiply():
    """Counted by hooks on the convolutions of a network that runs."""
    from torch import nn

    from pipeline.model import USRNet

    config = RestorerConfig(unfoldings=1, widths=(4, 8, 12, 16), residual_blocks=2, global_skip=True)
    network, pairs = USRNet(config), [0]

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        where = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        pairs[0] += where.shape[-1] * where.shape[-2] * module.weight.numel()

    for module in network.p.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network.p(torch.zeros(1, 3, 32, 48), torch.zeros(1))
    assert (work.unfolding(config) - work._DATA_STEP) * work._MULTIPLICATIONS == pytest.approx(pairs[0] / (32 * 48))
