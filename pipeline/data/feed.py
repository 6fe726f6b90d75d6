"""Shards to batches: the Ray Data graph of one training worker.

One row of the plan is one task (`task.py`). Row order is kept, so a worker's stream is the one defined by `plan.py`
on any machine, and a checkpoint only has to hold its position.

Every worker runs its own graph, made from the plan and the checkpoint's position. A single graph split among the
workers, as in `TorchTrainer(datasets=...)`, would give each block to the worker that asks first: positions in a
worker's stream would then be meaningless, and an exact resume impossible.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import cv2
import numpy as np
import ray.data
import torch
from ray.data.collate_fn import NumpyBatchCollateFn

from kernels_bank.runtime import uris
from kernels_bank.runtime.errors import ArtefactError
from kernels_bank.runtime.rows import plain_errors, prepare
from pipeline.config import RunConfig
from pipeline.data import plan
from pipeline.data.batch import Batch
from pipeline.data.mixture import Mixture, Window, open_mixture
from pipeline.data.pace import Paced
from pipeline.data.task import read_segment

# A task yields its samples in blocks of about this size, so that the first batch does not wait for the last.
_BLOCK_BYTES = 4 << 20
# Tasks of one Ray Dataset. A run of a million steps over a small set has tens of thousands of tasks, and Ray needs a
# millisecond for each before the first one starts. So the plan is streamed in stretches of this many tasks.
_STRETCH = 512
# Share of the cluster's object store that the graphs of all workers may fill together. Ray's own limit is per graph.
_STORE_SHARE = 0.5


class Feed:
    """Feed one worker its batches, from the position that the run's stages have reached."""

    def __init__(self, config: RunConfig, *, stages: tuple[plan.Stage, ...], workers: int, rank: int) -> None:
        self.stages, self.workers = stages, workers
        self._config, self._rank = config, rank
        self._batch_size = config.train.batch_size // workers

    def after(self, batches: int) -> tuple[plan.Stage, ...]:
        """Return the stages to store in a checkpoint once every worker has consumed `batches` batches of this feed."""
        return plan.advance(self.stages, self.workers, batches * self._batch_size)

    def batches(self, count: int, *, cpus: float, device: str = "cpu") -> Iterator[Batch]:
        """Stream `count` batches, prefetched, using at most `cpus` logical CPUs of the cluster for data tasks.

        Raises:
            ArtefactError: a shard that is missing, or more damaged tiles than `max_bad_fraction` allows.
        """
        mixture = open_mixture(self._config.data)
        raw = self._stream(mixture, count, cpus=cpus, pin=torch.device(device).type == "cuda")
        return _batches(_tolerating(raw, mixture, self._config.data.max_bad_fraction), torch.device(device))

    def _stream(self, mixture: Mixture, count: int, *, cpus: float, pin: bool) -> Iterator[dict[str, Any]]:
        data = self._config.data
        windows = math.ceil(mixture.shards_an_epoch / data.shards_per_window)
        window_samples = mixture.tiles_an_epoch * data.patches_per_tile / windows
        stretch = max(1, round(_STRETCH * window_samples / self._batch_size)) * self._batch_size
        segments = mixture.stream(
            seed=self._config.seed,
            patches_per_tile=data.patches_per_tile,
            shards_per_window=data.shards_per_window,
        )
        mine = plan.for_worker(segments, self.stages, self.workers, self._rank)
        unchanged = bool(self.stages) and self.stages[-1].workers == self.workers
        position = self.stages[-1].consumed if unchanged else 0
        for part in plan.in_stretches(mine, count * self._batch_size, stretch):
            rows = []
            for segment in part:
                shards = {"shards": ",".join(segment.shards), "window": mixture.window(segment).to_json()}
                rows.append({**asdict(segment), **shards, "position": position})
                position += len(segment)
            yield from self._read(rows, cpus=cpus, pin=pin)

    def _read(self, rows: list[dict[str, Any]], *, cpus: float, pin: bool) -> Iterable[Any]:
        """Return a Ray Dataset over some rows of the plan."""
        config = self._config
        task = functools.partial(_read_row, config=config, batch_size=self._batch_size)
        plan_rows = ray.data.from_items(rows, override_num_blocks=len(rows))
        data = plan_rows.map_batches(task, batch_size=1, num_cpus=config.data.task_cpus, batch_format="numpy")
        prepare(data)
        data.context.target_max_block_size = _BLOCK_BYTES
        data.context.custom_execution_callback_classes = [Paced]
        data.context.execution_options.preserve_order = True
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        data.context.execution_options.resource_limits = ray.data.ExecutionResources(
            cpu=max(cpus, config.data.task_cpus), object_store_memory=store * _STORE_SHARE / self.workers
        )
        return data.iterator().iter_torch_batches(
            batch_size=self._batch_size, prefetch_batches=2, collate_fn=_Collate(pin=pin), device="cpu"
        )


def _read_row(row: dict[str, Any], *, config: RunConfig, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    # Tasks run in parallel, one core each.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    epoch, start, stop, position = (int(row[name][0]) for name in ("epoch", "start", "stop", "position"))
    segment = plan.Segment(epoch, tuple(str(row["shards"][0]).split(",")), start, stop)
    shards = Window.from_json(str(row["window"][0]))
    return read_segment(segment, position, config=config, shards=shards, batch_size=batch_size)


class _Collate(NumpyBatchCollateFn):
    """Collate rows to the tensors of a batch, in Ray Data's thread; pinned if they are copied to a GPU."""

    def __init__(self, *, pin: bool) -> None:
        self._pin = pin

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:  # noqa: ANN401 - what Ray calls CollatedData
        scale, side = int(batch["scale"][0]), batch["hr"].shape[-1]
        lr = np.frombuffer(b"".join(batch["lr"]), np.float32).reshape(-1, 3, side // scale, side // scale)
        arrays = {"lr": lr} | {name: batch[name] for name in ("hr", "kernel", "sigma")}
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        if self._pin:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return tensors | {"scale": scale, "keys": tuple(batch["key"]), "bad": [str(b) for b in batch["bad"] if b]}


def _tolerating(
    batches: Iterator[dict[str, Any]], mixture: Mixture, max_bad_fraction: float
) -> Iterator[dict[str, Any]]:
    """Pass batches on and warn of damage in them; raise once more than a share of the training tiles is damaged."""
    shards = {uris.join(s.uri, shard.name): shard.samples for s in mixture.sets for shard in s.manifest.train}
    bad: dict[str, int] = {}  # damaged shard or tile -> number of its tiles
    with plain_errors():
        for batch in batches:
            for name in set(batch["bad"]) - bad.keys():
                bad[name] = shards.get(name, 1)
                logging.getLogger(__name__).warning("%s: damaged, other tiles take its place", name)
            if sum(bad.values()) > max_bad_fraction * mixture.samples:
                raise ArtefactError(_too_many(bad, mixture.samples, max_bad_fraction))
            yield batch


def _too_many(bad: dict[str, int], samples: int, max_bad_fraction: float) -> str:
    names = ", ".join(list(bad)[:10]) + (" ..." if len(bad) > 10 else "")
    return (
        f"{sum(bad.values())} of {samples} training tiles are damaged, more than data.max_bad_fraction "
        f"{max_bad_fraction:g} allows: {names}; remake the shards with jobs/shard_images.py"
    )


def _batches(raw: Iterator[dict[str, Any]], device: torch.device) -> Iterator[Batch]:
    """Yield batches on their device. HR images are copied as bytes and converted to floats there."""
    for batch in raw:
        bad: Sequence[str] = batch["bad"]
        tensors = {name: batch[name] for name in ("lr", "hr", "kernel", "sigma")}
        moved = Batch(
            **tensors,
            scale=batch["scale"],
            keys=batch["keys"],
            replaced=len(bad),
            bad=tuple(dict.fromkeys(bad)),
        ).to(device)
        yield replace(moved, hr=moved.hr.float().div_(255))
