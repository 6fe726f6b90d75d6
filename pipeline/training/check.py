"""`jobs/train.py --check`: everything reachable is validated and the feed read, nothing is trained."""

from __future__ import annotations

import time
from pathlib import Path

from kernels_bank.runtime.cluster import connect
from pipeline.config import RunConfig
from pipeline.data.feed import Feed
from pipeline.data.images import encode_png
from pipeline.data.manifest import read_manifest
from pipeline.training.fit import absolute, check_cluster, cpus_needed, data_digests
from pipeline.training.learner import starting_point
from pipeline.training.pictures import contact_sheet

_BATCHES = 50


def check(config: RunConfig, sheet: Path) -> str:
    """Read a few batches, save a contact sheet (HR | LR | kernel), describe the run.

    Raises:
        BadRequestError: what `fit` would raise before it starts.
    """
    config = absolute(config)
    digests = data_digests(config)
    starting_point(config)
    connect(min_cpus=cpus_needed(config))
    train, workers = config.train, config.train.fewest_workers
    cpus = check_cluster(config) / workers
    samples = read_manifest(config.data.shards).samples * config.data.patches_per_tile
    batches = Feed(config, stages=(), workers=workers, rank=0).batches(_BATCHES, cpus=cpus)
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
        f"feed           {rate:.0f} samples/s for each worker, with {cpus:g} CPUs",
        f"digests        {', '.join(f'{name} {digest[:12]}' for name, digest in digests.items())}",
        f"contact sheet  {sheet}",
    ]
    return "\n  ".join(lines)
