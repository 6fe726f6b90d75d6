"""The public interface of a trained model: `Restorer.load("models:/blind-sr-x2@champion").restore(image, scale=2)`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from kernels_bank.names import Grid
from kernels_bank.runtime.errors import BadRequestError
from pipeline.images.convert import grey_to_rgb, is_grey
from pipeline.inference import memory, work
from pipeline.inference.arguments import FirstEstimate, choice, first_estimate, flag, given_kernel, number, plain_array
from pipeline.inference.estimate import Estimate, estimate_kernel
from pipeline.inference.kernel_field import KernelField, estimate_field, field_work, restore_field
from pipeline.inference.network import LoadedNetwork
from pipeline.inference.noise import noise_level
from pipeline.inference.planes import channel_count, split_alpha, to_float, to_type
from pipeline.inference.progress import Listener, Meter, Piece
from pipeline.inference.strength import assumed_kernel, assumed_sigma
from pipeline.inference.trust import Evidence, features, mix
from pipeline.inference.windows import Result, Settings, expected_work, restore_planes
from pipeline.reduction import place

_ALLOWANCE = 2 * 2**30  # bytes beyond what a process already holds, if no limit is given
_TYPICAL = 0.6  # standard deviation of a typical photograph's blur, as a multiple of the scale


@dataclass(frozen=True)
class Restored:
    """Hold a restored image and the assumptions made for it."""

    image: np.ndarray  # (s*h, s*w) or (s*h, s*w, C), of the input's kind and type
    kernel: np.ndarray  # (k, k) float32, sum 1, on the grid of the image: estimated or given
    sigma: float  # noise level, estimated or given, [0, 1] scale
    residual: float  # RMS of |(restored * kernel)down - input|, [0, 1] scale; far above sigma: not explained
    scale: int
    seconds: float
    kernel_round: int | None = None  # the round whose kernel the guard accepted; None for a given kernel
    spread: float | None = None  # distance between kernels of different places, 0 to 2; None for one place or given
    windows: int = 1  # number of windows of the image
    estimate_seconds: float = 0.0
    field: KernelField | None = None  # the kernels of all places, if requested
    strength: float = 1.0  # below 1, the network was given a weaker kernel and another noise level than stated here
    trust: float | None = None  # share of the restoration in the image, the rest is bicubic; None: not estimated

    def facts(self) -> dict[str, int | float | None]:
        """Return the facts for reports and answers, by the names used there."""
        return {
            "scale": self.scale,
            "sigma": self.sigma,
            "strength": self.strength,
            "residual": self.residual,
            "kernel_round": self.kernel_round,
            "kernel_spread": self.spread,
            "windows": self.windows,
            "trust": self.trust,
        }


class Restorer(LoadedNetwork):
    """Restore photographs with a network of known identity, on one device."""

    def restore(
        self,
        image: np.ndarray,
        scale: int,
        sigma: float | Literal["auto"] = "auto",
        kernel: np.ndarray | None = None,
        *,
        x0: FirstEstimate | LoadedNetwork = None,
        self_ensemble: bool = False,
        max_memory: int | None = None,
        strength: float = 1.0,
        kernel_field: bool = False,
        file_error: float = 0.0,
        grid: Grid = "centre",
        trust: float | Literal["auto"] = "auto",
        on_step: Listener | None = None,
    ) -> Restored:
        """Restore a real photograph: estimate its kernel unless given, then restore it, in windows if it is large.

        One kernel is used for the whole image, estimated at up to three well-textured places, unless a kernel field is
        requested. The guard accepts an estimate only if the image restored with it is more plausible
        (`pipeline/model/guard.py`).

        Args:
            image: uint8, uint16, or float32 in [0, 1]; (h, w) grey, (h, w, 2) grey with alpha, (h, w, 3) RGB or
                (h, w, 4) RGBA; alpha is restored separately, with the same kernel.
            scale: one of `scales`.
            sigma: noise level on the [0, 1] scale (2.55/255 is 0.01), or `auto` to estimate it.
            kernel: (k, k), k odd, sum 1, if it is known.
            x0: start of the unfoldings instead of the model's own: another model, which restores with the same kernel,
                an image (s*h, s*w, 3) of the input's type, or an interpolation.
            self_ensemble: whether to average over the eight flips and quarter turns, at eight times the work.
            max_memory: bytes that this process (or its GPU memory) may grow to; None for 2 GiB more than it holds.
            strength: share of the blur to undo, from 0, close to a plain enlargement, to 1.
            kernel_field: whether every place has its own kernel, for blur that varies, at many times the work.
            file_error: known RMS error of the image's file, on the [0, 1] scale, as for a JPEG; `auto` adds it to the
                noise level of the pixels.
            grid: `centre` aligns the restored picture with a bicubic enlargement, whatever the kernel; `corner` puts LR
                pixel (i, j) on HR pixel (s*i, s*j) of a centred kernel, as in the article.
            trust: weight of the restoration, from 0, the bicubic enlargement, to 1; `auto` lets the model decide if the
                kernel is estimated and is the same for all places.
            on_step: called after each place, kernel step, unfolding and window; raising ends the restoration.

        Raises:
            BadRequestError: an unsupported scale, an image, kernel or x0 of the wrong shape or type, a kernel whose sum
                is not 1, a non-blind model without a kernel, both a kernel and a kernel field, a float image not on the
                [0, 1] scale, an unknown grid, a sigma, strength, trust or file error that is no number from 0 to 1, a
                self_ensemble or kernel_field that is no truth value, or a memory limit too small for any window.
        """
        started = time.perf_counter()
        self.check(scale, kernel_given=kernel is not None)
        scale = int(scale)  # another type of number would not do as a length
        image = plain_array("image", image)
        colour, alpha = split_alpha(image)
        file_error, strength = number("file_error", file_error, 0, 1), number("strength", strength, 0, 1)
        limit = memory.in_use(self.device) + _ALLOWANCE if max_memory is None else number("max_memory", max_memory, 0)
        trust = _auto_or_number("trust", trust)
        sigma = _auto_or_number("sigma", sigma)
        self_ensemble, kernel_field = flag("self_ensemble", self_ensemble), flag("kernel_field", kernel_field)
        choice("grid", grid, Grid)
        if kernel is not None and kernel_field:
            raise BadRequestError("kernel_field estimates the kernels; leave out the given one")
        kernel = None if kernel is None else given_kernel(kernel)
        start = _start(x0, scale, image)
        level = noise_level(colour, file_error) if sigma == "auto" else sigma
        lr = to_float(colour)
        size = {"item": image.itemsize, "channels": channel_count(image)}
        likely = _typical_kernel(self.kernel_side, scale) if kernel is None else kernel
        settings = Settings(scale, level, likely, self_ensemble, limit, *start)
        judged = trust != 1 and (trust != "auto" or (kernel is None and not kernel_field and self.trust is not None))
        meter = Meter(on_step)
        pieces = _pieces(self, meter, lr, alpha, settings, field=kernel_field, judged=judged, **size)
        if kernel is None:
            estimate = estimate_kernel(self, lr, scale, level, grid, pieces.estimate)
        else:
            estimate = Estimate(kernel, None, None)
        used = place(estimate.kernel, scale, grid)
        settings = settings._replace(kernel=used)
        field = estimate_field(self, lr, settings, grid, **size, piece=pieces.field) if kernel_field else None
        estimated = time.perf_counter()
        settings = settings._replace(sigma=assumed_sigma(level, strength), kernel=assumed_kernel(used, strength))
        told = None if field is None else field.weakened(strength)
        result = _restored(self, lr, settings, told, **size, piece=pieces.image)
        believed = None if trust == "auto" else trust
        if trust == "auto" and field is None and self.trust is not None and estimate.blur is not None:
            seen = Evidence(
                scale=scale,
                level=level,
                file_error=file_error,
                residual=result.residual,
                width=estimate.blur.width,
                shares=estimate.blur.shares,
                refined=bool(estimate.kernel_round),
                grid=grid,
            )
            believed = self.trust(features(lr, result.image, seen))
        if believed is not None:
            mix(lr, result.image, believed, scale, grid)
        pieces.judging.add(work.judging(lr.shape, scale) if judged else 0.0)
        restored = to_type(result.image, image.dtype)
        if is_grey(image):
            grey = to_type(result.image.mean(-1, keepdims=True), image.dtype)
            restored = grey if alpha is not None else grey[..., 0]
        if alpha is not None:
            own = settings._replace(x0=None, x0_model=None, sigma=assumed_sigma(0.0, strength))
            restored = np.concatenate([restored, self._alpha(alpha, own, told, image, pieces.alpha)], axis=-1)
        meter.finish()
        return Restored(
            image=restored,
            kernel=np.asarray(used, np.float32),
            sigma=level,
            residual=result.residual,
            scale=scale,
            seconds=time.perf_counter() - started,
            kernel_round=estimate.kernel_round,
            spread=estimate.spread,
            windows=result.windows,
            estimate_seconds=estimated - started,
            field=field,
            strength=strength,
            trust=believed,
        )

    def _alpha(
        self, alpha: np.ndarray, settings: Settings, field: KernelField | None, image: np.ndarray, piece: Piece
    ) -> np.ndarray:
        """Restore alpha (h, w) to (s*h, s*w, 1) of the image's type; a constant alpha stays exactly constant."""
        height, width = (settings.scale * side for side in alpha.shape)
        if _is_constant(alpha):
            return np.full((height, width, 1), alpha.flat[0])
        planes = grey_to_rgb(to_float(alpha))
        result = _restored(self, planes, settings, field, item=image.itemsize, channels=4, piece=piece)
        return to_type(result.image[..., :1], image.dtype)


class _Pieces(NamedTuple):
    """Hold the pieces of a restoration's work, in order."""

    estimate: Piece
    field: Piece
    image: Piece
    judging: Piece
    alpha: Piece


def _pieces(
    network: LoadedNetwork,
    meter: Meter,
    lr: np.ndarray,
    alpha: np.ndarray | None,
    settings: Settings,
    *,
    field: bool,
    judged: bool,
    item: int,
    channels: int,
) -> _Pieces:
    """Predict the work of each part; a part replaces the prediction when it starts."""
    if not meter.listens:
        return _Pieces(*(meter.piece() for _ in _Pieces._fields))
    size = lr.shape[:2]
    image = expected_work(network, size, settings, item=item, channels=channels)
    return _Pieces(
        estimate=meter.piece(),
        field=meter.piece(field_work(network, size, settings.scale) if field else 0.0),
        image=meter.piece(image),
        judging=meter.piece(work.judging(size, settings.scale) if judged else 0.0),
        alpha=meter.piece(0.0 if alpha is None or _is_constant(alpha) else image),
    )


def _typical_kernel(side: int, scale: int) -> np.ndarray:
    """Make a Gaussian (side, side) of sum 1 whose windows need about as much context as those of most photographs."""
    line = np.exp(-0.5 * ((np.arange(side) - side // 2) / (_TYPICAL * scale)) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def _is_constant(alpha: np.ndarray) -> bool:
    return bool((alpha == alpha.flat[0]).all())


def _restored(
    network: LoadedNetwork,
    lr: np.ndarray,
    settings: Settings,
    field: KernelField | None,
    *,
    item: int,
    channels: int,
    piece: Piece,
) -> Result:
    """Restore with the settings' kernel or with a kernel field."""
    if field is None:
        return restore_planes(network, lr, settings, item=item, channels=channels, piece=piece)
    return restore_field(network, lr, settings, field, item=item, channels=channels, piece=piece)


def _auto_or_number(name: str, value: float | Literal["auto"]) -> float | Literal["auto"]:
    """Return `auto`, or a number from 0 to 1. Raises BadRequestError."""
    return "auto" if isinstance(value, str) and value == "auto" else number(name, value, 0, 1, auto=True)


def _start(
    x0: FirstEstimate | LoadedNetwork, scale: int, image: np.ndarray
) -> tuple[FirstEstimate, LoadedNetwork | None]:
    """Return x0 as an image of float32 or an interpolation, or as a model."""
    if isinstance(x0, LoadedNetwork):
        x0.check(scale, kernel_given=True)
        return None, x0
    start = first_estimate(x0, image, scale)
    return to_float(start) if isinstance(start, np.ndarray) else start, None
