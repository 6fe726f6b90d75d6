"""How good the averaged weights are on the held-out tiles: means over all ranks' samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed

from pipeline.config import TrainConfig
from pipeline.data.batch import Batch
from pipeline.model import BlindUSRNet


@torch.no_grad()
def validate(
    network: torch.nn.Module, batches: Sequence[Batch], train: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Measure `val_psnr` (mean of the images' PSNR, RGB, dB) and `val_kernel_error` (mean of sum |k' - k|, 0 ... 2).

    Only what this run learns: no PSNR for `spectral`, no kernel error for `restorer`. All ranks must call it.

    Args:
        network: the averaged `BlindUSRNet`.
        batches: this rank's share; may be empty.
        train: what is learned.
        device: of the network.

    Returns:
        Nothing at all when no rank has a sample.
    """
    assert isinstance(network, BlindUSRNet)
    training = network.training
    network.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # samples, PSNR, kernel error
    for held_out in batches:
        batch = held_out.to(device)
        sums[0] += len(batch.keys)
        match train.learn:
            case "restorer":
                sr, kernel = network.restore(batch.lr, batch.kernel, batch.scale, batch.sigma), batch.kernel
            case "spectral":
                sr, kernel = batch.hr, network.initial_kernel(batch.lr, batch.scale, batch.sigma)
            case _:
                out = network(batch.lr, batch.scale, batch.sigma)
                sr, kernel = out.sr, out.kernel
        error = (sr.clamp(0, 1) - batch.hr).square().mean((1, 2, 3)).clamp_min(1e-10)
        sums[1] += (-10 * torch.log10(error)).sum()
        sums[2] += (kernel - batch.kernel).abs().sum()
    network.train(training)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    count, psnr, kernel_error = sums.tolist()
    if not count:
        return {}
    found = {"val_psnr": psnr / count, "val_kernel_error": kernel_error / count}
    hidden = {"spectral": "val_psnr", "restorer": "val_kernel_error"}.get(train.learn)
    return {name: value for name, value in found.items() if name != hidden}


def score_of(found: dict[str, float], step: int) -> float:
    """Score a validation: PSNR where images are restored, else minus the kernel error, else the step."""
    match found:
        case {"val_psnr": psnr}:
            return psnr
        case {"val_kernel_error": error}:
            return -error
    return float(step)
