"""Draw the picture of docs/speed.md: convolutions and whole steps compared with the limits of this machine.

python -m tools.make_speed_figure

CPU seconds of one thread. On the left, each convolution of the restorer is on the roofline: its flop per second over
its flop per byte. On the right whole steps are compared with the published form of the network.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor, nn

from pipeline.inference.allocator import keep_freed_memory
from pipeline.model import USRNet
from pipeline.model_config import RestorerConfig
from tests.published import FULL, TINY, PublishedUSRNet, random_samples, training_step
from tools.roofline import Machine, convolution_flop, least_seconds, measure_machine

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "roofline.png"
SCALE, PATCH, PICTURE_SIDE, ROUNDS = 2, 96, 400, 5
COLOURS = {"restoring, tiny": "#3b7dbf", "a training step, tiny": "#4d9a4a", "a training step, full": "#c1772f"}


class Work(NamedTuple):
    """Describe a measurement: a network, number and side of HR images, and whether it trains."""

    config: RestorerConfig
    images: int
    side: int
    trains: bool
    wanted: float | None = None  # target speed-up over the published form


WORKS = {
    "restoring, tiny": Work(TINY, 1, PICTURE_SIDE, trains=False),
    "a training step, tiny": Work(TINY, 8, PATCH, trains=True, wanted=1.5),
    "a training step, full": Work(FULL, 1, PATCH, trains=True, wanted=1.25),
}


@dataclass(frozen=True)
class Convolution:
    """Hold one kind of convolution in a step: its number of runs, and flop, bytes and seconds of a single run."""

    count: int
    flop: float
    moved: float
    seconds: float

    def least(self, machine: Machine) -> float:
        """Return the least seconds of this machine for all runs."""
        return self.count * machine.least(self.flop, self.moved)


class Steps(NamedTuple):
    """Hold the seconds of one step: the published form, ours in float32 and in bf16, and the least by the roofline."""

    published: float
    ours: float
    bf16: float
    least: float


def main() -> None:
    """Measure and draw."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    keep_freed_memory()
    machine = measure_machine()
    print(machine)
    convolutions = {name: measure_convolutions(work) for name, work in WORKS.items()}
    steps = {
        name: measure_steps(work, sum(c.least(machine) for c in convolutions[name])) for name, work in WORKS.items()
    }
    for name, found in steps.items():
        times = f"{found.ours:.2f} s, published form {found.published:.2f}, bf16 {found.bf16:.2f}"
        print(f"{name}: {times}, at least {found.least:.2f}")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(1.25, 1))
    draw_roofline(left, machine, convolutions)
    draw_steps(right, steps)
    figure.suptitle(str(machine), fontsize=9)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=100)
    plt.close(figure)


def measure_convolutions(work: Work) -> list[Convolution]:
    """Measure each distinct convolution of a step, forward, and backward if it trains.

    The backward pass of a convolution consists of two: one with respect to its image, one to its weights.
    """
    seen: dict[tuple, tuple[nn.Module, Tensor]] = {}
    counts: Counter[tuple] = Counter()

    def look(module: nn.Module, images: tuple[Tensor], _: Tensor) -> None:
        key = (type(module), module.weight.shape, module.stride, images[0].shape)
        seen[key] = module, images[0].detach()
        counts[key] += 1

    network = _network(work)
    watched = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    hooks = [module.register_forward_hook(look) for module in watched]
    lr, _, kernel, sigma = random_samples(work.images, work.side, SCALE)
    with torch.no_grad():
        network(lr, kernel, SCALE, sigma)
    for hook in hooks:
        hook.remove()
    return [found for key, (module, image) in seen.items() for found in _alone(module, image, counts[key], work.trains)]


def measure_steps(work: Work, least: float) -> Steps:
    """Measure one step of the published form and of ours, in turn.

    Args:
        work: the step.
        least: least seconds of its convolutions.
    """
    torch.manual_seed(0)
    plain = PublishedUSRNet(work.config)
    ours = _network(work)
    steps = _step(plain, work, fused=False), _step(ours, work), _step(ours, work, bf16=True)
    return Steps(*least_seconds(*steps, rounds=ROUNDS), least)


def draw_roofline(axes: Axes, machine: Machine, convolutions: dict[str, list[Convolution]]) -> None:
    """Draw the roof, and each convolution below it, sized by its share of the step's convolutions.

    Args:
        axes: axes to draw on.
        machine: rates of the machine.
        convolutions: convolutions by the name of the work.
    """
    intensity = np.geomspace(1, 1000, 200)
    axes.loglog(intensity, np.minimum(machine.product, intensity * machine.memory) / 1e9, color="#444", lw=1.5)
    for name, measured in convolutions.items():
        whole = sum(c.count * c.seconds for c in measured)
        found = [c for c in measured if c.count * c.seconds > 0.001 * whole]  # not the hyper-parameter net's
        axes.scatter(
            [c.flop / c.moved for c in found],
            [c.flop / c.seconds / 1e9 for c in found],
            s=[15 + 600 * c.count * c.seconds / whole for c in found],
            color=COLOURS[name],
            alpha=0.55,
            edgecolors="white",
        )
    axes.text(1000, machine.product / 1e9, "products", ha="right", va="bottom", fontsize=8)
    axes.text(1.5, 1.5 * machine.memory / 1e9, "memory", ha="right", va="bottom", fontsize=8)
    axes.set_xlabel("flop a byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Each convolution of the restorer; area: its share of the step's", fontsize=9)
    for name, colour in COLOURS.items():
        axes.scatter([], [], color=colour, label=name)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)


def draw_steps(axes: Axes, steps: dict[str, Steps]) -> None:
    """Draw the speed-up of each step over the published form, with the target and the limit.

    Args:
        axes: axes to draw on.
        steps: steps by the name of the work.
    """
    for row, (name, found) in enumerate(steps.items()):
        bars = [("float32", found.ours, 1.0), ("bf16", found.bf16, 0.45)]
        for place, (label, seconds, alpha) in enumerate(bars):
            ratio, y = found.published / seconds, row + 0.32 * place
            axes.barh(y, ratio, height=0.28, color=COLOURS[name], alpha=alpha)
            axes.text(0.03, y, f"{label} {ratio:.2f}x", va="center", fontsize=8)
        roof, wanted = found.published / found.least, WORKS[name].wanted
        axes.plot([roof, roof], [row - 0.2, row + 0.52], color="#444", lw=2)
        axes.text(roof, row - 0.22, f"roof of float32 {roof:.2f}x", ha="center", va="bottom", fontsize=8)
        if wanted:
            axes.plot([wanted, wanted], [row - 0.2, row + 0.52], color="#c03030", lw=1.5, ls="--")
            axes.text(wanted, row + 0.54, f"wanted {wanted:g}x", ha="center", va="top", fontsize=8, color="#c03030")
    axes.axvline(1, color="#999", lw=0.8)
    axes.set_yticks([row + 0.16 for row in range(len(steps))], list(steps), fontsize=8)
    axes.set_ylim(len(steps) - 0.2, -0.6)
    axes.set_xlabel("times as fast as the published form")
    axes.set_title("Whole steps; the roof: all convolutions at it, all else free", fontsize=9)


def _network(work: Work) -> USRNet:
    torch.manual_seed(0)
    return USRNet(work.config).to(memory_format=torch.channels_last).train(work.trains)  # type: ignore[call-overload]


def _step(network: nn.Module, work: Work, *, fused: bool = True, bf16: bool = False) -> Callable[[], None]:
    samples = random_samples(work.images, work.side, SCALE)
    if work.trains:
        return training_step(network, samples, SCALE, fused=fused, bf16=bf16)
    lr, _, kernel, sigma = samples

    def restore() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(lr, kernel, SCALE, sigma)

    return restore


def _alone(module: nn.Module, image: Tensor, count: int, trains: bool) -> Iterator[Convolution]:
    """Run one convolution alone; yield it forward, then backward."""
    with torch.no_grad():
        out = module(image)
        (forward,) = least_seconds(lambda: module(image), rounds=ROUNDS)
    weight: Tensor = module.weight  # type: ignore[assignment]
    flop, moved = convolution_flop(out, module, image), 4 * (image.numel() + out.numel() + weight.numel())
    yield Convolution(count, flop, moved, forward)
    if not trains:
        return
    image, gradient = image.requires_grad_(), torch.rand_like(out)
    (both,) = least_seconds(lambda: module(image).backward(gradient), rounds=ROUNDS)
    yield Convolution(count, 2 * flop, 2 * moved, max(both - forward, 1e-9))


if __name__ == "__main__":
    main()
