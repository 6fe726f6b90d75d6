"""Restoration of an image with a known kernel, window by window, within a memory limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels_bank.runtime.errors import BadRequestError
from pipeline.degrade import degrade
from pipeline.inference import layout, memory, work
from pipeline.inference.boundary import extend_to
from pipeline.inference.ensemble import TURNS, Turn
from pipeline.inference.fill import explained_band
from pipeline.inference.network import LoadedNetwork
from pipeline.inference.progress import NOBODY, Part, Piece
from pipeline.model import restorer_of, upsample
from pipeline.model.usrnet import Tick

_SMALLER = 0.7  # factor for windows after memory ran out; a half could skip the smallest possible windows


class Settings(NamedTuple):
    """Hold the settings of a restoration."""

    scale: int
    sigma: float
    kernel: np.ndarray  # (k, k)
    self_ensemble: bool
    max_memory: float
    x0: np.ndarray | str | None  # (s*h, s*w, 3) float32 in [0, 1], or an interpolation
    x0_model: LoadedNetwork | None  # model whose restoration is x0; with neither, x0 is the model's own


class Result(NamedTuple):
    """Hold the result of a restoration."""

    image: np.ndarray  # (s*h, s*w, 3) float32 in [0, 1]
    residual: float  # RMS residual on the LR image
    windows: int
    unexplained: np.ndarray  # (h, w) float32: squared residual of each LR pixel, mean over the channels


def restore_planes(
    network: LoadedNetwork, lr: np.ndarray, settings: Settings, *, item: int, channels: int, piece: Piece = NOBODY
) -> Result:
    """Restore (h, w, 3) float32 in [0, 1] with a known kernel.

    If a GPU has less memory left than `settings.max_memory` allows, windows are made smaller as often as needed.

    Args:
        network: the model.
        lr: the image; three equal planes for a grey one.
        settings: all other settings.
        item: bytes of a value of the file's image, for the memory limit.
        channels: number of channels of the file's image, for the memory limit.
        piece: counter of the work.

    Raises:
        BadRequestError: the limit, or the free memory of the GPU, is too small for any window.
    """
    most, reason = math.inf, ""
    while True:
        try:
            plan = plan_windows(network, lr.shape[0], lr.shape[1], settings, item=item, channels=channels, largest=most)
        except BadRequestError as error:
            if reason:
                raise BadRequestError(_no_room(network, lr, reason)) from error
            raise
        try:
            return _restore_windows(network, lr, settings, plan, piece)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        # Outside the handler, which keeps references to the tensors of its frames.
        memory.give_back(network.device)
        most = _SMALLER * plan.largest


def _no_room(network: LoadedNetwork, lr: np.ndarray, reason: str) -> str:
    return (
        f"{network.device}: too little memory is left for a {lr.shape[1]} x {lr.shape[0]} image, also in windows "
        f"({reason}); end what else runs there, or hide the card (CUDA_VISIBLE_DEVICES=) to restore on the CPU"
    )


def expected_work(
    network: LoadedNetwork, size: tuple[int, ...], settings: Settings, *, item: int, channels: int
) -> float:
    """Predict the work of `restore_planes` (`work.py`), without restoring; 0 if no window fits.

    Args:
        network: the model.
        size: (h, w) of the image, LR pixels.
        settings: settings with a kernel of about the same reach as the one that will be used.
        item: bytes of a value of the file's image.
        channels: number of channels of the file's image.
    """
    try:
        plan = plan_windows(network, size[0], size[1], settings, item=item, channels=channels)
    except BadRequestError:
        return 0.0
    return work.layout(plan, _networks(network, settings), settings.scale, len(_turns(settings)), size)


def _restore_windows(
    network: LoadedNetwork, lr: np.ndarray, settings: Settings, plan: layout.Layout, piece: Piece
) -> Result:
    piece.expect(work.layout(plan, _networks(network, settings), settings.scale, len(_turns(settings)), lr.shape))
    scale = settings.scale
    around = layout.torus_margin(scale, settings.kernel.shape[0])
    height, width = (layout.torus_length(length, around) for length in lr.shape[:2])
    kernel = torch.as_tensor(settings.kernel, dtype=torch.float32, device=network.device)[None]
    torus = extend_to(lr, height, width)
    start = settings.x0
    if isinstance(start, np.ndarray):
        start = extend_to(start, scale * height, scale * width)
    image = np.zeros((scale * lr.shape[0], scale * lr.shape[1], 3), np.float32)
    left = np.zeros(lr.shape[:2], np.float32)
    squares = 0.0
    for number, (row, column) in enumerate(itertools.product(plan.rows, plan.columns)):
        piece.at("window", number, plan.count)
        # Filled window by window: filling the whole torus at once would take more memory than allowed for a window.
        known = layout.known(row, column, lr.shape[:2], (height, width))
        window = network.tensor(explained_band(layout.cut(torus, row, column), known, kernel, scale))
        piece.add(work.band(row, column, lr.shape))
        if number:
            memory.close_gaps(network.device)
        x0 = _first_estimate(network, window, start, row, column, kernel, settings, piece)
        sr = _restored(network, window, kernel, x0, settings, piece).clamp_(0, 1)
        unexplained = degrade(sr, kernel, scale) - window
        weights = [torch.from_numpy(span.weight(scale)).to(sr.device) for span in (row, column)]
        part = layout.inner(sr, row, column, scale) * weights[0][:, None] * weights[1]
        rows, columns = (slice(scale * span.first, scale * span.last) for span in (row, column))
        image[rows, columns] += part[0].permute(1, 2, 0).cpu().numpy()
        parts = tuple(slice(span.first, span.last) for span in (row, column))
        left[parts] += _mean_squares(unexplained, row, column, weights, scale)
        squares += _sum_of_squares(unexplained, row, column, weights, settings, lr.shape)
        if piece.listens:
            alone = layout.inner(sr, row, column, scale)[0].permute(1, 2, 0).cpu().numpy()
            finished = Part(scale * row.first, scale * column.first, alone) if plan.count > 1 else None
            piece.at("window", number + 1, plan.count, finished)
    piece.end()
    counted = 3 * np.prod([length - 2 * border(length, settings) for length in lr.shape[:2]])
    return Result(image, (squares / counted) ** 0.5, plan.count, left)


def plan_windows(
    network: LoadedNetwork,
    height: int,
    width: int,
    settings: Settings,
    *,
    item: int,
    channels: int,
    largest: float = math.inf,
) -> layout.Layout:
    """Place the windows of an LR image of this size. Raises BadRequestError if not even the smallest fits.

    Args:
        network: the model.
        height: height of the image, LR pixels.
        width: width of the image, LR pixels.
        settings: settings, including scale, kernel and memory limit.
        item: bytes of a value of the file's image.
        channels: number of channels of the file's image.
        largest: largest number of LR pixels of a window, besides the memory limit.
    """
    scale, kernel = settings.scale, settings.kernel
    around = layout.torus_margin(scale, kernel.shape[0])
    nets = _networks(network, settings)
    each = max(memory.window_bytes(restorer_of(net.network).config) for net in nets) * scale**2
    fixed = memory.in_use(network.device) + memory.RESERVE
    if network.device.type == "cpu":
        fixed += int(height * width * memory.image_bytes(scale, channels, item))
    most = min(largest, (settings.max_memory - fixed) / each)
    found = layout.whole(height, width, around)
    if found.largest <= most:
        return found
    reach = context(network, settings)
    split = layout.layout(height, width, around, reach, most)
    if split is None:
        least = fixed + (2 * reach + 64) ** 2 * each
        raise BadRequestError(
            f"{settings.max_memory / 2**30:.2f} GiB are too little for a {width} x {height} image: about "
            f"{least / 2**30:.2f} GiB are needed; raise --max-memory"
        )
    return split


def context(network: LoadedNetwork, settings: Settings) -> int:
    """Return the LR pixels around a part of an image on which the restoration of that part depends.

    With another model's x0, the context is twice as large.

    Args:
        network: the model.
        settings: settings, including scale, noise level, kernel and x0.
    """
    scale, kernel = settings.scale, settings.kernel
    alphas = [net.smallest_alpha(scale, settings.sigma) for net in _networks(network, settings)]
    return sum(layout.context(kernel, alpha, scale) for alpha in alphas)


def _networks(network: LoadedNetwork, settings: Settings) -> list[LoadedNetwork]:
    """Return the models that restore a window, one after the other."""
    return [network, *([settings.x0_model] if settings.x0_model else [])]


def border(length: int, settings: Settings) -> int:
    """Return the width in LR pixels of the border, whose blur includes pixels outside that no image explains."""
    return min(settings.kernel.shape[0] // (2 * settings.scale) + 1, length // 4)


def _mean_squares(
    unexplained: Tensor, row: layout.Span, column: layout.Span, weights: list[Tensor], scale: int
) -> np.ndarray:
    """Return squared residuals by LR pixel of a window's part, (last - first) rows and columns; seams are weighted."""
    part = layout.inner(unexplained, row, column, 1)[0].square().mean(0)
    weighted: np.ndarray = (part * weights[0][::scale, None] * weights[1][::scale]).cpu().numpy()
    return weighted


def _sum_of_squares(
    unexplained: Tensor,
    row: layout.Span,
    column: layout.Span,
    weights: list[Tensor],
    settings: Settings,
    size: Sequence[int],
) -> float:
    """Return the sum of squared residuals of a window's part; by weighted seams each LR pixel inside counts once."""
    part = layout.inner(unexplained, row, column, 1).square()
    shares = []
    for span, weight, length in zip((row, column), weights, size[:2], strict=True):
        place = torch.arange(span.first, span.last, device=part.device)
        edge = border(length, settings)
        shares.append(weight[:: settings.scale] * ((place >= edge) & (place < length - edge)))
    return float((part * shares[0][:, None] * shares[1]).sum(dtype=torch.float64))


def _first_estimate(
    network: LoadedNetwork,
    window: Tensor,
    start: np.ndarray | str | None,
    row: layout.Span,
    column: layout.Span,
    kernel: Tensor,
    settings: Settings,
    piece: Piece,
) -> Tensor | None:
    """Return x0 of one window, or None for the model's own."""
    scale, other = settings.scale, settings.x0_model
    if other is not None:
        tick = _tick(other, window, scale, piece)
        return other.nonblind(window, kernel, scale, settings.sigma, tick=tick).clamp(0, 1)
    if isinstance(start, str):
        return upsample(window, scale, start)
    if isinstance(start, np.ndarray):
        return network.tensor(layout.cut(start, row.enlarged(scale), column.enlarged(scale)))
    return None


def _turns(settings: Settings) -> tuple[Turn, ...]:
    return TURNS if settings.self_ensemble else (Turn(False, False, False),)


def _tick(network: LoadedNetwork, window: Tensor, scale: int, piece: Piece) -> Tick:
    """Count the unfoldings of a window."""
    once = work.unfolding(restorer_of(network.network).config) * window.shape[-2] * window.shape[-1] * scale**2
    return lambda _: piece.add(once)


def _restored(
    network: LoadedNetwork, lr: Tensor, kernel: Tensor, x0: Tensor | None, settings: Settings, piece: Piece
) -> Tensor:
    scale, sigma, turns = settings.scale, settings.sigma, _turns(settings)
    tick = _tick(network, lr, scale, piece)
    total: Tensor | None = None
    for turn in turns:
        turned = None if x0 is None else turn.hr(x0, scale).contiguous()
        sr = network.nonblind(turn.lr(lr).contiguous(), turn.lr(kernel).contiguous(), scale, sigma, turned, tick)
        back = turn.hr_back(sr, scale)
        total = back if total is None else total + back
    assert total is not None
    return total / len(turns)
