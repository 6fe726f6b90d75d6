"""A training run from the driver's side: check, open the tracking run, train on the cluster, export, register."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from kernels_bank import KernelBank
from kernels_bank.runtime import storage
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from pipeline.config import RunConfig
from pipeline.data.feed import Feed
from pipeline.data.images import encode_png
from pipeline.data.manifest import read_manifest
from pipeline.tracking import registry, runs
from pipeline.training import checkpoint
from pipeline.training.board import LiveLine
from pipeline.training.loop import Job, train_worker
from pipeline.training.pictures import contact_sheet

# Settings that may change between two sittings of one run: they do not change what is learned.
_FREE: dict[str, Any] = {
    "output": True,
    "tracking": True,
    "data": {"task_cpus", "max_bad_fraction", "shards", "bank"},  # the two URIs: their digests are compared
    "train": {
        *("steps", "workers", "cpus_per_worker", "gpu", "max_failures"),
        *("log_every", "image_every", "checkpoint_every"),
    },
}


@dataclass(frozen=True)
class Fitted:
    """A finished run."""

    model: Path  # directory with weights (EMA), codec and model.json
    run: runs.RunRef
    version: int  # in the registry, under config.tracking.model_name
    reused: bool  # it was finished before; nothing was trained


def fit(config: RunConfig, *, verbose: bool = False) -> Fitted:
    """Train `config`, or go on where a run of this name stopped, and register the result.

    Raises:
        BadRequestError: the data, the cluster or an earlier run of this name does not fit the config.
        JobFailedError: training itself failed.
    """
    config = _absolute(config)
    digests = data_digests(config)
    home = storage.join(config.output, config.name)
    record = _earlier(home, config, digests)
    uri = runs.tracking_uri(config.output)
    if record.get("finished") == config.train.steps:
        run = runs.RunRef(record["run_id"], uri)
        return Fitted(Path(home) / "model", run, record["version"], reused=True)

    connect(min_cpus=cpus_needed(config), verbose=verbose)
    data_cpus = _check_cluster(config)
    run = runs.open_run(
        experiment=config.tracking.experiment,
        name=config.name,
        uri=uri,
        params=config.model_dump(mode="json"),
        tags={**digests, **runs.code_revision()},
        resume_id=record.get("run_id"),
    )
    record = {"config": config.model_dump(mode="json"), "digests": digests, "run_id": run.run_id}
    storage.write_json(storage.join(home, "run.json"), record)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        folder = _train(config, run, digests, home, data_cpus)
        model = Path(home) / "model"
        checkpoint.export(folder, model)
        version = registry.register(
            run, model, config.tracking.model_name, config.tracking.alias, metrics={}, tags=digests
        )
        record |= {"finished": config.train.steps, "version": version}
        storage.write_json(storage.join(home, "run.json"), record)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        runs.finish(run, status)
    return Fitted(model, run, version, reused=False)


def data_digests(config: RunConfig) -> dict[str, str]:
    """The identity of what the run learns from. Raises ArtefactError when shards or bank are not there."""
    return {"shards": read_manifest(config.data.shards).digest, "bank": KernelBank.open(config.data.bank).digest}


def check(config: RunConfig, sheet: Path) -> str:
    """Start nothing but the feed: read a few batches, save a contact sheet (HR | LR | kernel), describe the run."""
    config = _absolute(config)
    digests = data_digests(config)
    connect(min_cpus=cpus_needed(config))
    data_cpus = _check_cluster(config)
    train, samples = config.train, read_manifest(config.data.shards).samples * config.data.patches_per_tile
    batches = Feed(config, stages=(), workers=train.workers, rank=0).batches(50, cpus=data_cpus)
    first = next(batches)
    started = time.perf_counter()
    seen = sum(len(batch.keys) for batch in batches)
    rate = seen / (time.perf_counter() - started)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_bytes(encode_png(contact_sheet(first)))
    epochs = train.steps * train.batch_size / samples
    shapes = {name: tuple(getattr(first, name).shape) for name in ("lr", "hr", "kernel")}
    lines = [
        f"run '{config.name}' can start: {train.steps} steps of {train.batch_size} on {train.workers} workers",
        f"epoch          {samples} samples; the run is {epochs:.1f} epochs",
        f"batch          {', '.join(f'{name} {shape}' for name, shape in shapes.items())}, for each worker",
        f"feed           {rate:.0f} samples/s for each worker, with {data_cpus:g} CPUs",
        f"digests        {', '.join(f'{name} {digest[:12]}' for name, digest in digests.items())}",
        f"contact sheet  {sheet}",
    ]
    return "\n  ".join(lines)


def _absolute(config: RunConfig) -> RunConfig:
    """The config with URIs that mean the same in every worker's own working directory."""
    data = config.data.model_copy(
        update={"shards": storage.absolute(config.data.shards), "bank": storage.absolute(config.data.bank)}
    )
    return config.model_copy(update={"data": data, "output": storage.absolute(config.output)})


def _earlier(home: str, config: RunConfig, digests: dict[str, str]) -> dict:
    """The record of a run of this name, or nothing. Refuses to go on with settings that would mix two runs."""
    where = storage.join(home, "run.json")
    if not storage.exists(where):
        return {}
    record = storage.read_json(where)
    before = RunConfig.model_validate(record["config"])
    changed = _differences(before.model_dump(exclude=_FREE), config.model_dump(exclude=_FREE))
    changed += [f"{name} digest" for name in digests if record["digests"].get(name) != digests[name]]
    if changed:
        raise BadRequestError(
            f"run '{config.name}' exists in {home} with other settings ({', '.join(changed)}); "
            "choose another name, or delete that folder"
        )
    return dict(record)


def _differences(before: dict, now: dict, path: str = "") -> list[str]:
    found = []
    for key in before.keys() | now.keys():
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{path}{key}.")
        elif old != new:
            found.append(f"{path}{key}: {old} -> {new}")
    return sorted(found)


def cpus_needed(config: RunConfig) -> int:
    """Logical CPUs for all workers and one data task of each."""
    return int(config.train.workers * (config.train.cpus_per_worker + config.data.task_cpus) + 0.999)


def _check_cluster(config: RunConfig) -> float:
    """Data CPUs a worker may use. Workers that took every CPU would starve their own data tasks for ever."""
    have, workers = ray.cluster_resources().get("CPU", 0.0), config.train.workers
    left = (have - workers * config.train.cpus_per_worker) / workers
    if left < config.data.task_cpus:
        raise BadRequestError(
            f"the cluster has {have:g} CPUs; {workers} workers x {config.train.cpus_per_worker:g} and a data task of "
            f"{config.data.task_cpus:g} for each need {cpus_needed(config)}; lower train.workers, "
            "train.cpus_per_worker or data.task_cpus"
        )
    return left


def _train(config: RunConfig, run: runs.RunRef, digests: dict[str, str], home: str, data_cpus: float) -> Path:
    """Run the workers; returns the folder of the last checkpoint."""
    train = config.train
    filesystem, path = storage.resolve(home)
    with LiveLine(train.steps) as line:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": Job(config, run, line.board, digests, data_cpus)},
            torch_config=TorchConfig(backend="nccl" if train.gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=train.workers,
                use_gpu=train.gpu,
                resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if train.gpu else {}),
            ),
            run_config=ray.train.RunConfig(
                name="checkpoints",
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise JobFailedError(
                f"run '{config.name}' failed: {_reason(error)}; the last good checkpoint is in {home}, "
                "the same command goes on from it"
            ) from error
    if result.checkpoint is None:
        raise JobFailedError(f"run '{config.name}' ended without a checkpoint")
    return Path(result.checkpoint.to_directory())


def _reason(error: BaseException) -> str:
    """The last line of what a worker raised; the whole traceback is in the log of the worker."""
    failures = getattr(error, "worker_failures", None) or {}
    text = str(next(iter(failures.values()), error))
    return text.strip().splitlines()[-1] if text.strip() else type(error).__name__
