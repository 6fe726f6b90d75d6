"""One optimizer step, in the order of the algorithm."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from pipeline.config import TrainConfig
from pipeline.data.feed import Batch
from pipeline.model import BlindUSRNet


class NonFiniteLossError(RuntimeError):
    """The loss or gradient of some worker is not a number; the optimizer has not moved."""


@dataclass(frozen=True)
class Learner:
    """All that a step changes. `task` is `Task(network)`, wrapped where several workers train."""

    task: nn.Module
    network: BlindUSRNet
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler


def train_step(learner: Learner, batch: Batch, config: TrainConfig, step: int) -> dict[str, float]:
    """Forward, objective, backward, finite check on every rank, clip, step, schedule, EMA; returns the metrics.

    A batch larger than `config.micro_batch` is taken in parts whose gradients add up to the whole batch's.

    Raises:
        NonFiniteLossError: on all ranks alike, before anything was changed.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=batch.lr.device))
    count = len(batch.keys)
    size = config.micro_batch or count
    starts = range(0, count, size)
    for start in starts:
        part = slice(start, min(start + size, count))
        share = (part.stop - part.start) / count
        with _synchronised(learner.task, last=start == starts[-1]):
            with _precision(config, batch.lr.device):
                images = batch.lr[part], batch.hr[part], batch.kernel[part], batch.sigma[part]
                found = learner.task(*images, batch.scale)
            (found["loss"] * share).backward()
        for name, term in found.items():
            terms[name] = terms[name] + term.detach() * share
    trained = [p for p in learner.network.parameters() if p.requires_grad]
    norm = nn.utils.clip_grad_norm_(trained, config.clip_norm)
    if not agree(torch.isfinite(terms["loss"]) & torch.isfinite(norm)):
        raise NonFiniteLossError(
            f"step {step}: loss {float(terms['loss']):.4g}, gradient norm {float(norm):.4g} on samples "
            f"{', '.join(batch.keys)}; lower train.learning_rate and run again: it resumes from the last checkpoint"
        )
    learner.optimizer.step()
    learner.schedule.step()
    learner.ema.update_parameters(learner.network)
    metrics = {name: float(term) for name, term in terms.items()}
    metrics["grad_norm"] = float(norm)
    metrics["learning_rate"] = float(learner.schedule.get_last_lr()[0])
    return metrics


def agree(flag: Tensor | bool, device: torch.device | None = None) -> bool:
    """Whether the flag holds on every rank. All ranks must ask."""
    value = flag.float() if isinstance(flag, Tensor) else torch.tensor(float(flag), device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MIN)
    return bool(value > 0)


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
