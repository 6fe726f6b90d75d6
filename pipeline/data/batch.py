"""The input of a training step: one batch, on any device. This module does not depend on the source of samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """Hold the input of a training step. Every image of a batch has the same scale."""

    lr: torch.Tensor  # (B, 3, p/s, p/s) float32
    hr: torch.Tensor  # (B, 3, p, p) float32 in [0, 1]
    kernel: torch.Tensor  # (B, k, k) float32
    sigma: torch.Tensor  # (B,) float32, [0, 1] scale
    scale: int
    keys: tuple[str, ...]
    replaced: int  # number of samples whose damaged tile was replaced by another
    bad: tuple[str, ...] = ()  # the damaged shards and tiles

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        names = ("lr", "hr", "kernel", "sigma")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})
