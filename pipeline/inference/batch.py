"""Many images: one after another in this process, or on an actor pool of a Ray cluster; both resume after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch

from kernels_bank.runtime import os_errors, uris
from kernels_bank.runtime.cpus import usable_cpus
from kernels_bank.runtime.errors import BadRequestError, JobFailedError
from kernels_bank.runtime.lease import Lease, only_writer, refuse_second_writer
from kernels_bank.runtime.output import check_writable
from kernels_bank.runtime.progress import Progress
from pipeline.data.sources import Source, read_source
from pipeline.images import BadImageError
from pipeline.images.decode import decode_photograph
from pipeline.images.header import read_header
from pipeline.images.parts import Parts
from pipeline.inference import memory
from pipeline.inference.allocator import keep_freed_memory
from pipeline.inference.files import RestoreContext, RestoreResult, load_context, refuse_result, restore_job
from pipeline.inference.network import default_device
from pipeline.inference.progress import Listener
from pipeline.inference.restore_jobs import RestoreJob, list_jobs, split_done
from pipeline.inference.settings import RestoreSettings
from pipeline.model import restorer_of


def restore_files(settings: RestoreSettings) -> list[RestoreResult]:
    """Restore every image of the input; finished results are kept.

    Raises:
        BadRequestError: there is no such model, image or kernel, they do not fit, a result exists and `overwrite` is
            off, or another process writes to the output.
        JobFailedError: another process has taken over the output, because this one was suspended for too long.
    """
    check_writable(settings.output)
    with only_writer(uris.absolute(settings.output)) as lease:
        return _restore(settings, lease)


def _restore(settings: RestoreSettings, lease: Lease) -> list[RestoreResult]:
    context = load_context(settings, torch.device("cpu") if settings.workers > 1 else None)
    todo, done = split_done(list_jobs(settings), settings, context.request)
    outcomes = [RestoreResult(job.source.name, job.result, "was finished before") for job in done]
    with Progress("restore", len(todo) + len(done), "image") as bar:
        bar.start_at(len(done))
        lease.check()
        for outcome in _on_cluster(todo, context) if settings.workers > 1 and todo else _here(todo, context, bar):
            outcomes.append(outcome)
            bar.advance(note=outcome.name)
            lease.check()  # before the next one is written
    return sorted(outcomes, key=lambda outcome: outcome.name)


def checked(outcomes: list[RestoreResult]) -> list[RestoreResult]:
    """Return the results if every image was restored. Raises JobFailedError, which names the failed images."""
    _refuse([outcome.name for outcome in outcomes if not outcome.output], len(outcomes), "were not restored")
    return outcomes


def _refuse(failed: list[str], of: int, what: str) -> None:
    if failed:
        names = ", ".join(failed[:5]) + (" ..." if len(failed) > 5 else "")
        raise JobFailedError(f"{len(failed)} of {of} images {what}: {names}")


class Plan(NamedTuple):
    """Hold a description of what a command would do."""

    text: str
    images: int  # number of images in the input
    broken: list[str]  # names of images that it could not restore

    def checked(self) -> None:
        """Raise JobFailedError, as the command itself would, if it could not restore every image."""
        _refuse(self.broken, self.images, "would not be restored")


def planned(settings: RestoreSettings) -> Plan:
    """Describe what `restore_files` would do; all inputs are checked, nothing is written. Raises the same errors."""
    check_writable(settings.output)
    refuse_second_writer(uris.absolute(settings.output))
    context = load_context(settings)
    todo, done = split_done(list_jobs(settings), settings, context.request)
    sizes, broken, problems = [], [], []
    for job in todo:
        if (problem := job.name_problem()) is not None:
            broken.append(job.source.name)
            problems.append(f"\n  not possible   {job.source.name}: {problem}")
            continue
        state = "not readable"
        try:
            data = read_source(job.source)
            header = read_header(data)
            held = _pixels(job, header, data)
            state = "not possible"
            refuse_result(job, held, settings)
            sizes.append((header.height * header.width, f"{header.width} x {header.height}"))
        except (BadImageError, BadRequestError, MemoryError) as error:  # as in the restoration itself
            broken.append(job.source.name)
            problems.append(f"\n  {state}   {job.source.name}: {str(error) or 'out of memory'}")
    kernel = f"estimated{' for every place' if settings.kernel_field else ''}"
    if context.kernel is not None:
        kernel = f"{settings.kernel}, {context.kernel.shape[0]} pixels a side"
    pixels = (settings.max_memory - memory.in_use(torch.device("cpu"))) / memory.window_bytes(
        restorer_of(context.restorer.network).config
    )
    largest = f"; the largest is {max(sizes)[1]}" if sizes else ""
    lines = [
        f"{len(todo) - len(broken)} images would be restored at x{settings.scale} to {settings.output}{largest}",
        f"model          {context.restorer.uri}, weights {context.restorer.digest[:12]}",
        f"kernel         {kernel}",
        f"sigma          {'estimated' if settings.sigma == 'auto' else settings.sigma}",
        f"strength       {settings.strength:g}",
        f"start (x0)     {settings.x0 or 'the model’s own'}",
        f"done before    {len(done)}",
        f"workers        {settings.workers}",
        f"memory         {settings.max_memory / 2**30:.2f} GiB: {max(pixels, 0) / 1e6:.1f} megapixels at once",
    ]
    return Plan("\n  ".join(lines) + "".join(problems), len(todo) + len(done), broken)


def _pixels(job: RestoreJob, header: Parts, data: bytes) -> np.ndarray:
    """Return pixels for the check of a job's format; decode them only if their channels or depth may not fit it."""
    if job.kind in {"png", "tiff"} or header.kind == "JPEG":
        return np.broadcast_to(np.uint8(0), (header.height, header.width, 3))  # takes no memory
    return decode_photograph(data).pixels


def _here(jobs: list[RestoreJob], context: RestoreContext, bar: Progress) -> Iterator[RestoreResult]:
    keep_freed_memory(context.settings.max_memory)
    for job in jobs:
        yield restore_job(job, context, _shown(job.source.name, bar))


def _shown(name: str, bar: Progress) -> Listener:
    """Show the steps of one image on the bar."""
    return lambda step: bar.within(step.share, f"{name}: {step.text()}")


def _on_cluster(jobs: list[RestoreJob], context: RestoreContext) -> Iterator[RestoreResult]:
    """Restore with a Ray Data job: each image is a block, so a free worker takes the next one."""
    from kernels_bank.runtime.cluster import connect
    from kernels_bank.runtime.rows import rows_of

    workers = context.settings.workers
    connect(min_cpus=workers)
    import ray

    cluster = ray.cluster_resources()
    cpus, cards = int(cluster.get("CPU", 0)), cluster.get("GPU", 0)
    if cpus < workers or 0 < cards < workers:
        has = f"{cpus} CPUs and {cards:g} cards"
        raise BadRequestError(
            f"--workers {workers}: the cluster has {has}; each worker takes one of each kind there is"
        )
    rows = [{"source": asdict(job.source), "target": job.target, "kind": job.kind} for job in jobs]
    threads = max(1, min(cpus, usable_cpus()) // workers)
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Worker,  # type: ignore[arg-type] # Ray makes an actor of a class
        # In a list, because Ray would resolve a bare reference in the driver.
        fn_constructor_kwargs={"shared": [ray.put(context)], "threads": threads},
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=1 if cards else None,
    )
    for row in rows_of(dataset):
        yield RestoreResult(row["name"], row["output"], row["note"])


class Worker:
    """Restore images one after another in an actor of the pool, with the context on the actor's device."""

    def __init__(self, shared: list[Any], threads: int) -> None:
        import ray

        torch.set_num_threads(threads)
        self.context: RestoreContext = ray.get(shared[0]).on(default_device())
        keep_freed_memory(self.context.settings.max_memory)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Restore one image; return the columns of a RestoreResult."""
        source = Source(**row["source"])
        with os_errors.told():
            outcome = restore_job(RestoreJob(source, row["target"], row["kind"]), self.context)
        return {"name": outcome.name, "output": outcome.output, "note": outcome.note}
