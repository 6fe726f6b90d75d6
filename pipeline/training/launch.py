"""The Ray Train job of a run: started, watched, and stopped with a checkpoint on request."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from kernels_bank.runtime import end_request, storage, uris, watch
from kernels_bank.runtime.errors import JobFailedError
from kernels_bank.runtime.s3 import PATIENT
from pipeline.tracking.runs import RunRef
from pipeline.training import gloo, nccl
from pipeline.training.channel import LiveLine
from pipeline.training.commit import KeepSnapshot, last_good, newest
from pipeline.training.failures import ReportWorkerFailures, failure_reason
from pipeline.training.loop import train_worker
from pipeline.training.process_group import ProcessGroup
from pipeline.training.start import InitialWeights
from pipeline.training.training_run import TrainingRun, WorkerContext


class StoppedError(KeyboardInterrupt):
    """Report that a signal ended the run early, with a checkpoint."""


def run_workers(run: TrainingRun, start: InitialWeights, tracked: RunRef, data_cpus: float) -> ray.train.Checkpoint:
    """Train on the cluster from the newest checkpoint of the run, after checking it; return the last checkpoint.

    SIGINT and SIGTERM make the workers write a checkpoint and stop; a second signal stops the run at once.

    Args:
        run: run to train.
        start: initial weights of a new run.
        tracked: tracking run in which rank 0 records it.
        data_cpus: logical CPUs for the data tasks of all workers together.

    Raises:
        JobFailedError: the workers failed more often than `max_failures`, or in a way that a restart cannot fix.
        StoppedError: a signal stopped the run.
    """
    config, train = run.config, run.config.train
    # A failed write by Ray Train itself, above all of its snapshot, would end the run.
    filesystem, path = storage.resolve(run.home, PATIENT)
    checkpoints = uris.join(run.home, "checkpoints")
    with LiveLine(train.steps, lambda: last_good(checkpoints)) as line:
        context = WorkerContext(run, ray.put(start), tracked, line.channel, data_cpus)
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"context": context},
            torch_config=ProcessGroup("nccl", nccl.set_defaults, nccl.TIMEOUT_S)
            if train.gpu
            else ProcessGroup("gloo", gloo.choose_interface),
            scaling_config=ray.train.ScalingConfig(
                num_workers=(train.fewest_workers, train.workers) if train.min_workers else train.workers,  # type: ignore[arg-type]
                use_gpu=train.gpu,
                resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.gpu else {}),
            ),
            run_config=ray.train.RunConfig(
                name="checkpoints",
                storage_path=path,
                storage_filesystem=filesystem,
                callbacks=[ReportWorkerFailures(line.channel), KeepSnapshot(checkpoints)],  # type: ignore[list-item]
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=2, checkpoint_score_attribute="score", checkpoint_score_order="max"
                ),
            ),
        )
        failed: Exception | None = None
        try:
            with _stop_on_signals(line.stop):
                result = _in_thread(trainer.fit)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, watch.RayDiedError) as error:
            failed = error
        reason, advice = line.fatal() or ("", "")
        if failed or reason:
            reason = reason or _reason(failed)
            advice = (
                advice or f"the same command {'resumes from it' if newest(checkpoints) else 'starts the run again'}"
            )
            told = f"run '{config.name}' failed: {reason}; {last_good(checkpoints)}; {advice}"
            raise JobFailedError(told) from failed
    if result.checkpoint is None:
        raise JobFailedError(f"run '{config.name}' ended without a checkpoint")
    if (step := int(result.metrics["step"])) < train.steps:
        raise StoppedError(f"run '{config.name}' stopped at step {step} of {train.steps}; the same command resumes it")
    return result.checkpoint


def _in_thread(call: Any) -> Any:  # noqa: ANN401 - what the call returns
    """Return the result of a call in another thread, while this thread stays free to handle signals.

    In the main thread, Ray Train would handle SIGINT itself and abort without a checkpoint.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="trainer", daemon=True).start()
    return future.result()


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def _stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM stop the workers with a checkpoint; the second raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set signal handlers
        return

    def ask() -> None:
        print("stopping after a checkpoint; once more to stop at once", file=sys.stderr, flush=True)
        stop.set()

    handle = end_request.handler(ask, _interrupt)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(error: BaseException | None) -> str:
    if failures := getattr(error, "worker_failures", None):
        return failure_reason(failures)
    if death := watch.death(patience_s=2):  # Ray's error may come before the watch notices
        return death
    if isinstance(error, ray.exceptions.ActorDiedError):
        return "the process of Ray Train's controller (TrainController) died"
    return str(error).strip().splitlines()[-1]
