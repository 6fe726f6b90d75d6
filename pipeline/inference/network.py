"""A trained network on a device, run on periodic images as in training: the basis of every restoration."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from kernels_bank.names import Grid
from kernels_bank.runtime.errors import BadRequestError
from pipeline.catalogue import ModelLocation, locate, open_network
from pipeline.config import Format, Precision
from pipeline.inference import memory
from pipeline.inference.arguments import choice
from pipeline.inference.precision import chosen, convolving
from pipeline.inference.trust import TrustNet, open_trust
from pipeline.model import BlindOutput, BlindUSRNet, USRNet
from pipeline.model.initial import Initial
from pipeline.model.usrnet import Tick

_DEFAULT_REACH = 25


def default_device() -> torch.device:
    """Return the GPU of this process if it has one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _present(device: torch.device | str) -> torch.device:
    """Return a device by its name. Raises BadRequestError if this process has no such device."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BadRequestError(f"device {device!r}: cannot be used here ({reason}); choose cpu or cuda") from error


class LoadedNetwork:
    """Run a network of known identity, on one device, in eval mode.

    Args:
        network: network with its weights.
        uri: name of the model.
        digest: sha256 of its weights.
        device: device that it is moved to.
        trust: net that estimates how far a blind restoration is right; None leaves restorations as they are.
        precision: number format of the convolutions, or `auto`.
    """

    def __init__(
        self,
        network: BlindUSRNet | USRNet,
        *,
        uri: str,
        digest: str,
        device: torch.device,
        trust: TrustNet | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.network = network.to(device).eval()
        self.uri, self.digest, self.device, self.trust = uri, digest, device, trust
        self._precision: Precision = precision
        memory.bound_fft_plans(device)

    @classmethod
    def load(
        cls,
        uri: str | Path | ModelLocation,
        device: torch.device | str | None = None,
        precision: Precision = "float32",
    ) -> Self:
        """Load a model.

        Args:
            uri: `shipped:blind-sr`, `models:/name@alias`, `models:/name/3`, a model or checkpoint directory (local
                or s3://), or the `.pth` of a published USRNet, which only restores with given kernels; or a result of
                `pipeline.catalogue.locate`.
            device: device to run on; by default the GPU of this process if it has one, otherwise the CPU.
            precision: number format of the convolutions. `float32` gives the same picture on every machine to within
                rounding. `bf16` changes pixels by 0.2 to 0.35/255 (RMS), which costs about 0.01 dB, and is 1.9 times as
                fast on processors with units for it. `auto` takes bf16 on a CPU that is at least 1.4 times as fast with
                it, measured once per process, otherwise float32; on a GPU float32.

        Raises:
            BadRequestError: there is no such model, device or precision.
            ArtefactError: its files are missing, damaged or of another program version.
        """
        where = default_device() if device is None else _present(device)
        choice("precision", precision, Precision)
        location = uri if isinstance(uri, ModelLocation) else locate(str(uri))
        network, digest = open_network(location)
        name = location.name if isinstance(uri, ModelLocation) else str(uri)
        trust = open_trust(location)
        return cls(network, uri=name, digest=digest, device=where, trust=trust, precision=precision)

    def on(self, device: torch.device) -> Self:
        """Return the same model on another device."""
        network, trust, precision = self.network, self.trust, self._precision
        return type(self)(network, uri=self.uri, digest=self.digest, device=device, trust=trust, precision=precision)

    @property
    def precision(self) -> Format:
        """Return the number format of the convolutions on this device."""
        return chosen(self._precision, self.device)

    @property
    def is_blind(self) -> bool:
        """Return whether the network can estimate the kernel."""
        return isinstance(self.network, BlindUSRNet)

    @property
    def kernel_side(self) -> int:
        """Return the side of the kernels that it estimates; for a non-blind model, of the widest expected kernels."""
        return self.network.kernel_size if isinstance(self.network, BlindUSRNet) else _DEFAULT_REACH

    @property
    def kernel_steps(self) -> int:
        """Return the number of kernel steps of an estimate."""
        return self.network.config.kernel.steps if isinstance(self.network, BlindUSRNet) else 0

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the supported scale factors."""
        return self.network.scales

    def check(self, scale: int, *, kernel_given: bool) -> None:
        """Refuse a request that the model does not support. Raises BadRequestError, which names what it supports."""
        if scale not in self.scales:
            raise BadRequestError(
                f"{self.uri} was not made for scale {scale}; it restores {', '.join(map(str, self.scales))}"
            )
        if not kernel_given and not self.is_blind:
            raise BadRequestError(f"{self.uri} cannot estimate a kernel; give one (--kernel FILE) or use a blind model")

    def tensor(self, image: np.ndarray) -> Tensor:
        """Convert (h, w, 3) floating point in [0, 1] to (1, 3, h, w) float32 on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(image, np.float32)).permute(2, 0, 1)[None].to(self.device)

    def blind(
        self,
        lr: Tensor,
        scale: int,
        sigma: float,
        observed: Tensor | None = None,
        grid: Grid = "corner",
        tick: Tick | None = None,
        first: Initial | None = None,
    ) -> BlindOutput:
        """Estimate the kernel of a periodic image and restore it, without extension or clipping.

        A kernel estimate is accepted only if it scores no worse than the one before (`pipeline/model/guard.py`).

        Args:
            lr: the image, made periodic, (1, 3, h, w) in [0, 1] on `device`.
            scale: one of `scales`.
            sigma: noise level.
            observed: upper-left part of `lr` that a camera saw, if not all. Only that part is used for the initial
                kernel and by the guard, since the smooth band of an extension has another spectrum, and rings.
            grid: position of the LR pixels in their blocks.
            tick: called after each unfolding and each kernel step.
            first: the initial kernel, if it is already known.

        Raises:
            BadRequestError: the model is not blind.
        """
        network = self._blind()
        with torch.inference_mode(), convolving(self._precision, self.device):
            first = first or network.initial(lr if observed is None else observed, scale, sigma)
            part = None if observed is None else (observed.shape[-2], observed.shape[-1])
            return network.infer(lr, scale, sigma, initial=first, observed_size=part, grid=grid, tick=tick)

    def initial(self, image: np.ndarray, scale: int, sigma: float) -> Initial:
        """Return the start of the alternation.

        Args:
            image: (h, w, 3) float32 in [0, 1].
            scale: one of `scales`.
            sigma: noise level.

        Raises:
            BadRequestError: the model is not blind.
        """
        with torch.inference_mode():
            return self._blind().initial(self.tensor(image), scale, sigma)

    def is_final(self, first: Initial, size: tuple[int, int]) -> bool:
        """Return whether the initial kernel of a picture of (h, w) is final, as kernel steps would not improve it."""
        network = self._blind()
        kernel = network.config.kernel
        return not kernel.rounds and (not kernel.steps or bool(network.settled(first, size)))

    def _blind(self) -> BlindUSRNet:
        if not isinstance(self.network, BlindUSRNet):
            raise BadRequestError(f"{self.uri} is not a blind model; give a kernel")
        return self.network

    def nonblind(
        self,
        lr: Tensor,
        kernel: Tensor,
        scale: int,
        sigma: float,
        x0: Tensor | None = None,
        tick: Tick | None = None,
    ) -> Tensor:
        """Restore a periodic image with a known kernel, to (1, 3, s*h, s*w), not clipped.

        Args:
            lr: (1, 3, h, w) in [0, 1] on `device`.
            kernel: (1, k, k).
            scale: one of `scales`.
            sigma: noise level.
            x0: (1, 3, s*h, s*w) first estimate; None for the model's own.
            tick: called after each unfolding.
        """
        with torch.inference_mode(), convolving(self._precision, self.device):
            if isinstance(self.network, BlindUSRNet):
                return self.network.restore(lr, kernel, scale, sigma, x0, tick)
            sr: Tensor = self.network(lr, kernel, scale, sigma, x0, tick)
            return sr

    def smallest_alpha(self, scale: int, sigma: float) -> float:
        """Return the smallest of the network's K data weights; smaller ones give the inverse filter a longer reach.

        Args:
            scale: one of `scales`.
            sigma: noise level.
        """
        restorer = self.network.restorer if isinstance(self.network, BlindUSRNet) else self.network
        with torch.inference_mode():
            alphas, _ = restorer.h(torch.tensor([sigma], dtype=torch.float32, device=self.device), scale)
        return float(alphas.min())
