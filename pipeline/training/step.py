"""One optimizer step, in the order of the algorithm."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.data.feed import Batch
from pipeline.seeds import rng
from pipeline.training.learner import Learner


class NonFiniteLossError(RuntimeError):
    """Report that some worker's loss or gradient is not a number; the optimizer has not moved."""


def train_step(learner: Learner, batch: Batch, config: TrainConfig, step: int) -> dict[str, float]:
    """Run forward, objective, backward, finite check on every rank, clip, step, schedule and EMA; return the metrics.

    A batch larger than `config.micro_batch` is taken in parts whose gradients add up to the whole batch's.

    Args:
        learner: all that a step changes.
        batch: this rank's samples.
        config: of the training.
        step: its number, for the error.

    Raises:
        NonFiniteLossError: on all ranks alike, before anything was changed.
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
    if not agree(torch.isfinite(terms["loss"]) & torch.isfinite(norm)):
        raise NonFiniteLossError(f"step {step}: {_where_not_finite(terms['loss'], norm, batch)}")
    learner.optimizer.step()
    learner.schedule.step()
    learner.ema.update_parameters(learner.network)
    metrics = {name: float(term) for name, term in terms.items()}
    metrics["grad_norm"] = float(norm)
    metrics["learning_rate"] = float(learner.schedule.get_last_lr()[0])
    return metrics


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


def agree(flag: Tensor | bool, device: torch.device | None = None) -> bool:
    """Ask whether the flag holds on every rank. All ranks must ask."""
    value = flag.float() if isinstance(flag, Tensor) else torch.tensor(float(flag), device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN)
    return bool(value > 0)


def _where_not_finite(loss: Tensor, norm: Tensor, batch: Batch) -> str:
    """Loss, gradient norm and samples of the workers whose loss is not finite; of all where only the gradient is not.

    All ranks must ask: the gradient was summed over them, so each alone cannot tell whose batch spoiled it.
    """
    found = [(0, float(loss), float(norm), batch.keys)]
    if torch.distributed.is_initialized():
        ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(ranks, (torch.distributed.get_rank(), *found[0][1:]))
        found = ranks
    guilty = [one for one in found if not math.isfinite(one[1])] or found
    return "; ".join(
        f"loss {value:.4g}, gradient norm {size:.4g} in worker {rank} on samples {', '.join(keys)}"
        for rank, value, size, keys in guilty
    )


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
