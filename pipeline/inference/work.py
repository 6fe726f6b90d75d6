"""The cost of the parts of a restoration, for progress and remaining time.

The unit is a nanosecond of one core that multiplies 51 pairs in it, as on the machine where all costs were measured (x2
and x4, crops of 96 to 400 LR pixels, shipped network). Only the ratios matter: they give the progress of a restoration,
and a clock gives the speed of this machine.
"""

from __future__ import annotations

from pipeline.inference.boundary import friendly_length
from pipeline.inference.layout import Layout, Span, torus_margin
from pipeline.inference.network import LoadedNetwork
from pipeline.model import restorer_of
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig

_MULTIPLICATIONS = 51.0  # per nanosecond
_DATA_STEP = 35.0  # per HR pixel and unfolding
_BAND = 2100.0  # per LR pixel of a window that has a part of the torus' band
_INITIAL, _INITIAL_ALONE = 350.0, 8e6  # per LR pixel of a crop; per crop
_KERNEL_STEP, _SIDE = 55e6, 25  # per step, for kernels of this side: their equations have side^2 unknowns
_JUDGE = 300.0  # per HR pixel


def unfolding(config: RestorerConfig) -> float:
    """Return the cost of one unfolding per HR pixel."""
    pairs = float(7 * 9 * config.widths[0])  # first and last convolution
    for level, (width, deeper) in enumerate(zip(config.widths, [*config.widths[1:], 0], strict=True)):
        sides = 1 if deeper == 0 else 2  # on the way down and on the way up
        pairs += sides * config.residual_blocks * 2 * 9 * width**2 / 4**level
        pairs += sides * 4 * width * deeper / 4 ** (level + 1)
    return _DATA_STEP + pairs / _MULTIPLICATIONS


def estimate(network: LoadedNetwork, side: tuple[int, int], scale: int, places: int) -> float:
    """Return the cost of estimating a kernel.

    Args:
        network: a blind network.
        side: (h, w) of a place, LR pixels.
        scale: s.
        places: number of places; at one of them the kernel is refined.
    """
    config = network.network.config
    if not isinstance(config, ModelConfig):
        return 0.0
    passes = _passes(config.kernel, config.restorer.unfoldings) * crop_pass(network, side, scale)
    return places * initial(side) + passes + config.kernel.steps * kernel_step(network)


def initial(side: tuple[int, int]) -> float:
    """Return the cost of the initial kernel of a crop of (h, w) LR pixels."""
    return _INITIAL_ALONE + _INITIAL * side[0] * side[1]


def crop_pass(network: LoadedNetwork, side: tuple[int, int], scale: int) -> float:
    """Return the cost of one unfolding of a crop of (h, w) LR pixels and its band."""
    around = torus_margin(scale, network.kernel_side)
    pixels = friendly_length(side[0] + around) * friendly_length(side[1] + around) * scale**2
    return pixels * unfolding(restorer_of(network.network).config)


def passes(network: LoadedNetwork, size: tuple[int, int], scale: int) -> float:
    """Return the cost of restoring (h, w) LR pixels with a known kernel, without their surroundings.

    Args:
        network: the model.
        size: (h, w).
        scale: s.
    """
    config = restorer_of(network.network).config
    return config.unfoldings * unfolding(config) * size[0] * size[1] * scale**2


def kernel_step(network: LoadedNetwork) -> float:
    """Return the cost of one closed-form kernel step."""
    return _KERNEL_STEP * (network.kernel_side / _SIDE) ** 4


def band(row: Span, column: Span, size: tuple[int, ...]) -> float:
    """Return the cost of filling the band of a window: zero if the window is inside the image.

    Args:
        row: rows of the window.
        column: columns of the window.
        size: (h, w) of the image, LR pixels.
    """
    spans = zip((row, column), size[:2], strict=True)
    inside = all(span.start >= 0 and span.start + span.length <= length for span, length in spans)
    return 0.0 if inside else _BAND * row.padded * column.padded


def layout(plan: Layout, networks: list[LoadedNetwork], scale: int, turns: int, size: tuple[int, ...]) -> float:
    """Return the cost of restoring all windows.

    Args:
        plan: the windows.
        networks: networks that restore them, one after the other.
        scale: s.
        turns: number of restorations that are averaged.
        size: (h, w) of the image, LR pixels.
    """
    configs = [restorer_of(network.network).config for network in networks]
    each = turns * scale**2 * sum(config.unfoldings * unfolding(config) for config in configs)
    return plan.cost * each + sum(band(row, column, size) for row in plan.rows for column in plan.columns)


def judging(size: tuple[int, ...], scale: int) -> float:
    """Return the cost of judging and mixing a restored image of (h, w) LR pixels."""
    return _JUDGE * size[0] * size[1] * scale**2


def _passes(kernel: KernelConfig, unfoldings: int) -> int:
    """Count the unfoldings of a guarded blind restoration (`BlindUSRNet.infer`)."""
    if kernel.schedule == "rounds":
        passes = unfoldings * (1 + kernel.rounds * (2 if kernel.warm_start else 1))
    else:
        first = -(-unfoldings // (kernel.rounds + 1))
        passes = first + 2 * (unfoldings - first) if kernel.rounds else unfoldings
    if kernel.steps:
        passes += kernel.steps * -(-unfoldings // 2) + unfoldings * (2 if kernel.rounds else 1)
    return passes
