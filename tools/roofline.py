"""The speed of one core of this machine for matrix products, FFTs and memory, and the least times that follow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model import BlurOperator

_ROUNDS = 15


@dataclass(frozen=True)
class Machine:
    """Hold measured rates of one core, float32."""

    product: float  # flop/s of the fastest of matrix products and a 3 x 3 convolution of 256 channels
    fft: float  # flop/s, 2.5 N log2 N for a real transform of N pixels; the fastest of the sizes below
    memory: float  # bytes/s, read and written, of a copy larger than any cache

    def convolution(self, result: Tensor, module: nn.Module, image: Tensor) -> float:
        """Return the least seconds of a convolution: by its flop, or by reading and writing its images."""
        return self.least(convolution_flop(result, module, image), _bytes(image, result))

    def least(self, flop: float, moved: float) -> float:
        """Return the least seconds of so many flop and so many bytes read and written."""
        return max(flop / self.product, moved / self.memory)

    def transform(self, result: Tensor, image: Tensor) -> float:
        """Return the least seconds of a real two-dimensional FFT or its inverse."""
        real = image if result.is_complex() else result
        size = real.shape[-1] * real.shape[-2]
        return 2.5 * real.numel() * math.log2(size) / self.fft

    def data_step(self, result: Tensor, operator: BlurOperator, image: Tensor, spectrum: Tensor, _: Tensor) -> float:
        """Return the least seconds of a data step besides its FFTs: all inputs read once, the result written.

        Args:
            result: result of `BlurOperator.step`.
            operator: operator of the step.
            image: image passed to the step.
            spectrum: spectrum passed to the step.
        """
        return _bytes(result, image, spectrum, operator.transfer, operator.power) / self.memory

    def __str__(self) -> str:
        return (
            f"One core of an {_processor()}: {self.product / 1e9:.0f} GFLOP/s in matrix products and convolutions, "
            f"{self.fft / 1e9:.1f} GFLOP/s in FFTs, {self.memory / 1e9:.1f} GB/s in copies."
        )


def convolution_flop(result: Tensor, module: nn.Module, image: Tensor) -> int:
    """Return the flop of a convolution: two for each product."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    # Each output value of a convolution, or each input value of a transposed one, uses one filter of these weights.
    pixels = image if isinstance(module, nn.ConvTranspose2d) else result
    return 2 * (pixels.numel() // pixels.shape[1]) * weight.numel()


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure_machine() -> Machine:
    """Measure the rates, each as the best of a few rounds of CPU time, since other programs slow the other rounds."""
    large = torch.rand(2**25)
    target = torch.empty_like(large)
    copy = _seconds(lambda: target.copy_(large))
    return Machine(
        product=max(*map(_matrix_rate, (512, 1024)), _convolution_rate()),
        fft=max(map(_fft_rate, (224, 480, 896))),
        memory=2 * 4 * large.numel() / copy,
    )


def _matrix_rate(side: int) -> float:
    """Flop/s of a product of square matrices."""
    matrix = torch.rand(side, side)
    return 2 * side**3 / _seconds(lambda: matrix @ matrix)


def _convolution_rate(channels: int = 256, side: int = 64) -> float:
    """Flop/s of a large 3 x 3 convolution: its library may be faster than that of matrix products."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.rand(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return 2 * 9 * channels**2 * side**2 / _seconds(lambda: layer(image))


def _fft_rate(side: int) -> float:
    """Return the flop/s of transforming three planes forth and back."""
    image = torch.rand(3, side, side)
    seconds = _seconds(lambda: torch.fft.irfft2(torch.fft.rfft2(image), s=(side, side)))
    return 2 * 2.5 * image.numel() * math.log2(side * side) / seconds


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="ascii") as lines:  # noqa: PTH123
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _seconds(work: Callable[[], object]) -> float:
    return least_seconds(work, rounds=_ROUNDS)[0]


def least_seconds(*works: Callable[[], object], rounds: int) -> list[float]:
    """Measure the least CPU seconds of each work over some rounds, in each of which all run one after the other."""
    for work in works:
        work()
    least = [math.inf] * len(works)
    for _ in range(rounds):
        for number, work in enumerate(works):
            started = time.thread_time()
            work()
            least[number] = min(least[number], time.thread_time() - started)
    return least
