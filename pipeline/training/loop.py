"""The training loop that every worker runs."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch

from kernels_bank.runtime.errors import BadRequestError, JobFailedError, UnavailableError
from kernels_bank.runtime.gauges import set_gauge
from kernels_bank.runtime.output import not_made_again
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.feed import Feed
from pipeline.data.plan import Stage
from pipeline.data.validation import validation_batches
from pipeline.tracking.runs import RunLogger
from pipeline.training import checkpoint
from pipeline.training.channel import StopFlag, say
from pipeline.training.commit import submit_checkpoint
from pipeline.training.learner import Learner, build_learner
from pipeline.training.ledger import Ledger, NonFiniteLossError
from pipeline.training.pictures import fixed_batch, sample_rows
from pipeline.training.start import InitialWeights
from pipeline.training.step import agree, take_step
from pipeline.training.training_run import WorkerContext
from pipeline.training.validate import score_of, validate

GAUGE = "blindsr_training"  # the metrics of rank 0, by run and metric
_UNSCORED = -1e9  # score before the first validation, below any other


def train_worker(loop_config: dict[str, WorkerContext]) -> None:
    """Call `train_run` for Ray Train, unless a fatal failure ended the run before."""
    context = loop_config["context"]
    if ray.get(context.channel.fatal.remote()):
        return
    is_first = ray.train.get_context().get_world_rank() == 0
    recorder = (
        RunLogger(context.tracked, home=context.run.home, tell=partial(say, context.channel))
        if is_first
        else contextlib.nullcontext()
    )
    with not_made_again(context.run.home), recorder as logger:
        try:
            train_run(context, logger)
        except NonFiniteLossError as error:
            if is_first:
                advice = "go on from it with --resume changed and lower learning rates"
                ray.get(context.channel.report_fatal.remote(str(error), advice))
        except UnavailableError:
            raise  # it may be available when the workers restart
        except BadRequestError as error:
            # Wrong settings, damaged shards or a damaged checkpoint: a restart would fail in the same way. It is raised
            # nevertheless, because other ranks may wait for this one; after the restart they return at once.
            ray.get(context.channel.report_fatal.remote(str(error), "mend that, then give the same command"))
            raise


def train_run(context: WorkerContext, logger: RunLogger | None) -> None:
    """Train from the newest committed checkpoint, or from the start, to `config.train.steps`.

    Args:
        context: the run, and the channel to the driver.
        logger: logger of rank 0; None on other ranks.

    Raises:
        NonFiniteLossError: on all ranks alike.
    """
    run, config, train = context.run, context.run.config, context.run.config.train
    ranks = ray.train.get_context()
    rank, workers = ranks.get_world_rank(), ranks.get_world_size()
    device = ray.train.torch.get_device()
    _set_up(config, device)

    learner, step, stages, score = _learner(context, device)
    feed = Feed(config, stages=stages, workers=workers, rank=rank)
    held_out = validation_batches(config, rank=rank, workers=workers, limit=train.validation_tiles)
    fixed = fixed_batch(config).to(device) if rank == 0 else None
    stop_flag = StopFlag(context.channel) if rank == 0 else False
    resumed_at, saved_at, clock = step, time.monotonic(), Clock()
    damaged: set[str] = set()
    ledger = Ledger()  # metrics since the last log line
    for batch in _timed(feed.batches(train.steps - step, cpus=context.data_cpus / workers, device=str(device)), clock):
        step += 1
        told = {"learning_rate": learner.learning_rate, "replaced_samples": float(batch.replaced)}
        ledger.add(step, take_step(learner, batch, train, step), told, batch.keys)
        clock.worked(images=train.batch_size)
        if logger and not damaged.issuperset(batch.bad):
            damaged |= set(batch.bad)
            logger.tag("damaged", ", ".join(sorted(damaged)))
        last = step == train.steps
        logged, validated = step % train.log_every == 0 or last, step % train.validate_every == 0 or last
        # Rank 0's clock and the driver's stop request decide for all, since every rank must report equally often.
        minutes = train.checkpoint_minutes
        overdue = minutes is not None and time.monotonic() - saved_at > 60 * minutes
        stop, overdue = agree([bool(stop_flag), overdue], device)
        saved = step % train.checkpoint_every == 0 or last or stop or overdue
        if logged or validated or saved:
            metrics = ledger.mean()  # raises unless every step so far was finite
        if logged:
            ledger.clear()
            if logger:
                metrics |= clock.rates() | _memory(device)
                logger.metrics(step, metrics)
                logger.system(step)
                _publish_gauges(config.name, step, metrics)
                context.channel.put.remote(step, note(metrics))
        if validated:
            scores = validate(learner.ema.module, held_out, train, device)
            score = score_of(scores, step)
            if logger:
                logger.metrics(step, scores)
                _publish_gauges(config.name, step, scores)
        if logger and fixed and (step % train.image_every == 0 or last):
            logger.image("samples", sample_rows(learner.ema.module, fixed), step)
        if saved:
            state = checkpoint.State(
                step=step, stages=feed.after(step - resumed_at), score=score, config=config, digests=run.digests
            )
            if logger:
                logger.flush()  # a resumed run continues after this step, so all metrics up to it must be stored
            submit_checkpoint(state, learner, metrics, rank, context.channel)
            saved_at = time.monotonic()
        clock.rested()
        if stop:
            break


def _set_up(config: RunConfig, device: torch.device) -> None:
    """Set threads, precision and determinism of this process."""
    train = config.train
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(train.cpus_per_worker)))
    torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = train.tf32
    # Sizes hardly change from step to step, so it pays to search for the fastest algorithm for each.
    torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(train.deterministic)


def _learner(context: WorkerContext, device: torch.device) -> tuple[Learner, int, tuple[Stage, ...], float]:
    """Return learner, step, stages and score of the newest committed checkpoint, otherwise of a new run."""
    start: InitialWeights = ray.get(context.start)
    if (last := ray.train.get_checkpoint()) is None:
        if start.tensors is None:
            raise JobFailedError("the checkpoint that this run resumes from is gone")
        learner = build_learner(context.run.config, start.codec, device, _over_ranks)
        for module in (learner.network, learner.ema.module):
            module.load_state_dict(start.tensors, strict=False)  # the driver has checked that they fit
        return learner, 0, (), _UNSCORED
    with last.as_directory() as folder:
        checkpoint.check(folder)
        state = checkpoint.load_state(Path(folder), {} if context.run.changed else context.run.digests)
        # The weights keep the kernel code that they were trained with, whatever bank the run now learns from.
        learner = build_learner(context.run.config, checkpoint.codec_of(Path(folder), start.codec), device, _over_ranks)
        checkpoint.load_into(Path(folder), learner.network, learner.ema, learner.optimizer, learner.schedule)
    return learner, state.step, state.stages, state.score


def _over_ranks(objective: torch.nn.Module) -> torch.nn.Module:
    """Make an objective that sums its gradients over the ranks if there are several."""
    alone = ray.train.get_context().get_world_size() == 1
    return objective if alone else ray.train.torch.prepare_model(objective)


def _publish_gauges(run: str, step: int, metrics: dict[str, float]) -> None:
    """Publish the newest metrics for Prometheus."""
    for name, value in ({"step": float(step)} | metrics).items():
        set_gauge(GAUGE, value, {"run": run, "metric": name})


def _memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of rank 0 so far, in GiB: of its process, and on its GPU."""
    found = {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if device.type == "cuda":
        found["cuda_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def note(metrics: dict[str, float]) -> str:
    """Format the text of the live line: the loss and its terms, PSNR, samples per second, share of waiting for data."""
    terms = [f"{name.removeprefix('loss_')} {value:.4f}" for name, value in metrics.items() if "loss_" in name]
    parts = [f"loss {metrics['loss']:.4f}"]
    if len(terms) > 1:
        parts.append(f"({', '.join(terms)})")
    if "psnr" in metrics:
        parts.append(f"PSNR {metrics['psnr']:.2f} dB")
    return " ".join([*parts, f"{metrics['images_per_s']:.3g} samples/s", f"data wait {metrics['data_wait']:.0%}"])


def _timed(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    """Yield the batches, and count the time until each arrives as waiting."""
    for batch in batches:
        clock.waited()
        yield batch


class Clock:
    """Measure a worker's time for steps and for waiting between two log lines.

    Logging, validation and checkpoints count as neither.
    """

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._wait = self._work = 0.0
        self._images = 0

    def waited(self) -> None:
        """Count the time since the last mark as waiting for data."""
        self._wait += self._lap()

    def worked(self, images: int) -> None:
        """Count the time since the last mark as a step."""
        self._work += self._lap()
        self._images += images

    def rested(self) -> None:
        """Ignore the time since the last mark."""
        self._lap()

    def rates(self) -> dict[str, float]:
        """Return throughput (images per second over all workers) and the share of time spent waiting; then reset."""
        total = max(self._wait + self._work, 1e-9)
        rates = {"images_per_s": self._images / total, "data_wait": self._wait / total}
        self._wait = self._work = 0.0
        self._images = 0
        return rates

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._mark = now - self._mark, now
        return lap
