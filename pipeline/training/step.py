"""One optimizer step, in the order of the algorithm."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.data.batch import Batch
from pipeline.seeds import rng
from pipeline.training.learner import Learner
from pipeline.training.ledger import FINITE, Ledger


def train_step(learner: Learner, batch: Batch, config: TrainConfig, step: int) -> dict[str, float]:
    """Take a step, wait for it, and return its metrics.

    Args:
        learner: all that a step changes.
        batch: this rank's samples.
        config: configuration of the training.
        step: number of the step, for the error.

    Raises:
        NonFiniteLossError: on all ranks alike, before weights or optimizer were changed.
    """
    ledger = Ledger()
    ledger.add(step, take_step(learner, batch, config, step), {"learning_rate": learner.learning_rate}, batch.keys)
    return ledger.mean()


def take_step(learner: Learner, batch: Batch, config: TrainConfig, step: int) -> dict[str, Tensor]:
    """Run forward, objective, backward, finite check over all ranks, clip, step, schedule and average.

    A batch larger than `config.micro_batch` is split into parts whose gradients add up to that of the whole batch.
    Nothing waits for the device: from the first non-finite step on, weights and optimizer stay unchanged, and readers
    of the metrics find that step by `FINITE`.

    Args:
        learner: all that a step changes.
        batch: this rank's samples.
        config: configuration of the training.
        step: number of the step, which determines the window of `config.smallest_window`.

    Returns:
        Scalars on the device: the terms of the loss, `grad_norm` and `FINITE`.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    if config.learn == "spectral" and config.smallest_window is not None:
        batch = windowed(batch, config.smallest_window, step)
    terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=batch.lr.device))
    count = len(batch.keys)
    size = config.micro_batch or count
    starts = range(0, count, size)
    for start in starts:
        part = slice(start, min(start + size, count))
        share = (part.stop - part.start) / count
        with _synchronised(learner.objective, last=start == starts[-1]):
            with _precision(config, batch.lr.device):
                images = batch.lr[part], batch.hr[part], batch.kernel[part], batch.sigma[part]
                found = learner.objective(*images, batch.scale)
            (found["loss"] * share).backward()
        for name, term in found.items():
            terms[name] = terms[name] + term.detach() * share
    trained = [p for p in learner.network.parameters() if p.requires_grad]
    norm = nn.utils.clip_grad_norm_(trained, config.clip_norm)
    finite = _everywhere(torch.isfinite(terms["loss"]) & torch.isfinite(norm))
    if move_if(finite, learner.optimizer):
        learner.schedule.step()
        learner.ema.update_parameters(learner.network)
    return {**terms, "grad_norm": norm, FINITE: finite}


def move_if(finite: Tensor, optimizer: torch.optim.Optimizer, *, wait: bool | None = None) -> bool:
    """Run the optimizer step unless a gradient is not finite; return whether it was called.

    Only a CPU is waited for. On other devices `found_inf` makes the fused optimizer leave everything unchanged: at this
    step and, because later gradients may be finite again, at all later steps.

    Args:
        finite: 1, or 0 if some rank's loss or gradient is not finite.
        optimizer: optimizer, which must be fused unless `wait` holds.
        wait: whether to read `finite` first; by default only on a CPU.
    """
    if finite.device.type == "cpu" if wait is None else wait:
        if not bool(finite):
            return False
    else:
        before = getattr(optimizer, "found_inf", torch.zeros_like(finite))
        optimizer.found_inf = torch.maximum(before, 1 - finite)  # type: ignore[attr-defined] # as GradScaler does
    optimizer.step()
    return True


def windowed(batch: Batch, smallest: int, step: int) -> Batch:
    """Cut the LR images to one random window, since small pictures show little of their spectrum and look different.

    The corner is on JPEG's 8 x 8 grid. The window depends only on the step and the first sample.

    Args:
        batch: batch to cut; its HR images then cover more than its LR images.
        smallest: smallest side of the window, LR pixels.
        step: number of the training step.
    """
    random = rng(0, epoch=step, key=batch.keys[0], purpose="window")
    sides = []
    for length in batch.lr.shape[-2:]:
        side = int(np.exp(random.uniform(np.log(min(smallest, length)), np.log(length + 1))))
        first = int(random.integers(length - side + 1)) // 8 * 8
        sides.append(slice(first, first + side))
    return replace(batch, lr=batch.lr[..., sides[0], sides[1]])


def agree(flags: list[bool], device: torch.device) -> list[bool]:
    """Return for each flag whether it is set on any rank. All ranks must call it; a single rank does not wait."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return [value > 0 for value in values.tolist()]


def _everywhere(flag: Tensor) -> Tensor:
    """Return 1 if the flag holds on every rank, otherwise 0, on its device. All ranks must call it."""
    value = flag.float()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN)
    return value


@contextlib.contextmanager
def _synchronised(task: nn.Module, *, last: bool) -> Iterator[None]:
    """Synchronise gradients between ranks only with the last part of a batch."""
    if last or not isinstance(task, nn.parallel.DistributedDataParallel):
        yield
        return
    with task.no_sync():
        yield


def _precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Use bf16 for the convolutions if the config asks for it; the network keeps its FFTs and codes in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
