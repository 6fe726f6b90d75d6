"""One data task of the feed: the samples of one segment of the plan, from tars to LR images.

The task reads its shards whole, checks them against the manifest, decodes each tile once, crops, degrades, and yields
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
from pipeline.data.manifest import DamagedShardError, read_shard
from pipeline.data.mixture import PlacedShard, Window
from pipeline.data.samples import Draw, degrade_draws, draw, with_fresh_kernels
from pipeline.data.tiles import TileSample, read_samples
from pipeline.images import BadImageError
from pipeline.images.decode import decode_tile


@dataclass(frozen=True)
class Slot:
    """Hold the place of a tile in a window of shards; empty if its shard is damaged."""

    shard: str  # URI
    turn: int
    number: int
    tile: TileSample | None

    @property
    def key(self) -> str:
        """Return the tile's key, or a substitute if the tile cannot be read."""
        return self.tile.key if self.tile else f"{self.shard.rpartition('/')[2].removesuffix('.tar')}#{self.number}"


def read_segment(
    segment: plan.Segment, position: int, *, config: RunConfig, shards: Window, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield all samples of a segment in its mixed order, one batch at a time: no block mixes the scales of two batches.

    Args:
        segment: samples to read.
        position: position of the segment's first sample in its worker's stream, which determines the batches.
        config: configuration of the run.
        shards: shards of the segment.
        batch_size: batch size of the worker.

    Raises:
        ArtefactError: a shard is missing, or no tile of any shard can be read.
    """
    bank = open_bank(config.data.bank)
    window = [slot for shard in shards.shards for slot in _slots(shard)]
    # Readable tiles replace the damaged ones.
    readable = [slot for slot in window if slot.tile] or _spare(shards)
    order = plan.mixed_order(segment, len(window), config.data.patches_per_tile, seed=config.seed)
    placed: dict[int, tuple[Draw, str]] = {}
    for index in np.unique(order[:, 0]):
        slot = window[index]
        pixels, bad = _decode(slot, readable)
        for place in np.flatnonzero(order[:, 0] == index):
            patch = int(order[place, 1])
            one = draw(pixels, slot.key, patch, epoch=slot.turn, seed=config.seed, data=config.data, bank=bank.kernels)
            placed[int(place)] = (one, bad)
    draws = [placed[place][0] for place in range(len(segment))]
    if config.data.kernel_source == "online":
        turns = [window[index].turn for index, _ in order]
        draws = with_fresh_kernels(draws, bank.spec, epochs=turns, seed=config.seed)
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
    """Return the columns of a Ray Data block. LR images are stored as bytes, since their size depends on the scale."""
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
    """Open a bank once per process, for any number of segments."""
    return KernelBank.open(uri)


def _slots(placed: PlacedShard) -> list[Slot]:
    """List the places of a shard's tiles."""
    shard = placed.shard
    try:
        tiles: list[TileSample | None] = [*read_samples(read_shard(placed.uri, shard))]
    except DamagedShardError:
        tiles = [None] * shard.samples
    if len(tiles) != shard.samples:
        raise ArtefactError(f"{placed.name}: {len(tiles)} samples, its manifest says {shard.samples}")
    return [Slot(placed.name, placed.turn, number, tile) for number, tile in enumerate(tiles)]


def _spare(shards: Window) -> list[Slot]:
    """Return the tiles of the first readable spare shard, for a window that is damaged as a whole."""
    for placed in shards.spare:
        if readable := [slot for slot in _slots(placed) if slot.tile]:
            return readable
    names = ", ".join(placed.name for placed in (*shards.shards, *shards.spare))
    raise ArtefactError(f"none of these shards can be read: {names}; remake them")


def _decode(slot: Slot, readable: Sequence[Slot]) -> tuple[np.ndarray, str]:
    """Return a slot's pixels, and the name of the damage if they are from another tile, so that no position is lost."""
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
