"""Blur kernels: how they are drawn, stored and encoded. The package does not depend on images or `pipeline/`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels_bank.bank import KernelBank
    from kernels_bank.benchmark import benchmark_kernels
    from kernels_bank.codec import KernelCodec
    from kernels_bank.defocus import sample_disk
    from kernels_bank.gaussian import sample_gaussian
    from kernels_bank.generate import build_bank
    from kernels_bank.load import load_kernels
    from kernels_bank.motion import sample_motion
    from kernels_bank.spec import KernelBankSpec

# Name -> module. Each module is imported when its name is first used, so `import kernels_bank` itself is cheap.
_HOMES = {
    "KernelBank": "bank",
    "KernelBankSpec": "spec",
    "KernelCodec": "codec",
    "benchmark_kernels": "benchmark",
    "build_bank": "generate",
    "load_kernels": "load",
    "sample_disk": "defocus",
    "sample_gaussian": "gaussian",
    "sample_motion": "motion",
}

__all__ = [
    "KernelBank",
    "KernelBankSpec",
    "KernelCodec",
    "benchmark_kernels",
    "build_bank",
    "load_kernels",
    "sample_disk",
    "sample_gaussian",
    "sample_motion",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"kernels_bank.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'kernels_bank' has no attribute '{name}'")
