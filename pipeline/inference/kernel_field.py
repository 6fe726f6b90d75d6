"""A kernel for every place of a photograph whose blur varies: growing defocus, a rotated camera, a sharp subject.

Kernels are estimated window by window, each from its own crop. A wrong kernel costs far more than a right one gains, so
no estimate is accepted unchecked. Around its window each estimate is a candidate besides the kernel of the whole image,
and all candidates restore the neighbourhood. In each cell the sharpest restoration that still explains the LR image
wins. A kernel that is too wide or has a wrong shape leaves a large LR residual. A kernel that is too narrow does not:
it explains everything and sharpens little. So an outlier loses against its neighbours' kernels in its own window, and
where none can be trusted a narrow kernel does no harm.

The winners' cells are smoothed to weights that sum to one everywhere, and the restorations are blended with them.
Every restoration uses one kernel throughout, so its data steps are exact and no seam shows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from kernels_bank.names import Grid
from pipeline.inference import work
from pipeline.inference.box import CELL, Box
from pipeline.inference.estimate import estimate_kernel
from pipeline.inference.network import LoadedNetwork
from pipeline.inference.progress import NOBODY, Piece
from pipeline.inference.strength import assumed_kernel
from pipeline.inference.texture import structure
from pipeline.inference.windows import Result, Settings, border, context, restore_planes
from pipeline.reduction import place

_SIDES = 64, 192  # LR pixels of a window that a kernel is estimated from, in small and in large images
_ALONG = 5  # windows along the longer side of a large image, before they overlap
_SAME = 0.15  # sum of |k - k'| below which a kernel counts as the whole image's
# How far, as variances, a residual may be above the smallest: a ratio to it, and never more than an absolute level.
_RATIO, _MOST = 1.5, 0.8 / 255
_UNSEEN = 0.5 / 255  # largest residual of the right kernel besides noise
_LEAD = 1.05  # how many times as sharp as with the whole image's kernel another restoration has to be
_SEEN, _SEAM = 0.7, 1.0  # standard deviations in cells of the scores' neighbourhood and of the weights
_LEAST = 1e-3  # smaller weights count as zero
_FLAT = 1 / 255  # mean of |gradients| besides noise below which a place shows no kernel


class KernelField(NamedTuple):
    """Hold the kernels of an image and their weights at every place."""

    kernels: np.ndarray  # (n, k, k) float32, the first is that of the whole image
    weights: np.ndarray  # (n, rows, columns) float32 of cells of 8 x 8 LR pixels, of sum 1 over n
    windows: int  # number of windows that kernels were estimated from

    def at(self, row: int, column: int) -> np.ndarray:
        """Return the kernel of a cell, (k, k): the weighted mean of the winners."""
        return np.tensordot(self.weights[:, row, column], self.kernels, 1).astype(np.float32)

    def weakened(self, strength: float) -> KernelField:
        """Return the kernels for a restoration of this strength, at the same places."""
        return self._replace(kernels=np.stack([assumed_kernel(kernel, strength) for kernel in self.kernels]))


def estimate_field(
    network: LoadedNetwork,
    lr: np.ndarray,
    settings: Settings,
    grid: Grid,
    *,
    item: int,
    channels: int,
    piece: Piece = NOBODY,
) -> KernelField:
    """Estimate the kernels of a photograph, window by window.

    Args:
        network: the model.
        lr: (h, w, 3) float32 in [0, 1].
        settings: settings of the whole image's restoration, at full strength.
        grid: grid of the restored picture.
        item: bytes of a value of the file's image.
        channels: number of channels of the file's image.
        piece: counter of the work.

    Raises:
        BadRequestError: the memory limit is too small for any window.
    """
    height, width = lr.shape[:2]
    boxes = windows(height, width)
    each = piece.split("place", len(boxes), lambda i: _estimate_work(network, boxes[i], settings.scale))
    neighbourhood = -(-_spacing(max(height, width), _side(height, width)) // CELL) * CELL
    kernels, domains = [settings.kernel], [Box(0, 0, height, width)]
    for box, own_piece in zip(boxes, each, strict=True):
        crop = box.of(lr)
        if structure(crop).mean() < _FLAT + 3 * settings.sigma:
            own_piece.end()
            continue
        estimate = estimate_kernel(network, crop, settings.scale, settings.sigma, grid, own_piece)
        kernel = _of_side(place(estimate.kernel, settings.scale, grid), settings.kernel.shape[0])
        domain = box.grown(neighbourhood, height, width)
        apart = [float(np.abs(kernel - other).sum()) for other in kernels]
        nearest = int(np.argmin(apart))
        if apart[nearest] < _SAME:
            domains[nearest] = domains[nearest].union(domain)
        else:
            kernels.append(kernel)
            domains.append(domain)
    shape = -(-height // CELL), -(-width // CELL)
    residual, sharpness = (np.full((len(kernels), *shape), value, np.float32) for value in (np.inf, 0.0))
    tries = piece.split("kernel", len(kernels), lambda i: work.passes(network, domains[i].size, settings.scale))
    for number, (kernel, domain) in enumerate(zip(kernels, domains, strict=True) if len(kernels) > 1 else ()):
        own = _cut(settings, domain)._replace(kernel=kernel, self_ensemble=False)
        result = restore_planes(network, domain.of(lr), own, item=item, channels=channels, piece=tries[number])
        domain.cells(residual[number])[:], domain.cells(sharpness[number])[:] = _seen(result, own)
    winner = winners(residual, sharpness, settings.sigma) if len(kernels) > 1 else np.zeros(shape, np.int64)
    return KernelField(np.stack(kernels), _weights(winner, len(kernels)), len(boxes))


def field_work(network: LoadedNetwork, size: tuple[int, ...], scale: int) -> float:
    """Predict the work of `estimate_field`, assuming that half of the places have their own kernel.

    Args:
        network: the model.
        size: (h, w) of the image, LR pixels.
        scale: s.
    """
    boxes = windows(size[0], size[1])
    around = _spacing(max(size), _side(*size))
    tried = [work.passes(network, box.grown(around, size[0], size[1]).size, scale) for box in boxes]
    return sum(_estimate_work(network, box, scale) for box in boxes) + sum(tried) / 2


def restore_field(
    network: LoadedNetwork,
    lr: np.ndarray,
    settings: Settings,
    field: KernelField,
    *,
    item: int,
    channels: int,
    piece: Piece = NOBODY,
) -> Result:
    """Restore (h, w, 3) float32 in [0, 1] with a kernel for every place.

    Args:
        network: the model.
        lr: the image; three equal planes for a grey one.
        settings: all other settings; its kernel is not used.
        field: the kernels to restore with.
        item: bytes of a value of the file's image.
        channels: number of channels of the file's image.
        piece: counter of the work.

    Raises:
        BadRequestError: the memory limit is too small for any window.
    """
    height, width = lr.shape[:2]
    scale = settings.scale
    used = [number for number, weight in enumerate(field.weights) if weight.max() > 0]
    if len(used) == 1:
        own = settings._replace(kernel=field.kernels[used[0]])
        return restore_planes(network, lr, own, item=item, channels=channels, piece=piece)
    whole = piece.left
    each = piece.split("kernel", len(used), lambda i: whole * float((field.weights[used[i]] > 0).mean()))
    image = np.zeros((scale * height, scale * width, 3), np.float32)
    unexplained, count = np.zeros((height, width), np.float32), 0
    for number, part_piece in zip(used, each, strict=True):
        weight, kernel = field.weights[number], field.kernels[number]
        rows, columns = (np.flatnonzero(weight.any(axis)) for axis in (1, 0))
        # One cell more, since weights are interpolated between the middles of cells.
        part = Box(*(CELL * int(i) for i in (rows[0] - 1, columns[0] - 1, rows[-1] + 2, columns[-1] + 2)))
        part = part.grown(0, height, width)
        box = part.grown(context(network, settings._replace(kernel=kernel)), height, width)
        own = _cut(settings, box)._replace(kernel=kernel)
        result = restore_planes(network, box.of(lr), own, item=item, channels=channels, piece=part_piece)
        share = enlarged(box.cells(weight), box.bottom - box.top, box.right - box.left, scale)
        box.of(image, scale)[:] += result.image * share[..., None]
        box.of(unexplained)[:] += result.unexplained * share[::scale, ::scale]
        count += result.windows
    inside = tuple(slice(edge := border(length, settings), length - edge) for length in (height, width))
    return Result(image, float(unexplained[inside].mean(dtype=np.float64)) ** 0.5, count, unexplained)


def windows(height: int, width: int) -> list[Box]:
    """Place the windows that kernels are estimated from: all of one size, a third of it shared with the next.

    Args:
        height: height of the image, LR pixels.
        width: width of the image, LR pixels.
    """
    side = _side(height, width)
    lines = []
    for length in (height, width):
        starts = np.linspace(0, max(length - side, 0), 1 + -(-max(length - side, 0) // _spacing(length, side)))
        lines.append([int(start) // CELL * CELL for start in starts])
    return [Box(top, left, min(top + side, height), min(left + side, width)) for top in lines[0] for left in lines[1]]


def winners(residual: np.ndarray, sharpness: np.ndarray, sigma: float) -> np.ndarray:
    """Choose a kernel for every cell, (rows, columns): the index of the sharpest one that explains the cell.

    Args:
        residual: (n, rows, columns) mean squared residual of each kernel; infinite where it was not tried.
        sharpness: (n, rows, columns) total variation of each kernel's restoration.
        sigma: noise level.
    """
    least = np.minimum(residual.min(0), sigma**2 + _UNSEEN**2)
    explains = residual <= least + np.minimum(_RATIO**2 * least, _MOST**2)
    lead = np.ones((len(residual), 1, 1))
    lead[0] = _LEAD
    sharpest = np.where(explains, sharpness * lead, -1).argmax(0)
    chosen: np.ndarray = np.where(explains.any(0), sharpest, residual.argmin(0))
    return chosen


def enlarged(weight: np.ndarray, height: int, width: int, scale: int) -> np.ndarray:
    """Interpolate the weights of cells to every HR pixel, (s*h, s*w); weights of sum 1 keep that sum.

    Args:
        weight: (rows, columns) weights of cells.
        height: height of the LR image.
        width: width of the LR image.
        scale: s.
    """
    import cv2  # a registered model restores without it

    size = (scale * CELL * weight.shape[1], scale * CELL * weight.shape[0])
    return cv2.resize(weight, size, interpolation=cv2.INTER_LINEAR)[: scale * height, : scale * width]


def _estimate_work(network: LoadedNetwork, box: Box, scale: int) -> float:
    return work.estimate(network, box.size, scale, 1)


def _side(height: int, width: int) -> int:
    """Return the side of a window in LR pixels."""
    return min(max(_SIDES[0], max(height, width) // _ALONG), _SIDES[1])


def _spacing(length: int, side: int) -> int:
    """Return the LR pixels from one window to the next: a third overlaps, unless a large image spreads them apart."""
    return max(side * 2 // 3, -(-length // (2 * _ALONG)))


def _of_side(kernel: np.ndarray, side: int) -> np.ndarray:
    """Cut or pad a kernel around its middle to (side, side), of sum 1."""
    more = (side - kernel.shape[0]) // 2
    kernel = np.pad(kernel, more) if more > 0 else kernel[-more : more or None, -more : more or None]
    return (kernel / kernel.sum()).astype(np.float32)


def _cut(settings: Settings, box: Box) -> Settings:
    """Return the settings for a part of the image, with that part of a given first estimate."""
    x0 = settings.x0
    return settings._replace(x0=box.of(x0, settings.scale)) if isinstance(x0, np.ndarray) else settings


def _seen(result: Result, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return mean squared LR residual and mean total variation around every cell, without the border."""
    import cv2  # a registered model restores without it

    height, width = result.unexplained.shape
    counted = np.zeros((height, width), np.float32)
    inside = tuple(slice(edge := border(length, settings), length - edge) for length in (height, width))
    counted[inside] = 1
    variation = np.zeros((height, width), np.float32)
    for axis in (0, 1):
        steps = np.abs(np.diff(result.image, axis=axis, append=result.image.take([-1], axis))).mean(-1)
        variation += cv2.resize(steps, (width, height), interpolation=cv2.INTER_AREA)
    seen = _around(counted) + 1e-12
    return _around(result.unexplained * counted) / seen, _around(variation * counted) / seen


def _around(values: np.ndarray) -> np.ndarray:
    """Sum over cells and smooth: (h, w) -> (rows, columns) of cells."""
    padded = np.pad(values, [(0, -length % CELL) for length in values.shape])
    rows, columns = (length // CELL for length in padded.shape)
    cells = padded.reshape(rows, CELL, columns, CELL).sum((1, 3), dtype=np.float64)
    smooth: np.ndarray = gaussian_filter(cells, _SEEN, mode="constant")
    return smooth


def _weights(winner: np.ndarray, count: int) -> np.ndarray:
    """Return (count, rows, columns) of sum 1: 1 where a kernel won, smoothed."""
    weights = np.stack([gaussian_filter((winner == i).astype(np.float32), _SEAM, mode="nearest") for i in range(count)])
    weights[weights < _LEAST] = 0
    return np.asarray(weights / weights.sum(0), np.float32)
