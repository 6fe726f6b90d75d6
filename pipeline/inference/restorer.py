"""A trained model as something to use: `Restorer.load("models:/blind-sr-x2@champion").restore(image, scale=2)`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.config import Grid
from pipeline.images.convert import grey_to_rgb, has_alpha, is_grey
from pipeline.inference.estimate import Estimate, estimate_kernel
from pipeline.inference.kernel_field import KernelField, estimate_field, restore_field
from pipeline.inference.noise import estimate_sigma
from pipeline.inference.strength import check_strength, told_kernel, told_sigma
from pipeline.inference.windows import Result, Settings, restore_planes, smallest_alpha
from pipeline.model import BlindOutput, BlindUSRNet, USRNet
from pipeline.model.weights import load_model, load_usrnet
from pipeline.model_folder import MANIFEST, read_manifest
from pipeline.reduction import place
from pipeline.shipped import SCHEME, shipped_folder

_DEFAULT_REACH = 25
MAX_MEMORY = 2 * 2**30

FirstEstimate = Literal["nearest", "bicubic"] | np.ndarray | None


@dataclass(frozen=True)
class Restored:
    """Hold one restored image and what was assumed to make it."""

    image: np.ndarray  # (s*h, s*w) or (s*h, s*w, C), of the input's kind and type
    kernel: np.ndarray  # (k, k) float32, sum 1, on the grid of the image: estimated, or the one given
    sigma: float  # noise level, estimated or given, [0, 1] scale
    residual: float  # RMS of |(restored * kernel)down - input|, [0, 1] scale; far above sigma: not explained
    scale: int
    seconds: float
    kernel_round: int | None = None  # the round whose kernel the guard let stand; None for a given kernel
    spread: float | None = None  # how far kernels of different places are apart, 0 to 2; None with one place or given
    windows: int = 1  # that the image was cut into
    estimate_seconds: float = 0.0
    field: KernelField | None = None  # the kernels of all places, where one for each was asked for
    strength: float = 1.0  # below 1, kernel and noise level were told weaker than they are said here


def default_device() -> torch.device:
    """Return the CUDA card of this process if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Restorer:
    """Restore images with a network of known identity, on one device, in eval mode."""

    def __init__(self, network: BlindUSRNet | USRNet, *, uri: str, digest: str, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.uri, self.digest, self.device = uri, digest, device

    @classmethod
    def load(cls, uri: str | Path, device: torch.device | None = None) -> Restorer:
        """Load a model.

        Args:
            uri: `shipped:blind-sr`, `models:/name@alias`, `models:/name/3`, a model or checkpoint directory (local
                or s3://), or the `.pth` of a published USRNet, which restores with given kernels only.
            device: where it runs; the CUDA card of this process if it has one, else the CPU.

        Raises:
            BadRequestError: no such model.
            ArtefactError: its files are missing, damaged or of another program version.
        """
        text, device = str(uri), device or default_device()
        if text.endswith((".pth", ".pt")):
            return cls(load_usrnet(text), uri=text, digest=storage.sha256_of(text), device=device)
        directory = text
        if text.startswith(SCHEME):
            directory = str(shipped_folder(text))
        elif text.startswith("models:/"):
            from pipeline.tracking.registry import download

            directory = str(download(text))
        if not storage.exists(storage.join(directory, MANIFEST)):
            raise ArtefactError(
                f"{text}: holds no {MANIFEST}; give shipped:NAME, models:/NAME@ALIAS, models:/NAME/VERSION, "
                "a model or checkpoint directory, or the .pth of a published USRNet"
            )
        network, manifest = load_model(directory), read_manifest(directory)
        return cls(network, uri=text, digest=manifest.sha256[manifest.used], device=device)

    def on(self, device: torch.device) -> Restorer:
        """Return the same model on another device."""
        return Restorer(self.network, uri=self.uri, digest=self.digest, device=device)

    @property
    def is_blind(self) -> bool:
        """Tell whether it can estimate the kernel."""
        return isinstance(self.network, BlindUSRNet)

    @property
    def kernel_side(self) -> int:
        """Return the side of the kernels it estimates; of a model that does not say, of the widest expected."""
        return self.network.kernel_size if isinstance(self.network, BlindUSRNet) else _DEFAULT_REACH

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the scale factors it was made for."""
        return tuple(self.network.config.scales)

    def restore(
        self,
        image: np.ndarray,
        scale: int,
        sigma: float | Literal["auto"] = "auto",
        kernel: np.ndarray | None = None,
        *,
        x0: FirstEstimate | Restorer = None,
        self_ensemble: bool = False,
        max_memory: int = MAX_MEMORY,
        strength: float = 1.0,
        kernel_field: bool = False,
        file_error: float = 0.0,
        grid: Grid = "centre",
    ) -> Restored:
        """Restore a real photograph: estimate its kernel unless given, then restore it, in windows where it is large.

        The kernel is one for the whole image, estimated at up to three well-textured places, unless a field of them is
        asked for. The guard keeps an estimate only where the image restored with it is more plausible
        (`pipeline/model/guard.py`).

        Args:
            image: uint8, uint16, or float32 in [0, 1]; (h, w) grey, (h, w, 2) grey with alpha, (h, w, 3) RGB or
                (h, w, 4) RGBA; alpha is restored apart, with the same kernel.
            scale: one of `scales`.
            sigma: noise level on the [0, 1] scale, or `auto` to estimate it.
            kernel: (k, k), k odd, sum 1, if it is known.
            x0: where the unfoldings start, instead of what the model was made with: another model's restoration with
                the same kernel, an image (s*h, s*w, 3) of the input's type, or an interpolation.
            self_ensemble: the mean over the eight flips and quarter turns; eight times the work.
            max_memory: bytes that this process (or the card's memory in it) may grow to.
            strength: how much of the blur is undone, from 0, close to a plain enlargement, to 1.
            kernel_field: whether every place has a kernel of its own, for blur that varies; many times the work.
            file_error: RMS error on the [0, 1] scale that the image's file is known to have, as a JPEG has; `auto` adds
                it to the noise that the pixels show.
            grid: `centre` puts the restored picture where a bicubic enlargement lies, whatever the kernel; `corner`
                puts LR pixel (i, j) on HR pixel (s*i, s*j) of a centred kernel, as the article does.

        Raises:
            BadRequestError: a scale the model was not made for, an image, kernel or x0 of the wrong shape, a
                non-blind model without a kernel, a kernel and a field of them, a strength outside [0, 1], a memory
                limit that no window fits into.
        """
        started = time.perf_counter()
        self.check(scale, kernel_given=kernel is not None)
        check_strength(strength)
        if kernel is not None and kernel_field:
            raise BadRequestError("kernel_field estimates the kernels; leave out the given one")
        colour, alpha = _planes(image)
        if kernel is not None and (kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0):
            raise BadRequestError(f"kernel: (k, k) with an odd side is expected, got {kernel.shape}")
        level = math.hypot(estimate_sigma(colour), file_error) if sigma == "auto" else float(sigma)
        lr = _to_float(colour)
        found = Estimate(kernel, None, None) if kernel is not None else estimate_kernel(self, lr, scale, level, grid)
        assert found.kernel is not None
        used = place(found.kernel, scale, grid)
        size = {"item": image.itemsize, "channels": _channels(image)}
        settings = Settings(scale, level, used, self_ensemble, max_memory, *_start(x0, scale, lr))
        field = estimate_field(self, lr, settings, grid, **size) if kernel_field else None
        estimated = time.perf_counter()
        settings = settings._replace(sigma=told_sigma(level, strength), kernel=told_kernel(used, strength))
        told = None if field is None else field.weakened(strength)
        result = _restored(self, lr, settings, told, **size)
        restored = _to_type(result.image, image.dtype)
        if is_grey(image):
            grey = _to_type(result.image.mean(-1, keepdims=True), image.dtype)
            restored = grey if alpha is not None else grey[..., 0]
        if alpha is not None:
            own = settings._replace(x0=None, x0_model=None, sigma=told_sigma(0.0, strength))
            restored = np.concatenate([restored, self._alpha(alpha, own, told, image)], axis=-1)
        return Restored(
            image=restored,
            kernel=np.asarray(used, np.float32),
            sigma=level,
            residual=result.residual,
            scale=scale,
            seconds=time.perf_counter() - started,
            kernel_round=found.kernel_round,
            spread=found.spread,
            windows=result.windows,
            estimate_seconds=estimated - started,
            field=field,
            strength=strength,
        )

    def _alpha(self, alpha: np.ndarray, settings: Settings, field: KernelField | None, image: np.ndarray) -> np.ndarray:
        """(h, w) -> (s*h, s*w, 1) of the image's type; an alpha that is the same everywhere stays exactly that."""
        height, width = (settings.scale * side for side in alpha.shape)
        if (alpha == alpha.flat[0]).all():
            return np.full((height, width, 1), alpha.flat[0])
        planes = grey_to_rgb(_to_float(alpha))
        result = _restored(self, planes, settings, field, item=image.itemsize, channels=4)
        return _to_type(result.image[..., :1], image.dtype)

    def blind(
        self, lr: Tensor, scale: int, sigma: float, observed: Tensor | None = None, grid: Grid = "corner"
    ) -> BlindOutput:
        """Run the network itself on a periodic image, (1, 3, h, w) in [0, 1] on `device`.

        Nothing is extended or clipped.

        A kernel estimate stands only where it scores no worse than the one before (`pipeline/model/guard.py`).

        Args:
            lr: the image, made periodic.
            scale: one of `scales`.
            sigma: noise level.
            observed: its upper-left part that a camera saw, if not all. The initial kernel is read off that part, and
                the guard judges that part: the smooth band of an extension has a spectrum of its own, and rings.
            grid: where the LR pixels lie in their blocks.

        Raises:
            BadRequestError: the model is not blind.
        """
        if not isinstance(self.network, BlindUSRNet):
            raise BadRequestError(f"{self.uri} is not a blind model; give a kernel")
        with torch.inference_mode():
            first = self.network.initial(lr if observed is None else observed, scale, sigma)
            part = None if observed is None else (observed.shape[-2], observed.shape[-1])
            out: BlindOutput = self.network.infer(lr, scale, sigma, initial=first, observed_size=part, grid=grid)
            return out

    def nonblind(self, lr: Tensor, kernel: Tensor, scale: int, sigma: float, x0: Tensor | None = None) -> Tensor:
        """Run the restorer with a known kernel on a periodic image, to (1, 3, s*h, s*w), not clipped.

        Args:
            lr: (1, 3, h, w) in [0, 1] on `device`.
            kernel: (1, k, k).
            scale: one of `scales`.
            sigma: noise level.
            x0: (1, 3, s*h, s*w) first estimate; None for the model's own.
        """
        with torch.inference_mode():
            if isinstance(self.network, BlindUSRNet):
                return self.network.restore(lr, kernel, scale, sigma, x0)
            sr: Tensor = self.network(lr, kernel, scale, sigma, x0)
            return sr

    def alpha(self, scale: int, sigma: float) -> float:
        """Return the smallest of the network's data weights: the smaller, the further the inverse filter reaches."""
        return smallest_alpha(self.network, scale, sigma, self.device)

    def tensor(self, image: np.ndarray) -> Tensor:
        """Convert (h, w, 3) floating point in [0, 1] to (1, 3, h, w) float32 on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None].to(self.device)

    def check(self, scale: int, *, kernel_given: bool) -> None:
        """Refuse what the model cannot do. Raises BadRequestError that says what it can."""
        if scale not in self.scales:
            raise BadRequestError(
                f"{self.uri} was not made for scale {scale}; it restores {', '.join(map(str, self.scales))}"
            )
        if not kernel_given and not self.is_blind:
            raise BadRequestError(f"{self.uri} cannot estimate a kernel; give one (--kernel FILE) or use a blind model")


def _restored(
    restorer: Restorer, lr: np.ndarray, settings: Settings, field: KernelField | None, *, item: int, channels: int
) -> Result:
    """Restore with the settings' kernel, or with a field of them."""
    if field is None:
        return restore_planes(restorer, lr, settings, item=item, channels=channels)
    return restore_field(restorer, lr, settings, field, item=item, channels=channels)


def _start(
    x0: FirstEstimate | Restorer, scale: int, lr: np.ndarray
) -> tuple[np.ndarray | Literal["nearest", "bicubic"] | None, Restorer | None]:
    """x0 as an image or interpolation, or as a model."""
    if isinstance(x0, Restorer):
        x0.check(scale, kernel_given=True)
        return None, x0
    if isinstance(x0, np.ndarray):
        expected = (scale * lr.shape[0], scale * lr.shape[1], 3)
        if x0.shape != expected:
            raise BadRequestError(f"x0: {expected} is expected, got {x0.shape}")
        return _to_float(x0), None
    return x0, None


def _planes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour (h, w, 3) and alpha (h, w) of an image."""
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise BadRequestError(f"image: uint8, uint16 or float32 is expected, got {image.dtype}")
    if 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (2, 3, 4))):
        raise BadRequestError(
            "image: (h, w) grey, (h, w, 2) grey with alpha, (h, w, 3) RGB or (h, w, 4) RGBA is expected, "
            f"got {image.shape}"
        )
    alpha = image[..., -1] if has_alpha(image) else None
    if is_grey(image):
        return grey_to_rgb(image if alpha is None else image[..., 0]), alpha
    return image[..., :3], alpha


def _channels(image: np.ndarray) -> int:
    return 1 if image.ndim == 2 else image.shape[2]


def _to_float(values: np.ndarray) -> np.ndarray:
    """To float32 in [0, 1]."""
    if values.dtype == np.float32:
        return values
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def _to_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """From float32 in [0, 1], rounded; strip by strip, since the image may fill most of the memory."""
    if dtype == np.float32:
        return values
    peak = np.float32(np.iinfo(dtype).max)
    out = np.empty(values.shape, dtype)
    for top in range(0, values.shape[0], 256):
        out[top : top + 256] = np.rint(values[top : top + 256] * peak)
    return out
