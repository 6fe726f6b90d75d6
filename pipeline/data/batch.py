"""What a training step gets: one batch, on any device. Nothing here knows where samples come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """Hold what a training step gets; every image of a batch has the same scale."""

    lr: torch.Tensor  # (B, 3, p/s, p/s) float32
    hr: torch.Tensor  # (B, 3, p, p) float32 in [0, 1]
    kernel: torch.Tensor  # (B, k, k) float32
    sigma: torch.Tensor  # (B,) float32, [0, 1] scale
    scale: int
    keys: tuple[str, ...]
    replaced: int  # samples whose tile was damaged and whose place another took
    bad: tuple[str, ...] = ()  # the damaged shards and tiles behind them

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        names = ("lr", "hr", "kernel", "sigma")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})
