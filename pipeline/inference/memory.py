"""How much memory a restoration takes, so that windows can be made to fit a limit."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.inference.allocator import give_back_free_memory
from pipeline.model_config import RestorerConfig

# float32 values alive for each HR pixel at the peak, counted on fake tensors for widths from 4 to 64
# (tests/unit/inference/test_memory.py). Resident memory grew by 1.03 times that for large windows; what libraries and
# allocator keep for themselves does not grow with them.
_PER_CHANNEL, _FIXED, _WORKSPACE = 5.9, 20.0, 1.1
RESERVE = 96 * 2**20
# cuFFT keeps a plan for each size and batch, by default 4096 of them, in memory that PyTorch does not count. A
# photograph takes about six; a server that restores one size after the other must not keep them all.
_FFT_PLANS = 96


def window_bytes(config: RestorerConfig) -> float:
    """Return the restorer's peak memory for each HR pixel of a window."""
    return 4 * _WORKSPACE * (_FIXED + _PER_CHANNEL * config.widths[0])


def image_bytes(scale: int, channels: int, item: int) -> float:
    """Return the bytes for each LR pixel of an image: itself, its torus, the result, and its encoded copies.

    Args:
        scale: s.
        channels: of the input, 1 to 4.
        item: bytes of one value of the input.
    """
    return 24 + item * channels + scale**2 * (12 + 3 * item * channels)


def in_use(device: torch.device) -> int:
    """Return the bytes that the process holds: resident memory, or what is allocated on its card.

    Freed memory that the C library kept is given back first: a window may have it.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    give_back_free_memory()
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    return 0


def bound_fft_plans(device: torch.device) -> None:
    """Limit the FFT plans that a card keeps; a CPU keeps few by itself."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.backends.cuda.cufft_plan_cache[index].max_size = _FFT_PLANS


def close_gaps(device: torch.device) -> None:
    """Give back what the C library kept, before a window fills most of what is left.

    Its tensors do not fit into the gaps that smaller ones left, and these become more with every window.
    """
    if device.type == "cpu":
        give_back_free_memory()


def give_back(device: torch.device) -> None:
    """Give memory that the allocator keeps for itself back to the card, so that blocks of another size fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
