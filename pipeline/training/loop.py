"""What every training worker runs."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kernels_bank import KernelBank
from pipeline.config import RunConfig
from pipeline.data.feed import Feed
from pipeline.data.plan import Stage
from pipeline.model import BlindUSRNet
from pipeline.seeds import torch_seed
from pipeline.tracking.runs import RunLogger, RunRef
from pipeline.training import checkpoint
from pipeline.training.pictures import sample_row, validation_batch
from pipeline.training.step import Learner, train_step


@dataclass(frozen=True)
class Job:
    """What the driver hands to every worker."""

    config: RunConfig
    run: RunRef
    board: Any  # handle of training.board.Board
    digests: dict[str, str]
    data_cpus: float  # logical CPUs each worker's data tasks may use


def train_worker(loop_config: dict[str, Job]) -> None:
    """Train from the newest committed checkpoint, or from the start, to `config.train.steps`."""
    job = loop_config["job"]
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(train.cpus_per_worker)))
    torch.use_deterministic_algorithms(train.deterministic)

    learner = build_learner(config, device)
    step = 0
    stages: tuple[Stage, ...] = ()
    if (last := ray.train.get_checkpoint()) is not None:
        with last.as_directory() as folder:
            state = checkpoint.load_state(Path(folder), job.digests)
            checkpoint.restore(Path(folder), learner.network, learner.ema, learner.optimizer, learner.schedule)
        step, stages = state.step, state.stages

    feed = Feed(config, stages=stages, workers=workers, rank=rank)
    logger = RunLogger(job.run) if rank == 0 else None
    fixed = validation_batch(config, device) if rank == 0 else None
    first, clock = step, Clock()
    recent: list[dict[str, float]] = []  # metrics since the last log line, whose mean it shows
    for batch in feed.batches(train.steps - step, cpus=job.data_cpus, device=str(device)):
        clock.waited()
        step += 1
        recent.append(train_step(learner, batch, train, step) | {"replaced_samples": float(batch.replaced)})
        clock.worked(images=train.batch_size)
        metrics = {name: sum(m[name] for m in recent) / len(recent) for name in recent[-1]}
        if step % train.log_every == 0:
            recent.clear()
        if logger and (step % train.log_every == 0 or step == train.steps):
            metrics |= clock.rates()
            logger.metrics(step, metrics)
            note = f"loss {metrics['loss']:.4f} psnr {metrics['psnr']:.2f} dB wait {metrics['data_wait']:.0%}"
            job.board.put.remote(step, note)
        if logger and fixed and (step % train.image_every == 0 or step == train.steps):
            logger.image("samples", sample_row(learner.ema.module, fixed), step)
        if step % train.checkpoint_every == 0 or step == train.steps:
            state = checkpoint.State(step=step, stages=feed.after(step - first), config=config, digests=job.digests)
            report(state, learner, metrics, rank)
    if logger:
        logger.close()


def build_learner(config: RunConfig, device: torch.device) -> Learner:
    """Network, EMA, optimizer and schedule, the same on every rank before the first step."""
    torch.manual_seed(torch_seed(config.seed, epoch=0, key="model", purpose="init"))
    network = BlindUSRNet(config.model, KernelBank.open(config.data.bank).codec).to(device)
    train = config.train
    groups = [
        {"params": list(network.restorer.parameters()), "lr": train.learning_rate},
        {"params": kernel_parameters(network), "lr": train.kernel_learning_rate},
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_factor(done, train.warmup_steps, train.steps)
    )
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema_decay), use_buffers=False)
    model = ray.train.torch.prepare_model(network) if ray.train.get_context().get_world_size() > 1 else network
    return Learner(model, network, ema, optimizer, schedule)


def kernel_parameters(network: BlindUSRNet) -> list[torch.nn.Parameter]:
    """What estimates the kernel: everything but the restorer."""
    restorer = set(network.restorer.parameters())
    return [parameter for parameter in network.parameters() if parameter not in restorer]


def learning_rate_factor(done: int, warmup: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if done < warmup:
        return (done + 1) / warmup
    progress = (done - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def report(state: checkpoint.State, learner: Learner, metrics: dict[str, float], rank: int) -> None:
    """Commit a checkpoint. Every rank reports (Ray Train counts them); only rank 0 writes."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="blindsr-checkpoint-") as folder:
        checkpoint.save(Path(folder), state, learner.network, learner.ema, learner.optimizer, learner.schedule)
        saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=saved, checkpoint_dir_name=f"step-{state.step:08d}")


class Clock:
    """Where a worker's time goes between two log lines."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._wait = self._work = 0.0
        self._images = 0

    def waited(self) -> None:
        """The time since the last mark was spent waiting for data."""
        self._wait += self._lap()

    def worked(self, images: int) -> None:
        """The time since the last mark was spent on a step."""
        self._work += self._lap()
        self._images += images

    def rates(self) -> dict[str, float]:
        """Throughput (images a second over all workers) and the share of time spent waiting; starts anew."""
        total = max(self._wait + self._work, 1e-9)
        rates = {"images_per_s": self._images / total, "data_wait": self._wait / total}
        self._wait = self._work = 0.0
        self._images = 0
        return rates

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap
