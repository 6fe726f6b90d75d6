"""Blur kernels: how they are drawn, stored and encoded. Knows nothing of images or of `pipeline/`."""

from __future__ import annotations

from kernels_bank.codec import KernelCodec

__all__ = ["KernelCodec"]
