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
        config: of the training.
        step: its number, for the error.

    Raises:
        NonFiniteLossError: on all ranks alike, before weights or optimizer were changed.
    """
    ledger = Ledger()
    ledger.add(step, take_step(learner, batch, config, step), {"learning_rate": learner.learning_rate}, batch.keys)
    return ledger.mean()


def take_step(learner: Learner, batch: Batch, config: TrainConfig, step: int) -> dict[str, Tensor]:
    """Run forward, objective, backward, finite check over all ranks, clip, step, schedule and average.

    A batch larger than `config.micro_batch` is taken in parts whose gradients add up to the whole batch's. Nothing
    waits for the device: weights and optimizer hold still by themselves from the first step on that is not finite,
    and whoever reads the metrics finds that step by `FINITE`.

    Args:
        learner: all that a step changes.
        batch: this rank's samples.
        config: of the training.
        step: its number; it decides the window of `config.smallest_window`.

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
    """Let the optimizer step unless a gradient is not finite; return whether it was called.

    A device other than the CPU is not waited for. Its fused optimizer is told in `found_inf` to leave everything as it
    is: at this step and, because later gradients may be finite again, at all steps after it.

    Args:
        finite: 1, or 0 where some rank's loss or gradient is not finite.
        optimizer: fused, unless it is waited for.
        wait: look at `finite` first; by default on a CPU only.
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
    """Cut the LR images to one random window: small pictures show little of their spectrum, and look otherwise.

    The corner lies on JPEG's 8 x 8 grid. A function of the step and the first sample alone.

    Args:
        batch: whose HR images then cover more than its LR images.
        smallest: side of the window at least, LR pixels.
        step: of the training.
    """
    random = rng(0, epoch=step, key=batch.keys[0], purpose="window")
    sides = []
    for length in batch.lr.shape[-2:]:
        side = int(np.exp(random.uniform(np.log(min(smallest, length)), np.log(length + 1))))
        first = int(random.integers(length - side + 1)) // 8 * 8
        sides.append(slice(first, first + side))
    return replace(batch, lr=batch.lr[..., sides[0], sides[1]])


def agree(flags: list[bool], device: torch.device) -> list[bool]:
    """Ask of each flag whether it is up on any rank. All ranks must ask; alone, a rank waits for nothing."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.float32, device=device)
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return [value > 0 for value in values.tolist()]


def _everywhere(flag: Tensor) -> Tensor:
    """1 if the flag holds on every rank, else 0, on its device. All ranks must ask."""
    value = flag.float()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN)
    return value


@contextlib.contextmanager
def _synchronised(task: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients travel between ranks with the last part of a batch only."""
    if last or not isinstance(task, nn.parallel.DistributedDataParallel):
        yield
        return
    with task.no_sync():
        yield


def _precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """bf16 for the convolutions where the config says so; the network keeps its FFTs and codes in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")
