"""The known or estimated reduction of a batch of images, which turns a blur into the composite kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels_bank.names import Grid
from kernels_bank.reduction import REDUCTIONS
from pipeline.model.fourier import spectrum, transfer_function
from pipeline.reduction import compose, mixed_reductions


@dataclass(frozen=True)
class Reducer:
    """Join blurs with the reduction that followed them."""

    shares: Tensor | None  # (B, 4) probability of each of `REDUCTIONS`; None: direct decimation
    scale: int
    grid: Grid

    def compose(self, blur: Tensor) -> Tensor:
        """Return composite kernels (B, k, k) of blurs (B, k, k); the blurs themselves for direct decimation."""
        if self._is_plain:
            return blur
        return compose(blur, self._shares(blur), self.scale, self.grid)

    def reduce(self, x: Tensor) -> Tensor:
        """Apply the reductions alone to periodic HR images (B, C, H, W); only the blur is then left to estimate."""
        if self._is_plain:
            return x
        filters = mixed_reductions(self._shares(x), self.scale, self.grid)
        size = x.shape[-2:]
        return torch.fft.irfft2(spectrum(x) * transfer_function(filters, *size), s=size)

    @property
    def _is_plain(self) -> bool:
        return self.shares is None and self.grid == "corner"

    def _shares(self, like: Tensor) -> Tensor:
        if self.shares is not None:
            return self.shares.to(like)
        return torch.eye(len(REDUCTIONS), dtype=like.dtype, device=like.device)[:1].expand(len(like), -1)
