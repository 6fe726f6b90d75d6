"""Choose the number format of a restoration's convolutions: bf16 if the processor is clearly faster with it."""

from __future__ import annotations

import threading
import time
from functools import cache

import torch
import torch.nn.functional as F

from pipeline.config import Format, Precision

# Speed-up from which bfloat16 is worth its rounding: processors with fast units for it reach 2, others 0.5 to 0.7.
_WORTH = 1.4
_measuring = threading.Lock()
_CHANNELS, _SIDE, _TIMES = 32, 96, 6  # size of the measured layer, 2 ms in float32


def chosen(precision: Precision, device: torch.device) -> Format:
    """Resolve `auto`: bf16 if this processor is clearly faster with it, measured once per process in 20 ms.

    On a GPU `auto` is float32, since bf16 has not been measured there.

    Args:
        precision: requested precision.
        device: device on which the network runs.
    """
    if precision != "auto":
        return precision
    if device.type != "cpu":
        return "float32"
    with _measuring:  # the measurement changes the number of threads of the whole process for a moment
        return "bf16" if gain_of_bf16() > _WORTH else "float32"


def convolving(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which a network runs. FFTs, the hyper-parameter net and the last layer stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen(precision, device) == "bf16")


@cache
def gain_of_bf16() -> float:
    """Measure the speed-up of bf16 over float32 on this processor: one convolution layer, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, several threads would wait for each other
    try:
        pairs = [(_seconds(torch.float32), _seconds(torch.bfloat16)) for _ in range(_TIMES)]
    finally:
        torch.set_num_threads(threads)
    # The first run of each selects its algorithm. The minimum of the others is the least disturbed by other work.
    single, half = (min(times) for times in zip(*pairs[1:], strict=True))
    return single / half


def _seconds(dtype: torch.dtype) -> float:
    image = torch.zeros(1, _CHANNELS, _SIDE, _SIDE, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.zeros(_CHANNELS, _CHANNELS, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        started = time.thread_time()
        F.conv2d(image, weight, padding=1)
        return time.thread_time() - started
