"""The validation samples: one per held-out tile and scale, the same in every run, epoch and worker."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import torch

from kernels_bank.runtime import uris
from kernels_bank.runtime.errors import ArtefactError
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.data.manifest import read_shard
from pipeline.data.mixture import open_mixture
from pipeline.data.samples import Draw, degrade_draws, draw, with_fresh_kernels
from pipeline.data.task import open_bank
from pipeline.data.tiles import read_samples
from pipeline.images import BadImageError
from pipeline.images.decode import decode_tile

# Not the run's seed: two runs that differ only in their seed are validated on the same images.
_SEED = 0


def validation_batches(
    config: RunConfig, *, rank: int = 0, workers: int = 1, limit: int | None = None, batch_size: int = 16
) -> list[Batch]:
    """Read the validation samples of one worker, on the CPU, without Ray.

    Tile i goes to worker i modulo `workers`. No tile is dropped to make the shares equal, so callers must add up sums
    and counts over the workers instead of averaging means.

    Args:
        config: configuration of the run, with patch, kernels, noise and scales.
        rank: rank of the worker.
        workers: number of workers that share the samples.
        limit: number of tiles to use from the front (of all workers together).
        batch_size: largest number of samples of a batch; the last batch of each scale may be smaller.

    Returns:
        Batches of one scale each, in the order of `config.model.scales`; none without a validation split.

    Raises:
        ArtefactError: a shard or a tile is missing or damaged.
    """
    draws = _draws(config, rank, workers, limit)
    batches = []
    for scale in config.model.scales:
        for first in range(0, len(draws), batch_size):
            # A copy, because drawing the noise advances the generator: every scale starts from the same state.
            chunk = copy.deepcopy(draws[first : first + batch_size])
            batches.append(to_batch(chunk, scale, config.data.lr_quantize))
    return batches


def to_batch(draws: list[Draw], scale: int, lr_quantize: str) -> Batch:
    """Degrade draws to a training batch."""
    degraded = degrade_draws(draws, scale, lr_quantize)
    return Batch(
        lr=torch.from_numpy(degraded.lr),
        hr=torch.from_numpy(np.stack([d.hr for d in draws])).float().div_(255),
        kernel=torch.from_numpy(degraded.kernel),
        sigma=torch.from_numpy(degraded.sigma),
        scale=scale,
        keys=tuple(d.key for d in draws),
        replaced=0,
    )


def _draws(config: RunConfig, rank: int, workers: int, limit: int | None) -> list[Draw]:
    data = config.data
    bank = open_bank(data.bank)
    tiles = (
        (uris.join(one.uri, shard.name), tile)
        for one in open_mixture(data).sets
        for shard in one.manifest.validation
        for tile in read_samples(read_shard(one.uri, shard))
    )
    draws = []
    for shard, tile in itertools.islice(tiles, rank, limit, workers):
        try:
            pixels = decode_tile(tile.image)
        except BadImageError as error:
            raise ArtefactError(f"{shard}: validation sample {tile.key}: {error}; remake it") from error
        draws.append(draw(pixels, tile.key, 0, epoch=0, seed=_SEED, data=data, bank=bank.kernels))
    if data.kernel_source == "online" and draws:
        draws = with_fresh_kernels(draws, bank.spec, epochs=[0] * len(draws), seed=_SEED)
    return draws
