"""The memory of a restoration, from which the windows that fit a limit are chosen."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.inference.allocator import give_back_free_memory
from pipeline.model_config import RestorerConfig

# Float32 values per HR pixel at the peak: 11 to 18% more than are alive on fake tensors of widths from 4 to 64
# (tests/unit/inference/test_memory.py). Resident memory grew by 0.98 times that for large windows; the overhead of
# libraries and allocator does not grow with them.
_PER_CHANNEL, _FIXED, _WORKSPACE = 5.9, 20.0, 1.1
RESERVE = 96 * 2**20
# cuFFT caches a plan for each size and batch, by default up to 4096, in memory that PyTorch does not count. A
# photograph needs about six; a server that restores many sizes must not keep them all.
_FFT_PLANS = 96


def window_bytes(config: RestorerConfig) -> float:
    """Return the restorer's peak memory in bytes per HR pixel of a window."""
    return 4 * _WORKSPACE * (_FIXED + _PER_CHANNEL * config.widths[0])


def image_bytes(scale: int, channels: int, item: int) -> float:
    """Return the bytes per LR pixel of an image: the image, its torus, the result, and its encoded copies.

    Args:
        scale: s.
        channels: channels of the input, 1 to 4.
        item: bytes of one value of the input.
    """
    return 24 + item * channels + scale**2 * (12 + 3 * item * channels)


def in_use(device: torch.device) -> int:
    """Return the bytes that the process holds: resident memory, or allocated memory of its GPU.

    Freed memory kept by the C library is returned first, since a window can use it.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    give_back_free_memory()
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    return 0


def bound_fft_plans(device: torch.device) -> None:
    """Limit the cached FFT plans of a GPU; a CPU caches few anyway."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.backends.cuda.cufft_plan_cache[index].max_size = _FFT_PLANS


def close_gaps(device: torch.device) -> None:
    """Return memory kept by the C library to the system before a window fills most of the rest.

    The window's tensors do not fit into gaps left by smaller tensors, and the gaps grow with every window.
    """
    if device.type == "cpu":
        give_back_free_memory()


def give_back(device: torch.device) -> None:
    """Return memory cached by PyTorch's allocator to the GPU, so that blocks of another size fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
