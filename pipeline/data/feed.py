"""Shards to batches: the Ray Data graph of one training worker.

One row of the plan is one task: it reads its shards whole, checks them against the manifest, decodes each tile once,
crops, degrades, and gives back samples ready for the network, so that whole images never cross the object store.
Row order is kept, so the stream a worker sees is the one `plan.py` says, on any machine.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray.data
import torch
from ray.data.collate_fn import NumpyBatchCollateFn

from kernels_bank import KernelBank
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import RunConfig
from pipeline.data import plan
from pipeline.data.images import BadImageError, decode_tile
from pipeline.data.manifest import Manifest, read_manifest, read_shard
from pipeline.data.samples import Draw, degrade_draws, draw
from pipeline.data.tiles import TileSample, read_samples

# A task hands its samples on in blocks of about this size, so that the first batch does not wait for the last.
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Batch:
    """What a training step gets; every image of a batch has the same scale."""

    lr: torch.Tensor  # (B, 3, p/s, p/s) float32
    hr: torch.Tensor  # (B, 3, p, p) float32 in [0, 1]
    kernel: torch.Tensor  # (B, k, k) float32
    sigma: torch.Tensor  # (B,) float32, [0, 1] scale
    scale: int
    keys: tuple[str, ...]
    replaced: int  # samples whose tile was damaged and whose place another took


class Feed:
    """The batches of one worker, from where the stages of the run so far left off."""

    def __init__(self, config: RunConfig, *, stages: tuple[plan.Stage, ...], workers: int, rank: int) -> None:
        self.stages, self.workers = stages, workers
        self._config, self._rank = config, rank
        self._batch_size = config.train.batch_size // workers

    def after(self, batches: int) -> tuple[plan.Stage, ...]:
        """The stages to store in a checkpoint once every worker has consumed `batches` batches of this feed."""
        return plan.advance(self.stages, self.workers, batches * self._batch_size)

    def batches(self, count: int, *, cpus: float, device: str = "cpu") -> Iterator[Batch]:
        """Stream `count` batches, prefetched, using at most `cpus` logical CPUs of the cluster for data tasks.

        Raises:
            ArtefactError: a shard that is missing or damaged, or more bad samples than `max_bad_fraction`.
        """
        config = self._config
        manifest = read_manifest(config.data.shards)
        segments = plan.stream(
            manifest.train,
            seed=config.seed,
            patches_per_tile=config.data.patches_per_tile,
            shards_per_window=config.data.shards_per_window,
        )
        mine = plan.for_worker(segments, self.stages, self.workers, self._rank)
        unchanged = bool(self.stages) and self.stages[-1].workers == self.workers
        position = self.stages[-1].consumed if unchanged else 0
        rows = []
        for segment in plan.take(mine, count * self._batch_size):
            rows.append({**asdict(segment), "shards": ",".join(segment.shards), "position": position})
            position += len(segment)
        task = functools.partial(_read_segment, config=config, manifest=manifest, batch_size=self._batch_size)
        plan_rows = ray.data.from_items(rows, override_num_blocks=len(rows))
        data = plan_rows.map_batches(task, batch_size=1, num_cpus=config.data.task_cpus, batch_format="numpy")
        data.context.target_max_block_size = _BLOCK_BYTES
        data.context.execution_options.preserve_order = True
        data.context.execution_options.resource_limits = ray.data.ExecutionResources(
            cpu=max(cpus, config.data.task_cpus)
        )
        batches = data.iterator().iter_torch_batches(
            batch_size=self._batch_size, prefetch_batches=2, collate_fn=_Collate(), device=device, drop_last=True
        )
        return _tolerating(itertools.islice(batches, count), config.data.max_bad_fraction)


class _Collate(NumpyBatchCollateFn):
    """Rows to the tensors of a batch. LR images travel as bytes because their size changes with the scale."""

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:  # noqa: ANN401 - what Ray calls CollatedData
        scale, side = int(batch["scale"][0]), batch["hr"].shape[-1]
        lr = np.stack([np.frombuffer(image, np.float32) for image in batch["lr"]])
        return {
            "lr": torch.from_numpy(lr.reshape(-1, 3, side // scale, side // scale)),
            "hr": torch.from_numpy(np.array(batch["hr"])),
            "kernel": torch.from_numpy(np.array(batch["kernel"])),
            "sigma": torch.from_numpy(np.array(batch["sigma"])),
            "scale": scale,
            "keys": tuple(batch["key"]),
            "replaced": int(batch["replaced"].sum()),
        }


def _tolerating(batches: Iterator[dict[str, Any]], max_bad_fraction: float) -> Iterator[Batch]:
    """Count replaced samples as they pass; a few are normal in a large set, many mean damaged shards."""
    seen = bad = 0
    for raw in batches:
        batch = Batch(**raw | {"hr": raw["hr"].float().div_(255)})
        seen, bad = seen + len(batch.keys), bad + batch.replaced
        if bad > max_bad_fraction * max(seen, 1000):
            raise ArtefactError(f"{bad} of {seen} samples could not be decoded; run shard_images.py --verify")
        yield batch


@functools.lru_cache(maxsize=1)
def _bank(uri: str) -> KernelBank:
    """Opened once a process, whatever number of segments it reads."""
    torch.set_num_threads(1)  # data tasks run side by side, one core each
    return KernelBank.open(uri)


def _read_segment(
    row: dict[str, Any], *, config: RunConfig, manifest: Manifest, batch_size: int
) -> Iterator[dict[str, Any]]:
    """All samples of one plan row, in blocks that never mix two batches' scales."""
    epoch, start, stop, position = (int(row[name][0]) for name in ("epoch", "start", "stop", "position"))
    segment = plan.Segment(epoch, tuple(str(row["shards"][0]).split(",")), start, stop)
    tiles = _read_tiles(config.data.shards, manifest, segment.shards)
    draws = _draw_all(tiles, segment, config)
    done = 0
    while done < len(draws):
        batch, offset = divmod(position + done, batch_size)
        chunk = draws[done : done + batch_size - offset]
        scale = plan.scale_of(config.model.scales, batch, seed=config.seed)
        lr = degrade_draws([d for d, _ in chunk], scale, config.data.lr_quantize)
        yield {
            "lr": np.array([image.tobytes() for image in lr], dtype=object),
            "hr": np.stack([d.hr for d, _ in chunk]),
            "kernel": np.stack([d.kernel for d, _ in chunk]),
            "sigma": np.array([d.sigma for d, _ in chunk], np.float32),
            "scale": np.full(len(chunk), scale),
            "key": np.array([d.key for d, _ in chunk]),
            "replaced": np.array([replaced for _, replaced in chunk], np.int8),
        }
        done += len(chunk)


def _read_tiles(uri: str, manifest: Manifest, names: tuple[str, ...]) -> list[TileSample]:
    shards = {shard.name: shard for shard in manifest.train}
    tiles: list[TileSample] = []
    for name in names:
        found = list(read_samples(read_shard(uri, shards[name])))
        if len(found) != shards[name].samples:
            raise ArtefactError(f"{uri}/{name}: {len(found)} samples, its manifest says {shards[name].samples}")
        tiles += found
    return tiles


def _draw_all(tiles: list[TileSample], segment: plan.Segment, config: RunConfig) -> list[tuple[Draw, bool]]:
    """(draw, replaced) for every sample of a segment in its mixed order; each tile is decoded once."""
    data, bank = config.data, _bank(config.data.bank).kernels
    order = plan.mixed_order(segment, len(tiles), data.patches_per_tile, seed=config.seed)
    draws: dict[int, tuple[Draw, bool]] = {}
    for tile in np.unique(order[:, 0]):
        pixels, replaced = _decode_or_next(tiles, int(tile))
        for place in np.flatnonzero(order[:, 0] == tile):
            patch = int(order[place, 1])
            key = tiles[tile].key
            drawn = draw(pixels, key, patch, epoch=segment.epoch, seed=config.seed, data=data, bank=bank)
            draws[int(place)] = (drawn, replaced)
    return [draws[place] for place in range(len(segment))]


def _decode_or_next(tiles: list[TileSample], index: int) -> tuple[np.ndarray, bool]:
    """A tile's pixels; a damaged tile gives its place to the next good one, so that no position is lost."""
    for step in range(len(tiles)):
        try:
            return decode_tile(tiles[(index + step) % len(tiles)].png), step > 0
        except BadImageError:
            continue
    raise ArtefactError(f"none of {len(tiles)} tiles decodes; run shard_images.py --verify")
