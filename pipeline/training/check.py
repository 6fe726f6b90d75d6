"""`jobs/train.py --check`: validate all that is reachable and read the feed, without training."""

from __future__ import annotations

import time
from pathlib import Path

from kernels_bank.runtime import storage, uris
from kernels_bank.runtime.cluster import connect
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.runtime.lease import refuse_second_writer
from kernels_bank.runtime.output import check_own
from pipeline.config import RunConfig
from pipeline.data.feed import Feed
from pipeline.data.mixture import open_mixture
from pipeline.images import png
from pipeline.images.encode import encode_png
from pipeline.tracking.health import check_store
from pipeline.tracking.sqlite import sqlite_path
from pipeline.tracking.store import RunRef, tracking_uri
from pipeline.training.commit import usable_step
from pipeline.training.fit import (
    Resume,
    absolute,
    check_cluster,
    cpus_needed,
    data_digests,
    initial_weights,
    is_whole,
    say_changes,
)
from pipeline.training.pictures import contact_sheet
from pipeline.training.planning.cost import training_cost
from pipeline.training.record import KIND, earlier, names_without_mark

_BATCHES = 50
_SOFTWARE = b"Software\0blind-sr contact sheet"  # marks the file as one that may be overwritten


def check(config: RunConfig, sheet: Path, *, resume: Resume = "auto") -> str:
    """Read a few batches, save a contact sheet (HR | LR | kernel), and describe the run.

    Args:
        config: configuration of the run.
        sheet: file of the contact sheet.
        resume: `auto`, `changed` or `never`, as for the run.

    Raises:
        BadRequestError: as `fit` before it starts.
    """
    config = absolute(config)
    digests = data_digests(config)
    home, store = uris.join(config.output, config.name), tracking_uri(config.output)
    record = {} if resume == "never" else earlier(home, config, digests, changed=resume == "changed")
    refuse_second_writer(home)  # before reading the checkpoints, which another writer may be replacing
    finished = record.get("finished") == config.train.steps and is_whole(uris.join(home, "model"))
    step = config.train.steps if finished else None
    if record and not finished:
        step = usable_step(uris.join(home, "checkpoints"), mend=False)
    start = initial_weights(config, step, home)
    if step is not None:
        say_changes(config, record, step)
    check_own(home, KIND, names_without_mark(home))
    _refuse_other_file(sheet)
    database = sqlite_path(store)
    recorded = "SQLite file to be made" if database and not database.exists() else check_store(store)
    connect(min_cpus=cpus_needed(config))
    train, workers = config.train, config.train.fewest_workers
    cpus = check_cluster(config) / workers
    samples = round(open_mixture(config.data).tiles_an_epoch * config.data.patches_per_tile)
    batches = Feed(config, stages=(), workers=workers, rank=0).batches(_BATCHES, cpus=cpus)
    first = next(batches)
    started = time.perf_counter()
    seen = sum(len(batch.keys) for batch in batches)
    rate = seen / (time.perf_counter() - started)
    storage.write_bytes(sheet, png.with_text(encode_png(contact_sheet(first)), _SOFTWARE))
    epochs = train.steps * train.batch_size / samples
    shapes = {name: tuple(getattr(first, name).shape) for name in ("lr", "hr", "kernel")}
    images = train.micro_batch or train.batch_size // train.workers
    cost = training_cost(config.model, train, start.codec, config.data.patch, max(config.model.scales))
    gflop, gib = (cost.forward_flops + cost.backward_flops) / 1e9, cost.peak_bytes(images) / 2**30
    plan = f"{train.steps} steps of {train.batch_size} on {train.workers} workers"
    lines = [
        f"run '{config.name}' {'is finished' if finished else _state(record, step)}: {plan}",
        f"cost           {cost.parameters:,} parameters, {gflop:.1f} GFLOP a sample, {gib:.2f} GiB a worker",
        f"epoch          {samples} samples; the run is {epochs:.1f} epochs",
        f"batch          {', '.join(f'{name} {shape}' for name, shape in shapes.items())}, for each worker",
        f"feed           {rate:.0f} samples/s for each worker, with {cpus:g} CPUs",
        f"output         {home}, writable",
        f"tracking       {RunRef('', store).shown}: {recorded}",
        f"digests        {', '.join(f'{name} {digest[:12]}' for name, digest in digests.items())}",
        f"contact sheet  {sheet}",
    ]
    return "\n  ".join(lines)


def _refuse_other_file(sheet: Path) -> None:
    """Refuse to overwrite any file except an earlier sheet. Raises BadRequestError."""
    if sheet.exists() and not (sheet.is_file() and png.has_text(sheet.read_bytes(), _SOFTWARE)):
        raise BadRequestError(f"{sheet.absolute()}: is no contact sheet of this program; move it, nothing was touched")


def _state(record: dict, step: int | None) -> str:
    if not record:
        return "can start"
    return f"can resume (from step {step})" if step else "can start again (there is no checkpoint yet)"
