"""One optimizer step, in the order of the algorithm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from pipeline.config import TrainConfig
from pipeline.data.feed import Batch
from pipeline.model import BlindUSRNet
from pipeline.training.objective import objective


class NonFiniteLossError(RuntimeError):
    """The loss or gradient of some worker is not a number; the optimizer has not moved."""


@dataclass(frozen=True)
class Learner:
    """All that a step changes. `model` is `network` wrapped for several workers, or the same object."""

    model: nn.Module
    network: BlindUSRNet
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler


def train_step(learner: Learner, batch: Batch, config: TrainConfig, step: int) -> dict[str, float]:
    """Forward, objective, backward, finite check on every rank, clip, step, schedule, EMA; returns the metrics.

    Raises:
        NonFiniteLossError: on all ranks alike, before anything was changed.
    """
    learner.optimizer.zero_grad(set_to_none=True)
    out = learner.model(batch.lr, batch.scale, batch.sigma)
    terms = objective(out, batch.hr, learner.network.encode(batch.kernel), config)
    terms["loss"].backward()
    norm = nn.utils.clip_grad_norm_(learner.network.parameters(), config.clip_norm)
    if not _finite_everywhere(terms["loss"], norm):
        raise NonFiniteLossError(
            f"step {step}: loss {float(terms['loss'].detach()):.4g}, gradient norm {float(norm):.4g} on samples "
            f"{', '.join(batch.keys)}; lower train.learning_rate and run again: it resumes from the last checkpoint"
        )
    learner.optimizer.step()
    learner.schedule.step()
    learner.ema.update_parameters(learner.network)
    metrics: dict[str, float] = {name: float(term.detach()) for name, term in terms.items()}
    metrics["psnr"] = float(
        -10 * torch.log10((out.sr.detach().clamp(0, 1) - batch.hr).square().mean().clamp_min(1e-10))
    )
    metrics["grad_norm"] = float(norm)
    metrics["learning_rate"] = float(learner.schedule.get_last_lr()[0])
    return metrics


def _finite_everywhere(loss: Tensor, norm: Tensor) -> bool:
    """Gradients are already averaged over the ranks, but a rank's own loss is not."""
    finite = torch.isfinite(loss.detach()).float() * torch.isfinite(norm).float()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
    return bool(finite > 0)
