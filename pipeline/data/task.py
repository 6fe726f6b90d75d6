"""What one data task of the feed does: the samples of one stretch of the plan, from tars to LR images.

It reads its shards whole, checks them against the manifest, decodes each tile once, crops, degrades, and gives back
samples ready for the network, so that whole images never leave the task.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kernels_bank import KernelBank
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import RunConfig
from pipeline.data import plan
from pipeline.data.manifest import DamagedShardError, Manifest, read_shard
from pipeline.data.samples import Draw, degrade_draws, draw, with_fresh_kernels
from pipeline.data.tiles import TileSample, read_samples
from pipeline.images import BadImageError
from pipeline.images.decode import decode_tile


@dataclass(frozen=True)
class Slot:
    """Place a tile in a window of shards; empty when its shard is damaged."""

    shard: str
    number: int
    tile: TileSample | None

    @property
    def key(self) -> str:
        """Return the tile's key, or a stand-in for one that cannot be read."""
        return self.tile.key if self.tile else f"{self.shard.removesuffix('.tar')}#{self.number}"


def read_segment(
    segment: plan.Segment, position: int, *, config: RunConfig, manifest: Manifest, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield all samples of a segment in its mixed order, a batch's at a time: no block mixes two batches' scales.

    Args:
        segment: which samples.
        position: of the segment's first sample in the stream of its worker; it decides the batches.
        config: of the run.
        manifest: of the shards.
        batch_size: of the worker.

    Raises:
        ArtefactError: a shard is missing, or no tile of any shard can be read.
    """
    bank = open_bank(config.data.bank)
    window = _read_window(config.data.shards, manifest, segment.shards)
    # Those that give their pixels to places whose own tile is damaged.
    readable = [slot for slot in window if slot.tile] or _spare(config.data.shards, manifest, segment.shards)
    order = plan.mixed_order(segment, len(window), config.data.patches_per_tile, seed=config.seed)
    placed: dict[int, tuple[Draw, str]] = {}
    for index in np.unique(order[:, 0]):
        slot = window[index]
        pixels, bad = _decode(slot, readable)
        for place in np.flatnonzero(order[:, 0] == index):
            patch = int(order[place, 1])
            one = draw(
                pixels, slot.key, patch, epoch=segment.epoch, seed=config.seed, data=config.data, bank=bank.kernels
            )
            placed[int(place)] = (one, bad)
    draws = [placed[place][0] for place in range(len(segment))]
    if config.data.kernel_source == "online":
        draws = with_fresh_kernels(draws, bank.spec, epoch=segment.epoch, seed=config.seed)
    done = 0
    while done < len(draws):
        batch, offset = divmod(position + done, batch_size)
        chunk = slice(done, done + batch_size - offset)
        scale = plan.scale_of(config.model.scales, batch, seed=config.seed)
        yield _block(draws[chunk], scale, config.data.lr_quantize) | {
            "bad": np.array([placed[place][1] for place in range(len(segment))[chunk]])
        }
        done += batch_size - offset


def _block(draws: Sequence[Draw], scale: int, lr_quantize: str) -> dict[str, np.ndarray]:
    """Columns of a Ray Data block. LR images travel as bytes, because their size changes with the scale."""
    degraded = degrade_draws(draws, scale, lr_quantize)
    return {
        "lr": np.array([image.tobytes() for image in degraded.lr], dtype=object),
        "hr": np.stack([d.hr for d in draws]),
        "kernel": degraded.kernel,
        "sigma": degraded.sigma,
        "scale": np.full(len(draws), scale),
        "key": np.array([d.key for d in draws]),
    }


@functools.lru_cache(maxsize=1)
def open_bank(uri: str) -> KernelBank:
    """Open a bank once a process, whatever number of segments it reads."""
    return KernelBank.open(uri)


def _read_window(uri: str, manifest: Manifest, names: tuple[str, ...]) -> list[Slot]:
    shards = {shard.name: shard for shard in manifest.train}
    slots: list[Slot] = []
    for name in names:
        shard = shards[name]
        try:
            tiles: list[TileSample | None] = [*read_samples(read_shard(uri, shard))]
        except DamagedShardError:
            tiles = [None] * shard.samples
        if len(tiles) != shard.samples:
            raise ArtefactError(f"{uri}/{name}: {len(tiles)} samples, its manifest says {shard.samples}")
        slots += [Slot(name, number, tile) for number, tile in enumerate(tiles)]
    return slots


def _spare(uri: str, manifest: Manifest, names: tuple[str, ...]) -> list[Slot]:
    """The tiles of the first readable shard outside of a window that is damaged as a whole."""
    for shard in manifest.train:
        if shard.name not in names:
            readable = [slot for slot in _read_window(uri, manifest, (shard.name,)) if slot.tile]
            if readable:
                return readable
    raise ArtefactError(f"{uri}: none of its {len(manifest.train)} shards can be read; remake them")


def _decode(slot: Slot, readable: Sequence[Slot]) -> tuple[np.ndarray, str]:
    """A slot's pixels, and what is damaged if they are another tile's: no position of the plan is ever lost."""
    bad = slot.shard
    if slot.tile:
        try:
            return decode_tile(slot.tile.image), ""
        except BadImageError:
            bad = f"{slot.shard}: {slot.key}"
    for step in range(len(readable)):
        other = readable[(slot.number + step) % len(readable)]
        try:
            return decode_tile(other.tile.image), bad  # type: ignore[union-attr] # readable slots hold a tile
        except BadImageError:
            continue
    raise ArtefactError(f"none of {len(readable)} tiles beside {slot.shard} decodes; run shard_images.py --verify")
