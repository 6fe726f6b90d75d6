"""The loss of a code of a given length for each family's kernels."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from kernels_bank.codec import KernelCodec
from kernels_bank.sampling import draw_range
from kernels_bank.spec import Family, KernelBankSpec

# Lengths that are always reported: the literature's 10, and those that mixed banks need.
LENGTHS = (10, 24, 64, 110)
# Number of kernels measured in each family; they are drawn again, which is cheaper than reading them.
SAMPLE = 2048
# Limit of float32 kernels.
_BEST_DB = 120.0

Samples = dict[Family, tuple[np.ndarray, dict[str, np.ndarray]]]


class Loss(BaseModel):
    """Hold the quality with `components` components: the share of the bank's variance, and dB by family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    components: int
    explained_variance: float
    psnr: dict[Family, float]


def draw_samples(spec: KernelBankSpec, count: int = SAMPLE) -> Samples:
    """Draw the first kernels of each family of the bank, and their parameters."""
    return {f: draw_range(spec, f, 0, min(n, count)) for f, n in spec.counts.items() if n}


def measure(samples: Samples, codec: KernelCodec, kept: int) -> list[Loss]:
    """Measure the losses at `LENGTHS` and at the length `kept`, as far as `codec` has that many components."""
    return [
        Loss(
            components=short.components,
            explained_variance=round(short.explained_variance, 6),
            psnr={family: round(float(decoded_psnr(k, short).mean()), 2) for family, (k, _) in samples.items()},
        )
        for short in (codec.truncated(length) for length in sorted({*LENGTHS, kept}) if length <= codec.components)
    ]


def decoded_psnr(kernels: np.ndarray, codec: KernelCodec) -> np.ndarray:
    """Compute `kernel_psnr` (N,) of kernels after encoding and decoding."""
    return kernel_psnr(codec.decode(codec.encode(kernels)), kernels)


def kernel_psnr(estimates: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """Compute a kernel's PSNR: 10 log10(peak^2 / mean squared error), with the true kernel's peak.

    Args:
        estimates: (N, k, k).
        kernels: (N, k, k), the truth.

    Returns:
        (N,) dB, at most 120.
    """
    peak = kernels.max(axis=(1, 2)).astype(np.float64)
    error = ((estimates.astype(np.float64) - kernels) ** 2).mean(axis=(1, 2))
    return np.asarray(10 * np.log10(peak * peak / np.maximum(error, peak * peak * 10 ** (-_BEST_DB / 10))))
