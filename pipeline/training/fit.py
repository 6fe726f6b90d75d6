"""A training run from the driver's side: check, open the tracking run, train on the cluster, export, register."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ray

from kernels_bank import KernelBank
from kernels_bank.runtime import folders, scratch, storage, uris
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, UnavailableError
from kernels_bank.runtime.lease import Lease
from kernels_bank.runtime.output import own_output
from pipeline.config import RunConfig, ShardSetConfig, TrackingConfig
from pipeline.data.mixture import open_mixture
from pipeline.images.encode import encode_png
from pipeline.model.weights import load_model
from pipeline.model_folder import MANIFEST, check_folder
from pipeline.registry import versions
from pipeline.registry.package import PICTURE
from pipeline.tracking import runs
from pipeline.tracking.bank import log_bank
from pipeline.training import checkpoint, commit
from pipeline.training.launch import run_workers
from pipeline.training.learner import learning_rate_factor
from pipeline.training.pictures import card_picture, fixed_batch
from pipeline.training.record import KIND, RECORD, earlier, names_without_mark, put_aside
from pipeline.training.start import InitialWeights, refuse_composites, starting_point
from pipeline.training.training_run import TrainingRun

Resume = Literal["auto", "changed", "never"]


@dataclass(frozen=True)
class Fitted:
    """Describe a finished run."""

    model: str  # URI of the model folder: weights (EMA), codec and model.json
    run: runs.RunRef
    version: int | None  # in the registry, under the name and alias of `tracking`; None without a registered name
    reused: bool  # the run had finished before; nothing was trained
    tracking: TrackingConfig


def fit(config: RunConfig, *, resume: Resume = "auto", verbose: bool = False) -> Fitted:
    """Train `config`, or resume the run of this name where it stopped, and register the result.

    Args:
        config: the run.
        resume: `auto` resumes a run of this name if settings and data are the same; `changed` also if they differ but
            fit its network; `never` moves that run's folder aside and starts a fresh run.
        verbose: whether to show Ray's own output too.

    Raises:
        BadRequestError: the data, the cluster or an earlier run of this name does not fit the config, or another
            driver works on this run.
        JobFailedError: training itself failed.
        KeyboardInterrupt: a signal ended the run; its checkpoint is kept.
    """
    config = absolute(config)
    digests = data_digests(config)
    home = uris.join(config.output, config.name)
    record = {} if resume == "never" else earlier(home, config, digests, changed=resume == "changed")
    done = _finished(config, home, record)
    if done is not None and not _is_renamed(config, done):
        return done
    with own_output(home, KIND, names_without_mark(home)) as lease:
        if resume == "never":
            put_aside(home)
        # Read again: another driver may have started or finished this run before this one got the lock.
        if (now := earlier(home, config, digests, changed=resume == "changed")) != record:
            record = now
            done = _finished(config, home, record)
        if done is not None:
            return _rename(TrainingRun(config, digests, home, changed=False), record, done)
        step = commit.usable_step(uris.join(home, "checkpoints"))
        start = initial_weights(config, step, home)
        if step is not None:
            say_changes(config, record, step)
        connect(min_cpus=cpus_needed(config), verbose=verbose)
        run = TrainingRun(config, digests, home, resume == "changed")
        return _train(run, start, record.get("run_id"), lease)


def _finished(config: RunConfig, home: str, record: dict) -> Fitted | None:
    """Return a finished run if its model is intact, and send what is queued for the tracking server."""
    if record.get("finished") != config.train.steps or not is_whole(uris.join(home, "model")):
        return None
    run = runs.RunRef(record["run_id"], runs.tracking_uri(config.output))
    runs.send_unsent(run, home, _say)
    names = TrackingConfig.model_validate(record["config"]["tracking"])
    return Fitted(uris.join(home, "model"), run, record["version"], reused=True, tracking=names)


def _is_renamed(config: RunConfig, done: Fitted) -> bool:
    """Check whether the model of a finished run should be registered under another name or alias."""
    name, alias = config.tracking.model_name, config.tracking.alias
    return name is not None and (name, alias) != (done.tracking.model_name, done.tracking.alias)


def _rename(run: TrainingRun, record: dict, done: Fitted) -> Fitted:
    """Register the model of a finished run under the requested name and alias if they have changed."""
    if not _is_renamed(run.config, done):
        return done
    with scratch.temporary("export") as local:
        for name, _ in folders.list_files(done.model):
            (local / name).write_bytes(storage.read_bytes(uris.join(done.model, name)))
        version = _register(run, done.run, local)
    known = record["config"] | {"tracking": run.config.tracking.model_dump(mode="json")}
    storage.write_json(uris.join(run.home, RECORD), record | {"config": known, "version": version})
    return replace(done, version=version, tracking=run.config.tracking)


def _train(run: TrainingRun, start: InitialWeights, run_id: str | None, lease: Lease) -> Fitted:
    """Train and register in one tracking run, that of `run_id` if given; its status records how it ended."""
    config, home = run.config, run.home
    data_cpus = check_cluster(config)
    uri, model = runs.tracking_uri(config.output), uris.join(home, "model")
    tracked = runs.open_run(
        experiment=config.tracking.experiment,
        name=config.name,
        uri=uri,
        params=config.model_dump(mode="json"),
        tags={**run.digests, **runs.code_revision()},
        resume_id=run_id,
        key=home,
    )
    record = {"config": config.model_dump(mode="json"), "digests": run.digests, "run_id": tracked.run_id}
    storage.write_json(uris.join(home, RECORD), record)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        log_bank(tracked, config.data.bank)
        for name, digest, uri in _inputs(config, run.digests):
            runs.log_input(tracked, name, digest, uri)
        last = run_workers(run, start, tracked, data_cpus)
        with last.as_directory() as folder:
            lease.check()
            version = _export_model(run, tracked, Path(folder), model)
        runs.send_unsent(tracked, home, _say)
        storage.write_json(uris.join(home, RECORD), record | {"finished": config.train.steps, "version": version})
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        runs.finish(tracked, status)
    return Fitted(model, tracked, version, reused=False, tracking=config.tracking)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def initial_weights(config: RunConfig, step: int | None, home: str) -> InitialWeights:
    """Return the initial weights of the run. With a checkpoint, the model that the run once started from is not needed.

    Args:
        config: configuration of the run.
        step: step of the checkpoint that the run resumes from, if there is one.
        home: URI of the run's folder.

    Raises:
        BadRequestError: the checkpoint is beyond `train.steps`, or `train.start_from` cannot be used.
    """
    if step is None:
        return starting_point(config)
    if step > config.train.steps:
        raise BadRequestError(
            f"run '{config.name}' in {home} has a checkpoint of step {step}, beyond train.steps {config.train.steps}; "
            f"give {step} or more steps, or start afresh with --resume never"
        )
    bank = KernelBank.open(config.data.bank)
    refuse_composites(config, bank)
    return InitialWeights(bank.codec, None)


def say_changes(config: RunConfig, record: dict, step: int) -> None:
    """Tell the user which changed settings have no effect on a resumed run, or make its learning rate jump.

    The learning rate jumps with another schedule, warm-up or peak, and with a cosine over another number of steps.

    Args:
        config: present configuration of the run.
        record: record of the run before it was resumed.
        step: step of the checkpoint that it resumes from.
    """
    if not record:
        return
    before, train = RunConfig.model_validate(record["config"]).train, config.train
    changes = [
        f"train.{name} {getattr(before, name)} -> {getattr(train, name)}"
        for name in ("steps", "schedule", "halve_at", "warmup_steps", "learning_rate", "kernel_learning_rate")
        if getattr(before, name) != getattr(train, name)
    ]
    was, now = (learning_rate_factor(step, one) for one in (before, train))
    if changes and step < train.steps and abs(was - now) > 0.01:
        how = "the cosine's learning rate" if before.schedule == train.schedule == "cosine" else "the learning rate"
        _say(f"{', '.join(changes)}: at step {step} {how} changes from {was:.0%} to {now:.0%} of its peak")
    if (train.start_from, train.start_parts) != (before.start_from, before.start_parts):
        _say(f"train.start_from {train.start_from}: without effect, the run resumes from its checkpoint of step {step}")


def data_digests(config: RunConfig) -> dict[str, str]:
    """Return the identity of the run's data. Raises ArtefactError if shards or bank are missing."""
    return {"shards": open_mixture(config.data).digest, "bank": KernelBank.open(config.data.bank).digest}


def _inputs(config: RunConfig, digests: dict[str, str]) -> list[tuple[str, str, str]]:
    """List name, digest and URI of the run's data; several shard sets are numbered."""
    sets = open_mixture(config.data).sets
    names = ["shards"] if len(sets) == 1 else [f"shards-{number}" for number in range(1, len(sets) + 1)]
    shards = [(name, one.manifest.digest, one.uri) for name, one in zip(names, sets, strict=True)]
    return [*shards, ("bank", digests["bank"], config.data.bank)]


def absolute(config: RunConfig) -> RunConfig:
    """Return the config with absolute URIs, which mean the same in every worker's working directory."""
    shards = config.data.shards
    if isinstance(shards, str):
        placed: str | tuple[ShardSetConfig, ...] = uris.absolute(shards)
    else:
        placed = tuple(one.model_copy(update={"uri": uris.absolute(one.uri)}) for one in shards)
    data = config.data.model_copy(update={"shards": placed, "bank": uris.absolute(config.data.bank)})
    return config.model_copy(update={"data": data, "output": uris.absolute(config.output)})


def cpus_needed(config: RunConfig) -> int:
    """Count the logical CPUs for the smallest number of workers and one data task each."""
    return int(config.train.fewest_workers * (config.train.cpus_per_worker + config.data.task_cpus) + 0.999)


def check_cluster(config: RunConfig) -> float:
    """Return the data CPUs of all workers together. Workers that took every CPU would starve their own data tasks."""
    have, workers = ray.cluster_resources().get("CPU", 0.0), config.train.fewest_workers
    left = have - workers * config.train.cpus_per_worker
    if left < config.data.task_cpus * workers:
        raise BadRequestError(
            f"the cluster has {have:g} CPUs; {workers} workers x {config.train.cpus_per_worker:g} and a data task of "
            f"{config.data.task_cpus:g} for each need {cpus_needed(config)}; lower train.workers, "
            "train.cpus_per_worker or data.task_cpus"
        )
    return left


def _export_model(run: TrainingRun, tracked: runs.RunRef, folder: Path, model: str) -> int | None:
    """Export the checkpoint's averaged weights as the run's model folder, and register them as a model version."""
    with scratch.temporary("export") as local:  # the registry needs a local folder, and `model` may be on S3
        checkpoint.export(folder, local)
        # The manifest last: it marks the folder as complete.
        for file in sorted(local.iterdir(), key=lambda file: file.name == MANIFEST):
            storage.write_bytes(uris.join(model, file.name), file.read_bytes())
        return _register(run, tracked, local)


def _register(run: TrainingRun, tracked: runs.RunRef, folder: Path) -> int | None:
    """Register a copy of the run's model folder, with an added picture, as a model version."""
    config, names = run.config, run.config.tracking
    if names.model_name is None:
        return None
    (folder / PICTURE).write_bytes(encode_png(card_picture(load_model(folder), fixed_batch(config))))
    return versions.register(tracked, folder, names.model_name, names.alias, metrics={}, tags=run.digests)


def is_whole(model: str) -> bool:
    """Check whether every file of a finished run's model folder is as it was written; print which one is not."""
    try:
        check_folder(model)
    except UnavailableError:
        raise
    except ArtefactError as error:
        _say(f"{error}; the folder is written again from the last checkpoint")
        return False
    return True
