"""Validation of the averaged weights on the held-out tiles: means over all ranks' samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed

from kernels_bank.runtime.errors import JobFailedError
from pipeline.config import TrainConfig
from pipeline.data.batch import Batch
from pipeline.model import BlindUSRNet


@torch.no_grad()
def validate(
    network: torch.nn.Module, batches: Sequence[Batch], train: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Measure `val_psnr` (mean of the images' PSNR, RGB, dB) and `val_kernel_error` (mean of sum |k' - k|, 0 ... 2).

    Only metrics of trained parts are measured: no PSNR for `spectral`, no kernel error for `restorer`. If the estimator
    learns, both are also measured for every round (`val_psnr_round_0` for the initial kernel, and so on), which shows
    the gain of each round. All ranks must call it.

    Args:
        network: the averaged `BlindUSRNet`.
        batches: this rank's share; may be empty.
        train: settings that tell which parts are trained.
        device: device of the network.

    Returns:
        The metrics by name; empty if no rank has a sample.
    """
    assert isinstance(network, BlindUSRNet)
    training = network.training
    network.eval()
    last = network.config.kernel.rounds if train.learn in {"all", "kernel"} else 0
    sums = torch.zeros(last + 1, 2, dtype=torch.float64, device=device)  # by round: PSNR, kernel error
    count = torch.zeros((), dtype=torch.float64, device=device)
    for held_out in batches:
        batch = held_out.to(device)
        count += len(batch.keys)
        match train.learn:
            case "restorer":
                rounds = [(network.restore(batch.lr, batch.kernel, batch.scale, batch.sigma), batch.kernel)]
            case "spectral":
                rounds = [(batch.hr, network.initial_kernel(batch.lr, batch.scale, batch.sigma))]
            case _:
                rounds = [each[:2] for each in network(batch.lr, batch.scale, batch.sigma).rounds]
        for number, (sr, kernel) in enumerate(rounds):
            error = (sr.clamp(0, 1) - batch.hr).square().mean((1, 2, 3)).clamp_min(1e-10)
            sums[number, 0] += (-10 * torch.log10(error)).sum()
            sums[number, 1] += (kernel - batch.kernel).abs().sum()
    network.train(training)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
        torch.distributed.all_reduce(count)
    if not count:
        return {}
    means = (sums / count).tolist()
    hidden = {"spectral": "val_psnr", "restorer": "val_kernel_error"}.get(train.learn)
    ends = zip(("val_psnr", "val_kernel_error"), means[-1], strict=True)
    found = {name: value for name, value in ends if name != hidden}
    if last:
        for number, (psnr, kernel_error) in enumerate(means):
            found |= {f"val_psnr_round_{number}": psnr, f"val_kernel_error_round_{number}": kernel_error}
    return found


def score_of(found: dict[str, float], step: int) -> float:
    """Score a validation: PSNR if images are restored, otherwise minus the kernel error, otherwise the step.

    Raises:
        JobFailedError: the score is NaN or infinite.
    """
    match found:
        case {"val_psnr": score}:
            pass
        case {"val_kernel_error": error}:
            score = -error
        case _:
            score = float(step)
    if not math.isfinite(score):
        raise JobFailedError(f"step {step}: the validation gives {score}; lower train.learning_rate")
    return score
