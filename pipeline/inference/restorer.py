"""A trained model as something to use: `Restorer.load("models:/blind-sr-x2@champion").restore(image, scale=2)`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kernels_bank.runtime import storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.degrade import degrade
from pipeline.inference.boundary import periodic_extension
from pipeline.inference.noise import estimate_sigma
from pipeline.model import BlindOutput, BlindUSRNet, USRNet
from pipeline.model.weights import MANIFEST, WEIGHTS, load_model, load_usrnet

_AVERAGED = "ema.safetensors"  # a training checkpoint's averaged weights; they restore better than the last ones
_DEFAULT_REACH = 25  # side of the widest kernel expected when the model does not say


@dataclass(frozen=True)
class Restored:
    """One restored image and what was assumed to make it."""

    image: np.ndarray  # (s*h, s*w, 3) uint8 RGB
    kernel: np.ndarray  # (k, k) float32, >= 0, sum 1: estimated, or the one given
    sigma: float  # noise level told to the network, [0, 1] scale
    residual: float  # RMS of |(restored * kernel)down - input|, [0, 1] scale; far above sigma: not explained
    scale: int
    seconds: float


def default_device() -> torch.device:
    """The CUDA card of this process if it has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Restorer:
    """A network with its identity, on one device, in eval mode."""

    def __init__(self, network: BlindUSRNet | USRNet, *, uri: str, digest: str, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.uri, self.digest, self.device = uri, digest, device

    @classmethod
    def load(cls, uri: str | Path, device: torch.device | None = None) -> Restorer:
        """Load a model.

        Args:
            uri: `models:/name@alias`, `models:/name/3`, a model or checkpoint directory (local or s3://), or the
                `.pth` of a published USRNet, which restores with given kernels only.
            device: where it runs; the CUDA card of this process if it has one, else the CPU.

        Raises:
            BadRequestError: no such model.
            ArtefactError: its files are missing, damaged or of another program version.
        """
        text, device = str(uri), device or default_device()
        if text.endswith((".pth", ".pt")):
            return cls(load_usrnet(text), uri=text, digest=storage.sha256_of(text), device=device)
        directory = text
        if text.startswith("models:/"):
            from pipeline.tracking.registry import download

            directory = str(download(text))
        if not storage.exists(storage.join(directory, MANIFEST)):
            raise ArtefactError(
                f"{text}: holds no {MANIFEST}; give models:/NAME@ALIAS, models:/NAME/VERSION, "
                "a model or checkpoint directory, or the .pth of a published USRNet"
            )
        weights = _AVERAGED if storage.exists(storage.join(directory, _AVERAGED)) else WEIGHTS
        network = load_model(directory, weights=weights)
        return cls(network, uri=text, digest=storage.sha256_of(storage.join(directory, weights)), device=device)

    @property
    def is_blind(self) -> bool:
        """Whether it can estimate the kernel."""
        return isinstance(self.network, BlindUSRNet)

    @property
    def scales(self) -> tuple[int, ...]:
        """The scale factors it was made for."""
        return tuple(self.network.config.scales)

    def restore(
        self,
        image: np.ndarray,
        scale: int,
        sigma: float | Literal["auto"] = "auto",
        kernel: np.ndarray | None = None,
    ) -> Restored:
        """Restore a real photograph: periodic extension, kernel estimate (unless given), restoration, crop.

        Args:
            image: (h, w, 3) uint8 RGB.
            scale: one of `scales`.
            sigma: noise level on the [0, 1] scale, or `auto` to estimate it.
            kernel: (k, k), k odd, >= 0, sum 1, if it is known.

        Raises:
            BadRequestError: a scale the model was not made for, an image or kernel of the wrong shape, a non-blind
                model without a kernel.
        """
        started = time.perf_counter()
        self.check(scale, kernel_given=kernel is not None)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise BadRequestError(f"image: (h, w, 3) uint8 RGB is expected, got {image.shape} {image.dtype}")
        if kernel is not None and (kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0):
            raise BadRequestError(f"kernel: (k, k) with an odd side is expected, got {kernel.shape}")
        level = estimate_sigma(image) if sigma == "auto" else float(sigma)
        extended = periodic_extension(image / np.float32(255), self._margin(scale, kernel))
        lr = self.tensor(extended)
        if kernel is None:
            out = self.blind(lr, scale, level, seen=self.tensor(image / np.float32(255)))
            sr, used = out.sr, out.kernel
        else:
            used = torch.as_tensor(kernel, dtype=torch.float32, device=self.device)[None]
            sr = self.nonblind(lr, used, scale, level)
        sr = sr.clamp(0, 1)
        height, width = image.shape[:2]
        explained = degrade(sr, used, scale)
        residual = (explained - lr)[..., :height, :width].square().mean().sqrt()
        restored = (sr[0, :, : scale * height, : scale * width] * 255).round().byte().permute(1, 2, 0)
        return Restored(
            image=restored.cpu().numpy(),
            kernel=used[0].cpu().numpy(),
            sigma=level,
            residual=float(residual),
            scale=scale,
            seconds=time.perf_counter() - started,
        )

    def blind(self, lr: Tensor, scale: int, sigma: float, seen: Tensor | None = None) -> BlindOutput:
        """The network itself on a periodic image: (1, 3, h, w) in [0, 1] on `device`; nothing is extended or clipped.

        Args:
            lr: the image, made periodic.
            scale: one of `scales`.
            sigma: noise level.
            seen: the part of it that a camera saw, if not all: the initial kernel is read off that alone, since the
                smooth band of an extension has a spectrum of its own.

        Raises:
            BadRequestError: the model is not blind.
        """
        if not isinstance(self.network, BlindUSRNet):
            raise BadRequestError(f"{self.uri} is not a blind model; give a kernel")
        with torch.inference_mode():
            first = self.network.initial(lr if seen is None else seen, scale, sigma)
            out: BlindOutput = self.network(lr, scale, sigma, first=first)
            return out

    def nonblind(self, lr: Tensor, kernel: Tensor, scale: int, sigma: float) -> Tensor:
        """The restorer with a known kernel (1, k, k) on a periodic image: (1, 3, s*h, s*w), not clipped."""
        with torch.inference_mode():
            if isinstance(self.network, BlindUSRNet):
                return self.network.restore(lr, kernel, scale, sigma)
            sr: Tensor = self.network(lr, kernel, scale, sigma)
            return sr

    def tensor(self, image: np.ndarray) -> Tensor:
        """(h, w, 3) floating point in [0, 1] to (1, 3, h, w) float32 on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None].to(self.device)

    def check(self, scale: int, *, kernel_given: bool) -> None:
        """Refuse what the model cannot do. Raises BadRequestError that says what it can."""
        if scale not in self.scales:
            raise BadRequestError(
                f"{self.uri} was not made for scale {scale}; it restores {', '.join(map(str, self.scales))}"
            )
        if not kernel_given and not self.is_blind:
            raise BadRequestError(f"{self.uri} cannot estimate a kernel; give one (--kernel FILE) or use a blind model")

    def _margin(self, scale: int, kernel: np.ndarray | None) -> int:
        known = self.network.kernel_size if isinstance(self.network, BlindUSRNet) else _DEFAULT_REACH
        side = max(known, 0 if kernel is None else kernel.shape[0])
        return -(-side // scale) + 8
